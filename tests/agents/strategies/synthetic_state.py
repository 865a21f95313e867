"""A selection state made of numbers: the protocol without data, learner or encoder behind it."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from seggym.envs.selection.state import SampleTable
from seggym.errors import SeggymError

SIZE = 16


def table(patients: int = 6, volumes: int = 2, slices: int = 5) -> SampleTable:
    """A pool of ``patients`` x ``volumes`` phases x ``slices``."""
    patient, phase, index = (a.ravel() for a in np.mgrid[:patients, :volumes, :slices])
    return SampleTable(
        names=tuple(f"p{p}/{v}/{s}" for p, v, s in zip(patient, phase, index, strict=True)),
        patient=patient,
        volume=patient * volumes + phase,
        phase=phase,
        position=index / (slices - 1),
        slice_index=index,
    )


@dataclass
class FakeState:
    """A state with everything in plain sight but the labels of what is not annotated."""

    samples: SampleTable = field(default_factory=table)
    labelled: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    seed: int = 0
    round: int = 0
    num_classes: int = 4
    withheld: np.ndarray | None = None
    allowed: bool = False
    all_labels: Tensor | None = None
    all_probabilities: Tensor | None = None
    all_embeddings: Tensor | None = None
    all_images: Tensor | None = None

    def __post_init__(self) -> None:
        count, own = len(self.samples), torch.Generator().manual_seed(7)
        if self.all_labels is None:
            self.all_labels = torch.randint(self.num_classes, (count, SIZE, SIZE), generator=own).to(torch.uint8)
        if self.all_probabilities is None:
            logits = 2 * torch.randn(count, self.num_classes, SIZE // 4, SIZE // 4, generator=own)
            self.all_probabilities = logits.softmax(1)
        if self.all_embeddings is None:
            self.all_embeddings = torch.randn(count, 8, generator=own)
        if self.all_images is None:
            self.all_images = torch.rand(count, 1, SIZE, SIZE, generator=own)

    @property
    def candidates(self) -> np.ndarray:
        hidden = self.labelled if self.withheld is None else np.concatenate([self.labelled, self.withheld])
        return np.setdiff1d(np.arange(len(self.samples)), hidden)

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1000 + self.round)

    def images(self, indices: np.ndarray) -> Tensor:
        return self.all_images[indices]

    def embeddings(self) -> Tensor:
        return self.all_embeddings

    def probabilities(self, indices: np.ndarray) -> Tensor:
        return self.all_probabilities[indices]

    def member_probabilities(self, indices: np.ndarray, members: int) -> Tensor:
        own = torch.Generator().manual_seed(11)
        shape = (members, *self.all_probabilities.shape)
        noised = self.all_probabilities.log() + torch.randn(shape, generator=own)
        return noised.softmax(2)[:, indices]

    def learner_features(self, indices: np.ndarray) -> Tensor:
        return self.all_embeddings[indices].abs()

    def labels(self, indices: np.ndarray) -> Tensor:
        unknown = np.setdiff1d(indices, self.labelled)
        if len(unknown) and not self.allowed:
            raise SeggymError(f"label of sample {unknown[0]} is not annotated; annotate it first")
        return self.all_labels[indices]

    def lookahead(self, indices: np.ndarray) -> np.ndarray:
        """What nobody could know without the labels: the share of the last class."""
        return (self.labels(indices) == self.num_classes - 1).double().mean((1, 2)).numpy()

    def but(self, **changes) -> "FakeState":
        return replace(self, **changes)
