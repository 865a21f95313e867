"""What a query strategy may see of a selection episode: everything but the labels of the pool."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleTable:
    """What is known of the P samples of a pool without looking at them.

    ``patient``, ``volume`` and ``phase`` are int64 (P,) numbers (phase -1 where the cohort does not say); ``position``
    is float64 (P,), the place of a slice within its volume, 0 the first and 1 the last; ``slice_index`` int64 (P,)
    counts slices within the volume. ``names`` are unique and stable across machines.
    """

    names: tuple[str, ...]
    patient: np.ndarray
    volume: np.ndarray
    phase: np.ndarray
    position: np.ndarray
    slice_index: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


class SelectionState(Protocol):
    """One episode at the moment of a query, as a strategy sees it.

    Samples are named by their index in the pool, 0..P-1. No member gives a label of the pool that has not been
    annotated in this episode: ``labels`` raises for those, except to a strategy that declares ``privileged``
    (it is handed a state whose ``labels`` answers for all, and that can look ahead).

    A sample of several slices (a volume, a patient) is seen as one image: M of its slices one below the other, so that
    H and h are M times as large. Of up to 16 slices all are shown, of more that many evenly spaced ones; M is the same
    for all samples of a pool, and slices repeat in those that have fewer.
    """

    @property
    def samples(self) -> SampleTable:
        """The pool, labelled samples included."""
        ...

    @property
    def candidates(self) -> np.ndarray:
        """int64 (K,): who may be chosen now, ascending, unlabelled."""
        ...

    @property
    def labelled(self) -> np.ndarray:
        """int64 (L,): who is annotated, in the order of annotation."""
        ...

    @property
    def round(self) -> int:
        """Retrainings so far, the one with the initial samples not counted."""
        ...

    @property
    def num_classes(self) -> int:
        """Classes including the background (class 0)."""
        ...

    @property
    def generator(self) -> torch.Generator:
        """The only randomness that a strategy may use, fresh at every call: it follows from key and number of picks."""
        ...

    def images(self, indices: np.ndarray) -> Tensor:
        """float32 (n, C, H, W): the images of samples."""
        ...

    def embeddings(self) -> Tensor:
        """float32 (P, D): one learned vector per sample, from an encoder that saw no label."""
        ...

    def probabilities(self, indices: np.ndarray) -> Tensor:
        """float32 (n, classes, h, w): what the current learner believes, h and w those of its output."""
        ...

    def member_probabilities(self, indices: np.ndarray, members: int) -> Tensor:
        """float32 (M, n, classes, h, w): an ensemble's members, or ``members`` passes of Monte Carlo dropout."""
        ...

    def learner_features(self, indices: np.ndarray) -> Tensor:
        """float32 (n, F): the learner's own features before its last layer, averaged over the image."""
        ...

    def labels(self, indices: np.ndarray) -> Tensor:
        """What the annotator gave, uint8 (n, H, W), 255 where a scribble leaves a pixel out (int64 (n,) for images).

        A privileged strategy gets the true masks, of whatever sample. Raises :class:`seggym.errors.SeggymError` for a
        label that this strategy has no right to.
        """
        ...

    def lookahead(self, indices: np.ndarray) -> np.ndarray:
        """float64 (n,): the quality if each of ``indices`` alone were annotated now; for privileged strategies only."""
        ...
