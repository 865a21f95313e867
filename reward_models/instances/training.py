"""How an instance network is trained, whatever it is: batches, learning rate, validation, exact resume."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seggym.reward_models.instances.segmenter import Checkpointing, InstanceTarget, TrainingSettings
from seggym.reward_models.seeding import seeded

_MOMENTUM = 0.9
# Gradients of a longer norm are shortened: a batch without objects must not throw the network off.
_LONGEST_GRADIENT = 10.0


def learning_rate(settings: TrainingSettings, iteration: int) -> float:
    """The learning rate of ``iteration``, counted from 0."""
    rise = min(1.0, (iteration + 1) / max(1, settings.warmup))
    if settings.schedule == "cosine":
        return settings.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * iteration / settings.iterations))
    return settings.learning_rate * rise * settings.gamma ** sum(iteration >= step for step in settings.steps)


def repeat_factors(labels: Sequence[Tensor], factor: float, minority: Sequence[int]) -> Tensor:
    """How often each image comes in one pass over all, float32 (n,), at least 1; ``labels`` are those of its objects.

    Of a class in a share f of the images it is max(1, sqrt(t / f)), and of an image the largest among its classes
    (Gupta et al., LVIS, CVPR 2019, appendix A). t = ``factor``^2 times the share of the rarest of the ``minority``
    classes, so that just that class is repeated ``factor`` times, and the others less or not at all; at most 1.
    """
    shown = {label: sum(bool((image == label).any()) for image in labels) / len(labels) for label in minority}
    rarest = min((share for share in shown.values() if share > 0), default=0.0)
    threshold = min(1.0, factor**2 * rarest)
    share: dict[int, int] = {}
    for image in labels:
        for label in image.unique().tolist():
            share[label] = share.get(label, 0) + 1
    repeat = {label: max(1.0, math.sqrt(threshold * len(labels) / count)) for label, count in share.items()}
    return torch.tensor([max((repeat[label] for label in image.unique().tolist()), default=1.0) for image in labels])


class Batches:
    """An endless stream of images: pass after pass over all in random order, an image ``repeats`` (n,) times.

    The fraction of a repeat is rounded at random in every pass, by torch's generator. ``waiting`` is what is left of
    the present pass.
    """

    def __init__(self, repeats: Tensor, batch: int) -> None:
        self._repeats, self._batch = repeats, batch
        self.waiting: list[int] = []

    def next(self) -> list[int]:
        """The images of the next batch."""
        while len(self.waiting) < self._batch:
            rounded = (self._repeats + torch.rand(len(self._repeats))).floor().long()
            stream = torch.arange(len(self._repeats)).repeat_interleave(rounded)
            self.waiting += stream[torch.randperm(len(stream))].tolist()
        found, self.waiting = self.waiting[: self._batch], self.waiting[self._batch :]
        return found


def train(
    network: nn.Module,
    loss: Callable[[list[int]], Tensor],
    targets: Sequence[InstanceTarget],
    settings: TrainingSettings,
    seed: int,
    validate: Callable[[], float] | None,
    best: float | None,
    checkpointing: Checkpointing | None,
) -> float | None:
    """Train ``network`` on what ``loss`` says of a batch of images; see :meth:`InstanceSegmenter.fit`."""
    device = next(network.parameters()).device
    repeats = torch.ones(len(targets))
    if settings.repeat_factor is not None:
        repeats = repeat_factors([target.labels for target in targets], settings.repeat_factor, settings.minority)
    batches = Batches(repeats, settings.batch)
    network.requires_grad_(True).train()
    optimizer = torch.optim.SGD(
        network.parameters(), settings.learning_rate, _MOMENTUM, weight_decay=settings.weight_decay, nesterov=True
    )
    first, kept = 0, copy.deepcopy(network.state_dict()) if best is not None else None
    with seeded(seed, device):
        if checkpointing is not None and checkpointing.state is not None:
            first, best, kept = _restore(checkpointing.state, network, optimizer, batches)
        for iteration in range(first, settings.iterations):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, iteration)
            optimizer.zero_grad()
            loss(batches.next()).backward()
            nn.utils.clip_grad_norm_(network.parameters(), _LONGEST_GRADIENT)
            optimizer.step()
            done = iteration + 1
            if validate is not None and _due(done, settings):
                score = _validated(network, validate)
                if best is None or score > best:
                    best, kept = score, copy.deepcopy(network.state_dict())
            if checkpointing is not None and checkpointing.period > 0 and done % checkpointing.period == 0:
                checkpointing.save(_state(done, best, kept, network, optimizer, batches))
    if validate is not None and kept is not None:
        network.load_state_dict(kept)
    network.eval().requires_grad_(False)
    return best if validate is not None else None


def _due(done: int, settings: TrainingSettings) -> bool:
    return done == settings.iterations or (settings.eval_period > 0 and done % settings.eval_period == 0)


def _validated(network: nn.Module, validate: Callable[[], float]) -> float:
    """The score of the network as it is; a score that is no number (nothing to find) counts as 0."""
    network.eval()
    with torch.no_grad():
        score = validate()
    network.train()
    return 0.0 if math.isnan(score) else score


def _state(
    done: int,
    best: float | None,
    kept: dict[str, Tensor] | None,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
) -> dict[str, Any]:
    state: dict[str, Any] = {
        "done": done,
        "best": best,
        "kept": kept,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "waiting": list(batches.waiting),
        "random": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["random_cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore(
    state: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches
) -> tuple[int, float | None, dict[str, Tensor] | None]:
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    batches.waiting = list(state["waiting"])
    torch.set_rng_state(state["random"].cpu())
    if "random_cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([part.cpu() for part in state["random_cuda"]])
    return state["done"], state["best"], state["kept"]
