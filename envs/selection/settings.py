"""The keyword arguments of the selection environments, checked in one place."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from seggym.configs.checking import build, require_at_least, require_choices, require_types
from seggym.errors import SeggymError

OBSERVATIONS = ("candidates", "embeddings", "learner", "budget", "progress", "action_mask")
_CHOICES = {
    "role": ("train", "val", "test", "all"),
    "unit": ("slice", "volume", "patient"),
    "ann_type": ("mask", "scribble"),
    "scribbles": ("auto", "stored", "drawn"),
    "learner": ("probe", "unet", "classifier", "instances"),
    "action": ("candidates", "pool"),
    "objective": ("final", "area"),
    "reward": ("gain", "gain_per_cost"),
    "metric": ("dice", "accuracy", "f1", "map"),
    "illegal_action": ("noop", "raise", "penalty"),
    "precision": ("fp32", "fp64"),
}
_TYPES = {
    "cohort": str,
    "split_seed": int,
    "size": int,
    "spacing": float | None,
    "encoder": str | None,
    "initial": int,
    "samples_per_query": int,
    "candidates": int,
    "state_slices": int,
    "class_slots": int | None,
    "cost_weight": float,
    "illegal_penalty": float,
}


# What can be asked of cohorts that are not segmented pixel by pixel: metrics and learners.
_TASKS = {"images": (("accuracy", "f1"), ("classifier",)), "instances": (("map",), ("instances",))}
_SEGMENTATION = (("dice",), ("probe", "unet"))


@dataclass(frozen=True)
class Costs:
    """Minutes of an annotator: per slice with a ``mask`` or a ``scribble``, and per ``volume`` that is opened; where
    objects are outlined one by one, per image (``volume``) and ``instance``.

    The defaults are assumptions (three structures of a heart outlined in three minutes, a stroke per class in half a
    minute), not measurements: set your own.
    """

    mask: float = 3.0
    scribble: float = 0.5
    volume: float = 1.0
    instance: float = 0.5

    def __post_init__(self) -> None:
        require_at_least(self, "costs.", **dict.fromkeys((entry.name for entry in fields(self)), 0))


@dataclass(frozen=True)
class SelectionSettings:
    """What a selection environment is made of; plain JSON values, so that a spec can be stored and sent.

    Data: ``cohort`` (a reader's name, or "images" for classification), ``data_root``, ``cohort_options`` (to the
    reader), ``split`` (a JSON file; by default the cohort's own seeded split), ``role`` (among whose patients an
    episode takes place: train, val, test, or all), ``shares`` of them for the roles state, pool and reward, dealt by
    ``split_seed``. Slices are ``size`` pixels square, of ``spacing`` mm each (None: the whole slice is resized).
    Annotation: ``unit`` (what is chosen and annotated as one: a slice, a volume, a patient), ``ann_type`` (a mask or a
    scribble of it), ``scribbles`` ("stored" in the cohort, "drawn" from masks, "auto": stored where there are any).
    Learner: ``learner`` and ``learner_options`` (see :mod:`seggym.reward_models.probe`,
    :mod:`seggym.reward_models.unet_learner`, :mod:`seggym.reward_models.classifier`), ``encoder`` (a folder or a
    published name; None trains one, without labels, on the state and pool patients and keeps it).
    Episode: ``initial`` samples annotated at its start, ``budget`` (samples after those; a number or a range [low,
    high] drawn per episode), ``samples_per_query`` (picks per retraining), ``action`` (one of ``candidates`` drawn from
    the pool for each query, or the whole "pool"), ``illegal_action``, ``illegal_penalty``.
    Reward: ``metric`` (per-volume "dice"; "accuracy" or "f1" of a classification; "map" of instances), ``objective``
    (final quality or area under the curve), ``reward`` ("gain", or "gain_per_cost": gain per minute of annotation),
    ``costs`` (minutes, fields of :class:`Costs`), ``cost_weight`` (what an hour costs, in units of quality: the part
    "cost" of the reward).
    ``scored`` (sets that ``engine.evaluate`` can score: "reward" and, where wanted, "val" and "test").
    Observation: ``observation`` (parts, see :data:`OBSERVATIONS`), ``state_slices`` (slices of the state set that the
    learner's state is read from, at most), ``class_slots`` (entries of a class histogram; None: the cohort's classes.
    More make room for policies that are to meet cohorts with more classes).
    Computing: ``device`` ("auto" is CUDA where there is one), ``precision`` of the probe.
    """

    cohort: str
    data_root: str | None = None
    cohort_options: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    role: str = "train"
    shares: Sequence[float] = (0.1, 0.6, 0.3)
    split_seed: int = 0
    size: int = 96
    spacing: float | None = None
    unit: str = "slice"
    ann_type: str = "mask"
    scribbles: str = "auto"
    learner: str = "probe"
    learner_options: Mapping[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    initial: int = 5
    budget: int | Sequence[int] = 15
    samples_per_query: int = 1
    action: str = "candidates"
    candidates: int = 32
    metric: str = "dice"
    objective: str = "final"
    reward: str = "gain"
    costs: Mapping[str, Any] = field(default_factory=dict)
    cost_weight: float = 0.0
    scored: Sequence[str] = ("reward",)
    illegal_action: str = "noop"
    illegal_penalty: float = 0.01
    observation: Sequence[str] = OBSERVATIONS
    state_slices: int = 16
    class_slots: int | None = None
    device: str = "auto"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        require_types({name: getattr(self, name) for name in _TYPES}, _TYPES)
        require_choices(self, _CHOICES)
        unknown = [part for part in self.observation if part not in OBSERVATIONS]
        if unknown or not self.observation:
            raise SeggymError(f"observation={list(self.observation)} must name parts among {', '.join(OBSERVATIONS)}")
        if "reward" not in self.scored or not set(self.scored) <= {"reward", "val", "test"}:
            raise SeggymError(f"scored={list(self.scored)} must hold reward, and may hold val and test")
        require_at_least(self, initial=1, samples_per_query=1, candidates=1, state_slices=1, cost_weight=0)
        if self.size < 16 or self.size % 16:
            raise SeggymError(f"size={self.size} must be a multiple of 16 pixels, at least 16")
        if self.spacing is not None and self.spacing <= 0:
            raise SeggymError(f"spacing={self.spacing} must be a positive number of mm, or null")
        low, high = self.budget_range
        if not 1 <= low <= high:
            raise SeggymError(
                f"budget={self.budget} must be a positive number or a range [low, high]: it counts the samples after "
                "the initial ones"
            )
        if self.action == "candidates" and self.candidates < self.samples_per_query:
            raise SeggymError(
                f"candidates={self.candidates} are fewer than samples_per_query={self.samples_per_query}: all picks of "
                "a query are made among the same candidates; draw more of them"
            )
        self._check_task()
        self.minutes  # noqa: B018  raises for costs that are none

    def _check_task(self) -> None:
        """Classification is a task of its own."""
        if self.classification:
            expected: dict[str, Any] = {"unit": "slice", "ann_type": "mask", "learner": "classifier"}
            for name, value in expected.items():
                if getattr(self, name) != value:
                    raise SeggymError(f"{name}={getattr(self, name)!r} is for segmentation: leave {value!r} for images")
        metrics, learners = _TASKS.get(self.cohort, _SEGMENTATION)
        if self.metric not in metrics or self.learner not in learners:
            raise SeggymError(
                f"metric={self.metric} and learner={self.learner} do not suit cohort={self.cohort}, expected metric="
                f"{' or '.join(metrics)} and learner={' or '.join(learners)}; mend them"
            )

    @property
    def classification(self) -> bool:
        """Whether a sample is an image with one label."""
        return self.cohort == "images"

    @property
    def single_images(self) -> bool:
        """Whether every sample is an image of its own, of no patient."""
        return self.cohort in ("images", "instances")

    @property
    def minutes(self) -> Costs:
        """The cost model with its defaults filled in."""
        return build(Costs, self.costs, "costs.")

    @property
    def budget_range(self) -> tuple[int, int]:
        """Smallest and largest budget of an episode."""
        if isinstance(self.budget, int):
            return self.budget, self.budget
        try:
            low, high = (operator.index(bound) for bound in self.budget)
        except (TypeError, ValueError):
            raise SeggymError(
                f"budget={self.budget!r} must be a number of samples or [low, high], in whole numbers"
            ) from None
        return low, high
