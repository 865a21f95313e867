"""The keyword arguments of the multi-slice environments, checked in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from seggym.configs.checking import require_at_least, require_choices, require_types
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError

SLICES = ("shared", "sequential", "allocate")
OBSERVATIONS = (
    "acquired",
    "energy",
    "budget",
    "slices",
    "slice_probabilities",
    "probability_grid",
    "images",
    "action_mask",
)
# What is kept of the prediction of a slice for the score of its volume (see seggym.envs.kspace.segmentation).
OVERLAP = "overlap"
# Parts of the observation of a volume, and the parts of the observation of its slices that they are made of.
_FROM_SLICES = {
    "energy": "energy",
    "slice_probabilities": "probability_grid",
    "probability_grid": "probability_grid",
    "images": "image",
}
# Choices of single slices that volumes do not have.
_FIXED = {
    "augment": False,  # phase and echo shift belong to the volume
    "reward": "dense",
    "lambda_recon": 0,
    "lambda_error": 0,
    "lines_per_step": 1,
    "remeasure": "never",
    "choose_axis": False,
    "stop_action": False,
    "time_cost": 0,
    "train_sampler_filename": None,
}
_TYPES = {"pair": bool, "max_slices": int}


@dataclass(frozen=True)
class VolumeSettings(KSpaceSettings):
    """What a multi-slice environment is made of; plain JSON values. Beside those of :class:`KSpaceSettings`:

    ``slices``: "shared" (an action is a line, measured in every slice), "sequential" (slices one after the other, each
    with an equal share of the budget; an action is a line of the current slice) or "allocate" (an action is a slice and
    a line). ``pair``: an episode scans both cardiac phases of a patient, end-diastole first. ``max_slices``: slots for
    the slices of an episode (per cardiac phase); it fixes the spaces, so the deepest volume of the cohort must fit.
    ``budget`` counts lines of every slice with "shared", lines of all slices together otherwise.

    The reward is the gain in Dice of the volume, so ``reward`` is "dense" and ``lambda_recon`` 0. Nothing is measured
    again, in segments, at a cost of time, along another axis, or stopped early. Slices are not sampled one by one, so
    there is no ``train_sampler_filename``.
    """

    offered: ClassVar[tuple[str, ...]] = OBSERVATIONS

    slices: str = "shared"
    pair: bool = False
    max_slices: int = 16
    observation: Sequence[str] = ("acquired", "energy", "budget", "slices", "slice_probabilities", "probability_grid")

    def __post_init__(self) -> None:
        require_choices(self, {"slices": SLICES})
        require_types({name: getattr(self, name) for name in _TYPES}, _TYPES)
        require_at_least(self, max_slices=1)
        super().__post_init__()
        for name, value in _FIXED.items():
            if getattr(self, name) != value:
                raise SeggymError(
                    f"{name}={getattr(self, name)!r} is not offered where an episode scans a volume: leave it at "
                    f"{value!r}"
                )

    @property
    def slots(self) -> int:
        """Places for the slices of an episode."""
        return self.max_slices * (2 if self.pair else 1)

    @property
    def most_lines(self) -> int:
        """The largest budget that any episode could have."""
        return self.lines_per_slice * (1 if self.slices == "shared" else self.slots)

    @property
    def slice_settings(self) -> KSpaceSettings:
        """Settings of the engine in which every slice is a scan of its own."""
        inherited = {field.name: getattr(self, field.name) for field in fields(KSpaceSettings)}
        inherited["root"] = None
        seen = dict.fromkeys(_FROM_SLICES[part] for part in self.observation if part in _FROM_SLICES)
        return KSpaceSettings(
            **{
                **inherited,
                "budget": self.lines_per_slice,
                "observation": (*seen, "acquired"),
                "objective": "final",
                "illegal_action": "noop",
            }
        )


def settings_type(entry_point: object) -> type[KSpaceSettings]:
    """The settings of the k-space environment that is registered with ``entry_point``."""
    return VolumeSettings if ".volumes." in str(entry_point) else KSpaceSettings
