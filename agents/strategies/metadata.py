"""Controls that never look at an image.

A contrastive loss over groups of patients, volumes and neighbouring slices may teach an encoder no more than who the
patient is and how high the slice lies. These three choose by that alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from seggym.agents.strategies.coverage import k_center_greedy
from seggym.agents.strategies.strategy import Query, Strategy, choose_in_turn, uniform
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError


@dataclass(frozen=True)
class PatientStratified(Strategy):
    """At random among the patients with the fewest annotated samples.

    A utility is a number from [0, 1) minus how many samples of the patient are annotated.
    """

    name: ClassVar[str] = "patient_stratified"

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        _, patient = np.unique(state.samples.patient, return_inverse=True)
        annotated = np.bincount(patient[state.labelled], minlength=patient.max() + 1)
        own, noise = patient[candidates], uniform(generator, len(candidates))

        def utilities(chosen: list[int]) -> np.ndarray:
            return noise - (annotated + np.bincount(own[chosen], minlength=len(annotated)))[own]

        return choose_in_turn(utilities, candidates, n, generator)


@dataclass(frozen=True)
class EvenlySpaced(Strategy):
    """Slices spread evenly along the heart, volumes in turn.

    The next slice is one of a volume with the fewest annotated slices. In a volume that has none it is the slice
    nearest to the next number of the van der Corput sequence (1/2, 1/4, 3/4, 1/8, ...), so that any run of picks is
    spread over all heights; otherwise it is the slice farthest from those of its volume that are annotated.
    """

    name: ClassVar[str] = "evenly_spaced"

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        _, volume = np.unique(state.samples.volume, return_inverse=True)
        position = state.samples.position
        own, height = volume[candidates], position[candidates]

        def utilities(chosen: list[int]) -> np.ndarray:
            annotated = np.concatenate([state.labelled, candidates[chosen]]).astype(np.int64)
            count = np.bincount(volume[annotated], minlength=volume.max() + 1)[own]
            spread = -np.abs(height - van_der_corput(len(annotated) + 1))
            if len(annotated):
                away = np.abs(height[:, None] - position[annotated])
                away = np.where(own[:, None] == volume[annotated], away, np.inf).min(1)
                spread = np.where(count > 0, np.minimum(away, 1), spread)
            # Two per slice, because spread takes values from -1 to 1.
            return spread - 2 * count

        return choose_in_turn(utilities, candidates, n, generator)


def van_der_corput(number: int) -> float:
    """The ``number``-th (from 1) term of the sequence in base 2: its binary digits mirrored at the point."""
    value, digit = 0.0, 0.5
    while number:
        value += digit * (number & 1)
        number, digit = number >> 1, digit / 2
    return value


@dataclass(frozen=True)
class MetadataKCenter(Strategy):
    """Greedy k-center on patient, height and phase alone.

    Two samples are sqrt((a [patients differ])^2 + (b difference in position)^2 + (c [phases differ])^2) apart, with the
    weights ``patient``, ``position`` and ``phase``: what CoreCLR's groups tell, without its images.
    """

    patient: float = 1.0
    position: float = 1.0
    phase: float = 1.0

    name: ClassVar[str] = "metadata_kcenter"

    def __post_init__(self) -> None:
        if min(self.patient, self.position, self.phase) < 0:
            raise SeggymError(
                f"patient={self.patient}, position={self.position}, phase={self.phase} of {self.name}, expected "
                "weights of at least 0; mend them"
            )

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        samples = state.samples
        features = np.concatenate(
            [
                self.patient * _apart(samples.patient),
                self.position * samples.position[:, None],
                self.phase * _apart(samples.phase),
            ],
            axis=1,
        )
        return k_center_greedy(features, state.labelled, candidates, n, generator)


def _apart(values: np.ndarray) -> np.ndarray:
    """Vectors (n, values) at distance 1 where the ``values`` (n,) differ, and 0 where they do not."""
    _, number = np.unique(values, return_inverse=True)
    return np.eye(number.max() + 1)[number] / np.sqrt(2)
