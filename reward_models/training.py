"""Training of one network on simulated, randomly undersampled scans."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as distributed
from monai.losses import DiceCELoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from seggym.configs.checking import require_at_least
from seggym.errors import SeggymError
from seggym.files import write_atomic
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.reconstruction.methods import Reconstruction
from seggym.reward_models.checkpoints import load_network, open_reward_model
from seggym.reward_models.metrics import dice_per_class, encode_truth
from seggym.reward_models.networks import build_network
from seggym.reward_models.precision import native_precision, resolve_precision
from seggym.reward_models.training_scans import Simulator, fixed_scans

STATE = "training_state.pt"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    ``iterations`` of ``batch_size`` scans, fewer if ``max_minutes`` or ``patience`` (validations in a row without a
    better score; 0 is never) end it; ``average`` is the decay of the moving average of the weights, which is what is
    validated and kept; ``precision`` "auto" is bf16 autocast where the processor or GPU computes in it. ``start`` is a
    reward model (a folder, or the name of a packaged or published one) whose network ``start_member`` has the weights
    to begin with; None is random ones.
    """

    architecture: str = "unet"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    iterations: int = 1500
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    average: float = 0.99
    augmentation: bool = True
    precision: str = "auto"
    validate_every: int = 150
    patience: int = 6
    max_minutes: float | None = None
    start: str | None = None
    start_member: str = "full"

    def __post_init__(self) -> None:
        require_at_least(self, "training.", iterations=1, batch_size=1, validate_every=1)
        if not self.learning_rate > 0:
            raise SeggymError(f"training.learning_rate={self.learning_rate} must be positive")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for records beside a network."""
        options = {
            key: list(value) if isinstance(value, (list, tuple)) else value for key, value in self.options.items()
        }
        return {**asdict(self), "options": options}

    def made(self, record: Any) -> bool:
        """Whether ``record`` is :meth:`as_dict` of this recipe; what it has no name for had its default then."""
        return isinstance(record, dict) and {**Recipe().as_dict(), **record} == self.as_dict()


class Task(Protocol):
    """What a network is trained for: its batches, its loss and how it is validated."""

    score: str
    """Name of what :meth:`validate` returns."""
    num_outputs: int
    rng: np.random.Generator
    """Everything random of the batches."""

    def module(self, network: nn.Module) -> nn.Module:
        """What maps the inputs of a batch to an output: ``network``, or something that calls it."""
        ...

    def batch(self, size: int, augment: bool) -> tuple[tuple[torch.Tensor, ...], Any]:
        """Inputs of ``size`` random scans and what their outputs are compared with."""
        ...

    def loss(self, output: Any, target: Any) -> torch.Tensor:
        """The scalar that is minimised; outputs may be of reduced precision."""
        ...

    def validate(self, network: nn.Module) -> float:
        """How good ``network`` is on fixed scans of the validation patients; more is better, below 0 is none."""
        ...


class TaskMaker(Protocol):
    """Makes a task of slices for training and validation; ``seed`` decides its batches."""

    def __call__(
        self, train: SliceStack, val: SliceStack, acquisition: Acquisition, device: torch.device, seed: int
    ) -> Task: ...


class SegmentationTask:
    """Labels from normalised images: Dice and cross-entropy; validated by hard Dice.

    ``reconstruction`` makes the images; None is zero-filled.
    """

    score = "dice"

    def __init__(
        self,
        train: SliceStack,
        val: SliceStack,
        acquisition: Acquisition,
        device: torch.device,
        seed: int,
        reconstruction: Reconstruction | None = None,
    ) -> None:
        self.num_outputs = train.num_classes
        self._simulator = Simulator(train, acquisition, device, seed, reconstruction)
        self._loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
        self._validation = fixed_scans(val, acquisition, device, reconstruction)

    @property
    def rng(self) -> np.random.Generator:
        """Everything random of the batches."""
        return self._simulator.rng

    @rng.setter
    def rng(self, rng: np.random.Generator) -> None:
        self._simulator.rng = rng

    def module(self, network: nn.Module) -> nn.Module:
        """The network itself."""
        return network

    def batch(self, size: int, augment: bool) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Images and labels."""
        images, labels = self._simulator.batch(size, augment)
        return (images.contiguous(memory_format=torch.channels_last),), labels

    def loss(self, output: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Of the logits; the features of the output are not used."""
        return self._loss(output[0].float(), target)

    def validate(self, network: nn.Module) -> float:
        """Hard Dice, mean over present classes, then slices."""
        return mean_dice(network, *self._validation)


def train_network(
    recipe: Recipe,
    train: SliceStack,
    val: SliceStack,
    acquisition: Acquisition,
    folder: Path,
    device: torch.device,
    task: TaskMaker = SegmentationTask,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train until ``iterations``, ``max_minutes`` or ``patience`` end it; the weights with the best validation score.

    The state is kept in ``folder`` after every validation and found there again, so that the same call goes on after an
    interruption. Under ``torchrun`` every process draws its own batches and process 0 validates and writes.
    """
    trainer = _Trainer(recipe, train, val, acquisition, folder, device, task)
    trainer.resume()
    trainer.run()
    return trainer.result()


class _Trainer:
    def __init__(
        self,
        recipe: Recipe,
        train: SliceStack,
        val: SliceStack,
        acquisition: Acquisition,
        folder: Path,
        device: torch.device,
        task: TaskMaker,
    ) -> None:
        self.recipe, self.folder, self.device = recipe, folder, device
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        torch.manual_seed(recipe.seed)
        self.task = task(train, val, acquisition, device, recipe.seed * 1000 + self.rank)
        self.network = build_network(recipe.architecture, self.task.num_outputs, **recipe.options).to(device)
        if recipe.start is not None:
            self._take_weights(recipe.start, recipe.start_member)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's annotations
        fastest = native_precision(device) if recipe.precision == "auto" else recipe.precision
        self.autocast = resolve_precision(fastest, device) == "bf16"
        self.replica: nn.Module = self.task.module(self.network)
        if distributed.is_initialized():
            self.replica = DistributedDataParallel(self.replica)
        self.averaged = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.learning_rate, total_steps=recipe.iterations + 1, pct_start=0.1
        )
        self.iteration, self.stale, self.seconds, self.best = 0, 0, 0.0, -1.0
        self.best_weights: dict[str, torch.Tensor] = {}

    def _take_weights(self, start: str, member: str) -> None:
        folder = open_reward_model(start).path(member)
        try:
            self.network.load_state_dict(load_network(folder)[0].state_dict())
        except RuntimeError:
            raise SeggymError(
                f"training.start={start}: the network in {folder} has another architecture, other options or another "
                f"number of classes than {self.recipe.architecture} with {self.recipe.options} and "
                f"{self.task.num_outputs} outputs; choose one that fits, or null"
            ) from None

    def run(self) -> None:
        writer = SummaryWriter(str(self.folder / "tensorboard")) if self.rank == 0 else None
        # Closed on an error as well, so that its message begins a line of its own.
        with tqdm(
            total=self.recipe.iterations,
            initial=self.iteration,
            desc=self.folder.name,
            disable=self.rank > 0,
            mininterval=5,
        ) as bar:
            self._iterate(bar, writer)
        if writer is not None:
            writer.close()

    def _iterate(self, bar: tqdm, writer: SummaryWriter | None) -> None:
        started, ended, running = time.monotonic() - self.seconds, self._ended(), []
        while not ended:
            running.append(self._step())
            self.iteration += 1
            bar.update()
            self.seconds = time.monotonic() - started
            if self._due():
                if self.rank == 0:
                    value, name = self._validate(), self.task.score
                    shown = {"loss": np.mean(running), name: value, "best": self.best}
                    bar.set_postfix({key: f"{number:.3f}" for key, number in shown.items()})
                    assert writer is not None
                    writer.add_scalar("train/loss", np.mean(running), self.iteration)
                    writer.add_scalar(f"val/{name}", value, self.iteration)
                    self._save()
                running.clear()
                ended = self._agreed(self._ended())

    def _due(self) -> bool:
        """Whether to validate. Clocks differ between processes, so where there are several only iterations count."""
        last = self.iteration >= self.recipe.iterations if distributed.is_initialized() else self._ended()
        return last or self.iteration % self.recipe.validate_every == 0

    def _ended(self) -> bool:
        recipe = self.recipe
        late = recipe.max_minutes is not None and self.seconds > 60 * recipe.max_minutes
        return late or self.iteration >= recipe.iterations or 0 < recipe.patience <= self.stale

    def _agreed(self, ended: bool) -> bool:
        """Process 0 decides: the others have not validated."""
        if not distributed.is_initialized():
            return ended
        flag = torch.tensor([float(ended)], device=self.device)
        distributed.broadcast(flag, 0)
        return bool(flag.item())

    def _step(self) -> float:
        self.network.train()
        inputs, target = self.task.batch(self.recipe.batch_size, self.recipe.augmentation)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.replica(*inputs)
        loss = self.task.loss(output, target)
        if not torch.isfinite(loss):
            raise SeggymError(
                f"the loss of {self.folder.name} is {loss.item()} at iteration {self.iteration}: lower learning_rate, "
                "or check the images with `seggym check-data`"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.averaged.update_parameters(self.network)
        return loss.item()

    def _validate(self) -> float:
        score = self.task.validate(self.averaged.module)
        if score > self.best:
            self.best, self.stale = score, 0
            self.best_weights = {key: value.clone() for key, value in self.averaged.module.state_dict().items()}
        else:
            self.stale += 1
        return score

    def _save(self) -> None:
        state = {
            "recipe": self.recipe.as_dict(),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.task.rng.bit_generator.state,
            "progress": [self.iteration, self.stale, self.seconds, self.best],
            "best_weights": self.best_weights,
        }
        write_atomic(self.folder / STATE, lambda path: torch.save(state, path))

    def resume(self) -> None:
        """Go on from the state in the folder, if there is one of the same recipe."""
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise SeggymError(f"{path} cannot be read ({error}): remove it to train from the start") from None
        if not self.recipe.made(state["recipe"]):
            raise SeggymError(f"{path} was made with another recipe: remove {self.folder} to train from the start")
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.rank == 0:
            self.task.rng.bit_generator.state = state["generator"]
        else:
            self.task.rng = np.random.default_rng([self.recipe.seed, self.rank, state["progress"][0]])
        self.iteration, self.stale, self.seconds, self.best = state["progress"]
        self.best_weights = state["best_weights"]

    def result(self) -> tuple[nn.Module, dict[str, Any]]:
        if self.best_weights:
            self.network.load_state_dict(self.best_weights)
        return self.network.eval(), {
            f"val_{self.task.score}": self.best,
            "iterations": self.iteration,
            "minutes": round(self.seconds / 60, 2),
            "recipe": self.recipe.as_dict(),
        }


@torch.inference_mode()
def mean_dice(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Hard Dice, mean over present classes, then over the slices that have one."""
    network.eval()
    predicted = torch.cat([network(part)[0].argmax(1) for part in images.split(32)])
    num_classes = network(images[:1])[0].shape[1]
    dice = dice_per_class(predicted, encode_truth(labels, num_classes)).nanmean(1)
    return dice.nanmean().item()


def start_distributed() -> None:
    """Join the process group, with a GPU of its own, when ``torchrun`` started this process; otherwise do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        # "cuda" without a number is this one from here on.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
