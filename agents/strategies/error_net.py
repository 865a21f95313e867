"""A strategy that asks for what an error net believes the learner gets wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seggym.agents.strategies import dense
from seggym.agents.strategies.strategy import Query, Strategy, choose_best, draw_seed, seeded, uniform
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError
from seggym.reward_models import distortions
from seggym.reward_models.error_net import ErrorNet, load_error_net
from seggym.reward_models.error_training import ErrorNetSettings, train_error_net
from seggym.reward_models.reward_dataset import RewardDataset

# Temperatures of the per-pixel samples that a net of its own learns from.
_TEMPERATURES = (1.0, 3.0)
_FRESH = 0.5


@dataclass(frozen=True)
class ErrorNetUncertainty(Strategy):
    """1 - P(label correct) of the learner's most probable classes, the mean over the image.

    P comes from the reward net of RL4Seg (Judge et al., MICCAI 2024; :mod:`seggym.reward_models.error_net`). ``folder``
    is a trained one, which must not have learned from labels of the pool. Without it a small one is trained at every
    query, on the annotated masks alone, for ``iterations``: on the learner's predictions of them, per-pixel samples of
    those, and distortions. It needs masks of two patients; until then the choice is random.
    """

    folder: str = ""
    iterations: int = 80

    name: ClassVar[str] = "error_net"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise SeggymError(f"iterations={self.iterations} of {self.name}, expected at least 1; raise it")

    def maps(self, net: ErrorNet, state: SelectionState, indices: np.ndarray) -> Tensor:
        """1 - P(label correct) of every pixel of samples, float32 (n, H, W)."""
        images = _grey(state, indices)
        return 1 - net(images, _drawn(state, indices, images).argmax(1))

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        seed = draw_seed(generator)
        net = _opened(self.folder, state) if self.folder else self._taught(state, seed)
        if net is None:
            return choose_best(uniform(generator, len(candidates)), candidates, n, generator)
        scores = dense.in_chunks(lambda some: dense.image_mean(self.maps(net, state, some)), candidates)
        return choose_best(scores.cpu().numpy(), candidates, n, generator)

    def _taught(self, state: SelectionState, seed: int) -> ErrorNet | None:
        """An error net of the annotated samples; None where they are of fewer than two patients."""
        labelled = state.labelled
        patients = tuple(f"{number}" for number in state.samples.patient[labelled])
        if len(set(patients)) < 2:
            return None
        with seeded(seed, torch.device("cpu")):
            truths = state.labels(labelled).clone().cpu()
            _require_masks(self.name, truths, state.num_classes)
            images = _grey(state, labelled).clone()
            device, drawn = images.device, _drawn(state, labelled, images).clone().cpu()
            own = torch.Generator().manual_seed(seed)
            predictions = [truths, drawn.argmax(1).to(torch.uint8)]
            predictions += [distortions.sample(drawn.clamp_min(1e-6).log(), t, own) for t in _TEMPERATURES]
            count = len(labelled)
            dataset = RewardDataset(
                images.cpu(),
                truths.to(torch.uint8),
                tuple(state.samples.names[sample] for sample in labelled),
                patients,
                ("labels",) * count,
                torch.cat(predictions),
                torch.arange(count).repeat(len(predictions)),
                ("",) * (count * len(predictions)),
                tuple(f"class {number}" for number in range(state.num_classes)),
            )
            settings = ErrorNetSettings(
                iterations=self.iterations, batch=8, widths=(8, 16, 32), fresh=_FRESH, device=str(device), seed=seed
            )
            return train_error_net(dataset, settings).to(device)


def _grey(state: SelectionState, indices: np.ndarray) -> Tensor:
    """Images of one channel, float32 (n, 1, H, W)."""
    return state.images(indices).mean(1, keepdim=True)


def _drawn(state: SelectionState, indices: np.ndarray, images: Tensor) -> Tensor:
    """The learner's probabilities at the resolution of ``images``, float32 (n, K, H, W)."""
    probabilities = state.probabilities(indices)
    if probabilities.shape[2:] == (1, 1):
        raise SeggymError("strategy error_net scores masks, this task has one label per image: use another strategy")
    return functional.interpolate(probabilities, images.shape[2:], mode="bilinear", align_corners=False)


def _require_masks(name: str, truths: Tensor, num_classes: int) -> None:
    if truths.ndim != 3 or int(truths.max()) >= num_classes:
        raise SeggymError(
            f"strategy {name} learns from full masks, the annotations are scribbles or labels of images: pass folder=, "
            "a trained error net, or use another strategy"
        )


def _opened(folder: str, state: SelectionState) -> ErrorNet:
    net = load_error_net(folder)
    if len(net.class_names) != state.num_classes:
        raise SeggymError(
            f"the error net in {Path(folder)} knows {len(net.class_names)} classes ({', '.join(net.class_names)}), the "
            f"pool has {state.num_classes}; train one for these classes"
        )
    known = [
        patient
        for patient in net.labelled
        if any(name == patient or name.startswith(f"{patient}_") for name in state.samples.names)
    ]
    if known:
        raise SeggymError(
            f"the error net in {Path(folder)} was trained on labels of {known[0]}, who is in the pool, so it knows "
            "what nobody has annotated; use one that was trained on other patients"
        )
    return net
