"""Blind twins: what a policy is worth that sees another patient's measurements instead of its own.

The control for adaptivity. A twin is shown what was measured in another episode of its batch: of another patient, at
the same number of measurements (or the nearest that the batch holds), the next scan of the batch first. Every part of
the observation is swapped except :data:`OWN`: which lines are measured and which of them came out corrupted, the budget
that is left and the legal actions stay the twin's own. They are the course of the scan and no property of the patient;
with the flags of another scan a twin would measure good lines again for ever, and beating it would mean little. What it
cannot do is to let the image, the energies or the opinion of the network on *its* patient decide; what is left is an
order of lines, and how to react to which are measured.

Two controls are made of it. A *blind twin* is trained with swapped observations (:class:`BlindEngine`, by
``TrainSettings.blind``) and evaluated with them: the gain over it is what seeing the patient is worth. A *swapped
observation* (:class:`BlindTwin` around a policy that was trained seeing) tells whether that policy uses what it sees;
its loss also contains the confusion of a policy that was never prepared for it, so it is no measure of that worth.
"""

from typing import Any

import torch

from seggym.agents.policies import Baseline, Policy
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.envs.kspace.volumes.table import VolumeTable
from seggym.errors import SeggymError
from seggym.kspace.acquisition import SliceStack

OWN = ("acquired", "corrupted", "budget", "slices", "action_mask")
"""Parts of an observation that stay a twin's own; all others come from its partner."""


def patient_numbers(episodes: SliceStack | VolumeTable) -> torch.Tensor:
    """A number for the patient of every slice (or of every volume, where those are the episodes), int64 (n,)."""
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(episodes.patients))}
    return torch.tensor([numbers[patient] for patient in episodes.patients])


def _numbers_of(engine: Any) -> torch.Tensor:
    table = engine.table if isinstance(engine.settings, VolumeSettings) else engine.stack
    return patient_numbers(table).to(engine.device)


def partners(patients: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whose observation each of N scans is shown: int64 (N,), and whether there is another patient: bool (N,).

    ``patients`` and ``steps`` int64 (N,) are the patient and the number of measurements of each. The partner is a scan
    of another patient, with the nearest number of measurements, and of those the next one in the batch.
    """
    count = len(patients)
    index = torch.arange(count, device=patients.device)
    ahead = (index - index[:, None]) % count
    cost = (steps - steps[:, None]).abs() * count + ahead
    none = (steps.amax() + 1) * count  # more than any cost
    cost = torch.where(patients == patients[:, None], none, cost)
    least = cost.min(1)
    return least.indices, least.values < none


def swap(observation: dict[str, torch.Tensor], patients: torch.Tensor, steps: torch.Tensor) -> dict[str, torch.Tensor]:
    """``observation`` with the parts of another patient; zeros where the batch holds no other patient."""
    partner, found = partners(patients, steps)

    def other(value: torch.Tensor) -> torch.Tensor:
        return value[partner] * found.view(-1, *[1] * (value.ndim - 1)).to(value.dtype)

    return {part: value if part in OWN else other(value) for part, value in observation.items()}


class BlindTwin:
    """``policy`` fed with swapped observations, in an evaluation.

    ``name`` tells what it is: the twin of a policy, trained blind, or a policy that was trained seeing.
    """

    privileged = False

    def __init__(self, policy: Policy, name: str | None = None) -> None:
        if isinstance(policy, Baseline):
            raise SeggymError(
                f"policy {policy.name} observes nothing, so it has no blind twin: leave the twin out for it"
            )
        self.policy = policy
        self.name = name or f"{policy.name} (swapped observation)"
        self.anytime = policy.anytime
        identity = getattr(policy, "identity", None)
        self.identity = None if identity is None else {"blind": 1, "policy": identity}
        self._patients = torch.zeros(0, dtype=torch.int64)

    def begin(self, engine: KSpaceEngine) -> None:
        """New episodes; raises :class:`SeggymError` where all of them are of one patient."""
        self._patients = _numbers_of(engine)
        if engine.num_envs < 2 or int(self._patients[engine.samples].unique().numel()) < 2:
            raise SeggymError(
                f"{self.name} needs scans of at least two patients in a batch, found one: evaluate more patients"
            )
        self.policy.begin(engine)

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,), legal for the scan itself."""
        seen = swap(observation, self._patients[engine.samples], engine.steps)
        return self.policy.act(engine, seen, legal)


class BlindEngine:
    """``engine`` with swapped observations, for environments that a twin is trained in; all else is the engine's."""

    def __init__(self, engine: KSpaceEngine) -> None:
        self._engine = engine
        self._patients = _numbers_of(engine)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def sibling(self, num_envs: int, **changes: Any) -> "BlindEngine":
        """Another engine of ``num_envs`` scans, as blind."""
        return BlindEngine(self._engine.sibling(num_envs, **changes))

    def take(self, other: "BlindEngine", slots: torch.Tensor) -> None:
        """Go on from the state of the scans ``slots`` of ``other``."""
        self._engine.take(other._engine, slots)

    def observe(self) -> dict[str, torch.Tensor]:
        """The parts of the observation, fresh tensors with a leading axis N."""
        engine = self._engine
        return swap(engine.observe(), self._patients[engine.samples], engine.steps)
