"""The keyword arguments of the adaptation environments, checked in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from seggym.configs.checking import require_choices, require_types
from seggym.errors import SeggymError

ROLES = ("source_train", "source_val", "target_train", "target_val", "target_test")
_REWARDS = ("learned", "accuracy", "dice")
_TYPES = {
    "cohort": str,
    "data_root": str | None,
    "cohort_options": Mapping,
    "target_cohort": str | None,
    "target_root": str | None,
    "target_options": Mapping,
    "source_frames": list | tuple | None,
    "target_frames": list | tuple | None,
    "classes": list | tuple | None,
    "size": int,
    "spacing": float | None,
    "shift": Mapping | None,
    "fractions": list | tuple,
    "domain_seed": int,
    "rules": str | None,
    "role": str,
    "reward": str,
    "reward_model": str | None,
    "device": str,
}


@dataclass(frozen=True)
class DomainSettings:
    """A source and a target domain; plain JSON values.

    Data: ``cohort`` (a reader's name), ``data_root``, ``cohort_options`` (to the reader). The target is the same cohort
    or ``target_cohort``, with ``target_root`` and ``target_options``.
    Difference: ``source_frames`` and ``target_frames`` (volumes by frame, part of a frame or cardiac phase, "4CH" or
    "4CH_ED" or "ES"; None takes all) and ``shift`` (fields of :class:`seggym.cohorts.shifts.Shift`; images of the
    target as another scanner would have made them; None leaves them as they are).
    Slices are ``size`` pixels square, of ``spacing`` mm each (None: the whole slice is resized). ``classes`` names the
    foreground classes to keep, in the order of their labels; the others become background (None keeps all).
    Patients: ``fractions`` are the shares of source_train, source_val, target_train, target_val and target_test among
    the patients, dealt by ``domain_seed``; where a cohort sets patients apart for testing (validation), these are
    target_test (target_val) and the others are dealt in proportion. With a ``target_cohort`` the first two are shares
    of the source's cohort and the others of the target's. ``rules`` of anatomical validity: a name or file for
    :func:`seggym.cohorts.validity.rules.load_rules` (None: those of the cohort, or of topology alone).
    """

    cohort: str
    data_root: str | None = None
    cohort_options: Mapping[str, Any] = field(default_factory=dict)
    target_cohort: str | None = None
    target_root: str | None = None
    target_options: Mapping[str, Any] = field(default_factory=dict)
    source_frames: Sequence[str] | None = None
    target_frames: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    size: int = 64
    spacing: float | None = None
    shift: Mapping[str, Any] | None = None
    fractions: Sequence[float] = (0.35, 0.1, 0.35, 0.05, 0.15)
    domain_seed: int = 0
    rules: str | None = None

    def __post_init__(self) -> None:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        require_types(values, _TYPES)
        if self.size < 16 or self.size % 16:
            raise SeggymError(f"size={self.size} must be a multiple of 16 pixels, at least 16")
        if self.spacing is not None and self.spacing <= 0:
            raise SeggymError(f"spacing={self.spacing} must be a positive number of mm, or null")
        numbers = [value for value in self.fractions if isinstance(value, (int, float))]
        if len(self.fractions) != len(ROLES) or len(numbers) != len(ROLES) or min(numbers) < 0 or not sum(numbers):
            raise SeggymError(
                f"fractions={list(self.fractions)} must be five numbers of 0 or more, the shares of {', '.join(ROLES)}"
            )
        for name in ("target_root", "target_options"):
            if getattr(self, name) and self.target_cohort is None:
                raise SeggymError(f"{name} is given without target_cohort: name the target's cohort, or leave it out")
        for name in ("source_frames", "target_frames", "classes"):
            chosen = getattr(self, name)
            if chosen is not None and (not chosen or not all(isinstance(entry, str) for entry in chosen)):
                raise SeggymError(f"{name}={list(chosen)} must be a list of names, or null for all of them")


@dataclass(frozen=True)
class AdaptationSettings(DomainSettings):
    """What an adaptation environment is made of; plain JSON values.

    The fields of :class:`DomainSettings`, and ``role`` (whose images are shown, one of :data:`ROLES`), ``reward``
    ("learned", "accuracy" or "dice"), ``reward_model`` (the folder of an error net, for "learned"), ``device`` ("auto"
    is CUDA where there is one).
    """

    role: str = "target_train"
    reward: str = "accuracy"
    reward_model: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choices(self, {"role": ROLES, "reward": _REWARDS})
        if (self.reward == "learned") != (self.reward_model is not None):
            raise SeggymError(
                f"reward={self.reward} with reward_model={self.reward_model!r}: the learned reward needs the folder "
                "of an error net, the others take none"
            )
