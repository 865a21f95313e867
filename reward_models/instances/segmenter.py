"""What an instance segmenter is: one interface for every network that the active-learning loop can train.

Boxes are (x0, y0, x1, y1) in pixels from the upper left corner of the image, so that a mask whose columns are i..j has
x0 = i and x1 = j + 1. Classes are numbered from 1; 0 is the background.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from seggym.errors import SeggymError

DROPOUT_METHODS = ("head", "complete")


@dataclass(frozen=True)
class InstanceTarget:
    """The objects of one image: ``masks`` bool (k, H, W) and ``labels`` int64 (k,), from 1; objects may overlap."""

    masks: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first within a pass.

    ``boxes`` float32 (k, 4); ``labels`` int64 (k,), from 1; ``scores`` float32 (k,), the probability of that class;
    ``class_probabilities`` float32 (k, C + 1), the background first; ``masks`` bool (k, H, W); ``passes`` int64 (k,),
    the pass of Monte Carlo dropout in which each was found, ascending (0 without dropout).
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    class_probabilities: Tensor
    masks: Tensor
    passes: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> "Detections":
        """The detections ``rows``, indices int64 or bool (k,)."""
        return Detections(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})


@dataclass(frozen=True)
class McDropout:
    """Passes of Monte Carlo dropout: ``passes`` of them, ``method`` "head" (backbone and proposals once, the heads
    again for every pass) or "complete" (the whole network for every pass, dropout of its backbone included)."""

    passes: int = 10
    method: str = "head"

    def __post_init__(self) -> None:
        if self.passes < 1 or self.method not in DROPOUT_METHODS:
            raise SeggymError(
                f"mcd_iterations={self.passes} and dropout_method={self.method!r}, expected at least 1 and one of "
                f"{', '.join(DROPOUT_METHODS)}; mend them"
            )


@dataclass(frozen=True)
class Thresholds:
    """What is a detection: ``confidence``, the least score, and ``nms``, the box IoU above which the lower-scored of
    two goes, whatever their classes."""

    confidence: float = 0.5
    nms: float = 0.3


@dataclass(frozen=True)
class TrainingSettings:
    """How a segmenter is trained: SGD with momentum 0.9 and mirrored batches.

    ``iterations`` of ``batch`` images; the learning rate rises linearly over ``warmup`` iterations to
    ``learning_rate``, then is multiplied by ``gamma`` at each of ``steps`` ("steps_with_decay"), or falls as half a
    cosine ("cosine"). Every ``eval_period`` iterations, and at the end, the network is validated where there is
    something to validate it on, and its best weights are kept. With a ``repeat_factor`` images of rare classes come
    more often (:func:`seggym.reward_models.instances.training.repeat_factors`); ``minority`` are the classes that its
    threshold is read from.
    """

    iterations: int = 300
    batch: int = 8
    learning_rate: float = 0.01
    warmup: int = 50
    steps: Sequence[int] = ()
    gamma: float = 0.1
    schedule: str = "steps_with_decay"
    weight_decay: float = 1e-4
    eval_period: int = 0
    repeat_factor: float | None = None
    minority: Sequence[int] = ()


Validate = Callable[["InstanceSegmenter"], float]
"""A score of a segmenter on held-out images, higher is better; it draws no random number."""


@dataclass(frozen=True)
class Checkpointing:
    """Where a training keeps what it needs to go on: ``save`` is handed a state of plain values and tensors every
    ``period`` iterations, and ``state`` is one that an interrupted training left (None: it begins)."""

    save: Callable[[dict[str, Any]], Any]
    period: int
    state: dict[str, Any] | None = None


class InstanceSegmenter(Protocol):
    """A network that finds instances. Images are float32 (3, H, W) in [0, 1], each of any size."""

    classes: int
    """Classes without the background."""
    thresholds: Thresholds

    def reset(self, seed: int) -> None:
        """Fresh weights that follow from ``seed``."""
        ...

    def fit(
        self,
        images: Sequence[Tensor],
        targets: Sequence[InstanceTarget],
        settings: TrainingSettings,
        seed: int,
        validate: Validate | None = None,
        best: float | None = None,
        checkpointing: Checkpointing | None = None,
    ) -> float | None:
        """Train on from the present weights; batches, mirroring and dropout follow from ``seed``.

        With ``validate`` the best weights of the training are kept, and those from before it where none is better
        than ``best``, their score; returns the score of what is kept (None without ``validate``).
        """
        ...

    def detect(
        self, images: Sequence[Tensor], dropout: McDropout | None = None, generator: torch.Generator | None = None
    ) -> list[Detections]:
        """What is found in each image, on the device of the network; with ``dropout`` in every pass of it, whose
        randomness comes from ``generator``."""
        ...

    def features(self, images: Sequence[Tensor]) -> Tensor:
        """What the heads see of each image, averaged over it: float32 (n, F)."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The weights; copies."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with ``state``."""
        ...
