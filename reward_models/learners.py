"""What is taught in active learning: one interface for every learner, and the sets of slices it works on.

A learner belongs to N episodes at once. Slices are named by their number in one bank of images, which holds the pool
and whatever is predicted or scored. A learner is given the labels of scored slices when it is made, and of a sample of
the pool only when that has been annotated, as a *lesson*: what it made of the annotation itself
(:meth:`Learner.digest`).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from seggym.reward_models.metrics import Overlap

UNLABELLED = 255
"""Value of a pixel without annotation in the targets of a scribble, and of slices that a sample does not have."""


@dataclass(frozen=True)
class ScoredSet:
    """Slices whose labels a learner is scored with.

    ``slices`` int64 (m,) in the bank; ``labels`` uint8 (m, H, W), for classification int64 (m,); ``cases`` int64 (m,)
    says which case (volume) a slice belongs to, 0..``len(names)`` - 1.
    """

    slices: Tensor
    labels: Tensor
    cases: Tensor
    names: tuple[str, ...]


class Learner(Protocol):
    """The learners of N episodes. ``rows`` int64 (B,) are episodes, ``slices`` int64 (B, n) numbers in the bank.

    Everything random follows from the 64-bit ``keys`` of the episodes and the number of the retraining.
    """

    num_classes: int

    def digest(self, slices: Tensor, targets: Tensor) -> Tensor:
        """Lessons (P, ...) of samples with ``slices`` int64 (P, S), -1 for none, and ``targets`` uint8 (P, S, H, W)."""
        ...

    def begin(self, rows: Tensor) -> None:
        """Forget everything."""
        ...

    def teach(self, rows: Tensor, slices: Tensor, lessons: Tensor, keys: Tensor, rounds: Tensor) -> None:
        """Add samples and train again.

        ``slices`` int64 (B, n, S) of n new samples each, -1 throughout for no sample, ``lessons`` (B, n, ...) theirs;
        ``keys`` and ``rounds`` int64 (B,), the retrainings before this one.
        """
        ...

    def predict(self, rows: Tensor, slices: Tensor) -> Tensor:
        """Class probabilities, float (B, n, K, h, w); h and w are those of the learner's output."""
        ...

    def members(self, row: int, slices: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """float (M, n, K, h, w) of ``slices`` (n,): the members of an ensemble, or ``count`` random draws of one."""
        ...

    def disagreement(self, rows: Tensor, slices: Tensor) -> Tensor:
        """How little is known about each slice, float (B, n) in [0, 1], without random numbers of its own."""
        ...

    def features(self, row: int, slices: Tensor) -> Tensor:
        """What the last layer sees of ``slices`` (n,), averaged over the image: float (n, F)."""
        ...

    def overlap(self, rows: Tensor, scored: str) -> Overlap:
        """Pixels predicted, true and shared of the set called ``scored``, (B, cases, K), the background included."""
        ...

    def sibling(self, num_envs: int) -> "Learner":
        """A learner of the same kind for ``num_envs`` other episodes on the same bank."""
        ...

    def take(self, other: Any, rows: Tensor) -> None:
        """Go on from the state of ``rows`` int64 (N,) of ``other``, a sibling, in all N episodes."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on exactly: tensors, copies."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        ...


def case_sums(values: Tensor, cases: Tensor, count: int) -> Tensor:
    """Sums (B, count, K) of ``values`` (B, m, K) over the slices of each case."""
    return values.new_zeros(values.shape[0], count, values.shape[2]).index_add_(1, cases, values)
