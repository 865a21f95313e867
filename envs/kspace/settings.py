"""The keyword arguments of the k-space environments, checked in one place."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from seggym.configs.checking import build, require_at_least, require_choices, require_types
from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.methods import make_reconstruction, parse_reconstruction

OBSERVATIONS = (
    "image",
    "acquired",
    "budget",
    "energy",
    "corrupted",
    "axis",
    "image_float",
    "probabilities",
    "probability_grid",
    "features",
    "kspace",
    "action_mask",
)
DEFAULT_OBSERVATION = ("image", "acquired", "budget")
NETWORK_OBSERVATIONS = ("probabilities", "probability_grid", "slice_probabilities", "features")
_CHOICES = {
    "role": ("train", "val", "test", "all"),
    "seg_metric": ("soft_dice", "dice", "iou"),
    "recon_metric": ("ssim", "psnr", "nmse"),
    "objective": ("final", "area"),
    "reward": ("dense", "terminal", "level"),
    "illegal_action": ("noop", "raise", "penalty"),
    "precision": ("fp32", "bf16", "auto", "fp64"),
    "remeasure": ("never", "flagged", "any"),
    "reward_reference": ("labels", "full_prediction"),
}
_TYPES = {
    "lambda_seg": float,
    "lambda_recon": float,
    "lambda_error": float,
    "absent_weight": float,
    "illegal_penalty": float,
    "level_delay": int,
    "stop_action": bool,
    "choose_axis": bool,
    "augment": bool,
    "corruption_flagged": bool,
    "lines_per_step": int,
    "line_time": float,
    "latency": float,
    "time_cost": float,
}


@dataclass(frozen=True)
class KSpaceSettings:
    """What a k-space environment is made of; plain JSON values, so that a spec can be stored and sent.

    Data: ``cohort`` (a reader's name), ``data_root`` (``root`` is the same, as the folder reader calls it),
    ``num_classes`` (label values, the background included, for a cohort that does not state them itself),
    ``cohort_options`` (to the reader), ``split`` (a JSON file; by default the cohort's own seeded split), ``role``
    (whose patients: train, val, test, or all).
    Scan: ``acquisition`` (fields of :class:`seggym.kspace.acquisition.Acquisition` that differ from its defaults),
    ``augment`` (phase amplitude and echo shift, which belong to a patient, are drawn anew for every episode: for
    training, because twenty patients are only twenty echo shifts).
    Reward: ``reward_model`` (folder or published name; None where no network is needed), ``lambda_seg`` and
    ``lambda_recon`` (lambda_2 and lambda_1 of the paper), ``seg_metric``, ``recon_metric``, ``absent_weight`` (cost of
    the share of the image predicted as a class that is absent), ``objective`` (final quality or area under the curve),
    ``reward`` ("dense" gains, "terminal" gain, or ASMR's delayed "level"), ``level_delay`` (its steps without reward).
    ``reward_reference`` is what predictions are compared with: the "labels", or "full_prediction", what the network
    itself makes of full k-space, so that a reward needs no labels (``info["dice"]`` then is agreement with that).
    ``lambda_error`` weighs another reward that needs none, the part "error_net": the gain in the Dice that
    ``error_net`` (a folder, see docs/reward_net.md) expects of the network's prediction, from the current image alone.
    It stands beside the quality; with lambda_seg=0 it is the only one, and ``info["dice"]`` is still of the labels.
    A terminal reward has no area. It needs one forward pass per episode: ``info["quality"]`` and ``info["dice"]`` are
    then the initial ones until the last step, unless the network is observed.
    Episode: ``budget`` (lines after the initial ones; a number or a range [low, high] drawn per episode),
    ``candidates`` ([first, last] line that may be measured; None is all), ``lines_per_step`` (a segment per heart beat:
    the line of the action and the nearest that are missing or corrupted), ``remeasure`` (which lines may be measured
    again, replacing what was measured: "never", "flagged" as corrupted, "any"), ``choose_axis`` (the first action is
    the axis of phase encoding; two actions after all others, columns and rows; it uses no budget), ``stop_action``,
    ``illegal_action``, ``illegal_penalty``, ``train_sampler_filename`` (weights of the slices in the draw).
    Time: ``line_time`` ms per measurement and ``latency`` ms per decision make ``info["time"]``; ``time_cost`` is what
    a second of it costs, in units of quality: the part "time" of the reward.
    Observation: ``observation`` (parts, see :data:`OBSERVATIONS`), ``corruption_flagged`` (whether corrupted lines are
    known as such, in the observation ``corrupted`` and to ``remeasure="flagged"``), ``reconstruction`` (what
    makes the image of the measured lines: a method of :mod:`seggym.kspace.reconstruction` by name or with its options,
    {"method": "pocs", "iterations": 10}, or {"method": "network", "folder": ...} with a folder or published name).
    Computing: ``device`` ("auto" is CUDA where there is one), ``precision`` of the networks, ``micro_batch`` (images
    that pass through a network at a time; None is what suits the device).
    """

    offered: ClassVar[tuple[str, ...]] = OBSERVATIONS

    cohort: str
    data_root: str | None = None
    root: str | None = None
    num_classes: int | None = None
    cohort_options: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    role: str = "train"
    acquisition: Mapping[str, Any] = field(default_factory=dict)
    augment: bool = False
    reward_model: str | None = None
    lambda_seg: float = 1.0
    lambda_recon: float = 0.0
    lambda_error: float = 0.0
    error_net: str | None = None
    seg_metric: str = "soft_dice"
    recon_metric: str = "ssim"
    absent_weight: float = 10.0
    objective: str = "final"
    reward: str = "dense"
    reward_reference: str = "labels"
    level_delay: int = 7
    budget: int | Sequence[int] = 12
    candidates: Sequence[int] | None = None
    lines_per_step: int = 1
    remeasure: str = "never"
    choose_axis: bool = False
    stop_action: bool = False
    line_time: float = 0.0
    latency: float = 0.0
    time_cost: float = 0.0
    illegal_action: str = "noop"
    illegal_penalty: float = 0.01
    train_sampler_filename: str | None = None
    observation: Sequence[str] = DEFAULT_OBSERVATION
    corruption_flagged: bool = True
    reconstruction: str | Mapping[str, Any] = "zero_filled"
    device: str = "auto"
    precision: str = "fp32"
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.root is not None:
            if self.data_root not in (None, self.root):
                raise SeggymError(
                    f"root={self.root} and data_root={self.data_root} are two names of one folder, the cohort's, and "
                    "differ: pass one of them"
                )
            object.__setattr__(self, "data_root", self.root)
        if self.num_classes is not None:
            object.__setattr__(self, "cohort_options", {**self.cohort_options, "num_classes": self.num_classes})
        require_types({name: getattr(self, name) for name in _TYPES}, _TYPES)
        require_choices(self, _CHOICES)
        unknown = [part for part in self.observation if part not in self.offered]
        if unknown or not self.observation:
            raise SeggymError(f"observation={list(self.observation)} must name parts among {', '.join(self.offered)}")
        if self.reward == "terminal" and self.objective == "area":
            raise SeggymError(
                "reward=terminal and objective=area exclude each other, as the quality at the end says nothing of the "
                "area under the curve: set objective=final, or reward=dense"
            )
        if self.remeasure == "flagged" and not self.corruption_flagged:
            raise SeggymError(
                "remeasure=flagged needs corruption_flagged=true: nobody knows which lines are corrupted; set "
                "remeasure=any"
            )
        require_at_least(self, line_time=0, latency=0, time_cost=0, lines_per_step=1)
        if self.micro_batch is not None and self.micro_batch < 1:
            raise SeggymError(f"micro_batch={self.micro_batch} must be at least 1, or null")
        self._check_views()
        self._check_reconstruction()
        weights = (self.lambda_seg, self.lambda_recon, self.lambda_error)
        if min(weights) < 0 or max(weights) == 0:
            raise SeggymError("lambda_seg, lambda_recon and lambda_error must be >= 0, and one of them positive")
        if (self.lambda_error > 0) != (self.error_net is not None):
            raise SeggymError(
                f"lambda_error={self.lambda_error} and error_net={self.error_net!r} belong together: pass the weight "
                "and the folder of an error net, or neither"
            )
        if self.needs_network and self.reward_model is None:
            raise SeggymError(
                "reward_model is missing: a segmentation reward (lambda_seg or lambda_error > 0) and the observations "
                f"{', '.join(NETWORK_OBSERVATIONS)} need one; pass its folder or a published name"
            )

    def _check_views(self) -> None:
        """What is measured must fit what there is to measure."""
        scan = self.scan
        views, initial = scan.num_views, scan.initial_views.tolist()
        low, high = self.budget_range
        if not 1 <= low <= high <= self.most_lines:
            raise SeggymError(
                f"budget={self.budget} must lie in 1..{self.most_lines}: it counts the lines after the "
                f"{len(initial)} initial ones of {views}"
            )
        first, last = self.candidate_range
        if not 0 <= first <= last < views:
            raise SeggymError(f"candidates={self.candidates} must be [first, last] with 0 <= first <= last < {views}")
        if set(range(first, last + 1)) <= set(initial):
            raise SeggymError(
                f"candidates={self.candidates} holds initial lines only ({', '.join(map(str, initial))} are measured "
                "before the first action); widen it"
            )
        if scan.trajectory != "lines":
            for name, default in (("lines_per_step", 1), ("choose_axis", False)):
                if getattr(self, name) != default:
                    raise SeggymError(
                        f"{name}={getattr(self, name)} is about phase-encode lines, acquisition.trajectory is "
                        f"{scan.trajectory!r}: leave it out"
                    )

    def _check_reconstruction(self) -> None:
        method, options = parse_reconstruction(self.reconstruction)
        if method != "network":
            make_reconstruction(method, options, self.scan)
        elif set(options) != {"folder"} or not isinstance(options["folder"], str):
            raise SeggymError(
                f'reconstruction={self.reconstruction!r} must be {{"method": "network", "folder": ...}}: the folder or '
                "the published name of a trained network, and nothing else"
            )
        if method != "zero_filled" and self.scan.trajectory != "lines":
            raise SeggymError(
                f"reconstruction={self.reconstruction!r} is for phase-encode lines, acquisition.trajectory is "
                f"{self.scan.trajectory!r}: leave it out"
            )

    @property
    def reconstruction_network(self) -> str | None:
        """Folder or published name of the network that reconstructs; None where none does."""
        method, options = parse_reconstruction(self.reconstruction)
        return options["folder"] if method == "network" else None

    @property
    def scan(self) -> Acquisition:
        """The acquisition with its defaults filled in."""
        return build(Acquisition, self.acquisition, "acquisition.")

    @property
    def lines_per_slice(self) -> int:
        """Lines of a slice after the initial ones."""
        return self.scan.num_views - len(self.scan.initial_views)

    @property
    def most_lines(self) -> int:
        """The largest budget that an episode can have."""
        return self.lines_per_slice

    @property
    def budget_range(self) -> tuple[int, int]:
        """Smallest and largest budget of an episode."""
        if isinstance(self.budget, int):
            return self.budget, self.budget
        return _pair("budget", self.budget, "a number of lines or [low, high]")

    @property
    def candidate_range(self) -> tuple[int, int]:
        """First and last line that may be measured."""
        if self.candidates is None:
            return 0, self.scan.num_views - 1
        return _pair("candidates", self.candidates, "[first, last]")

    @property
    def needs_network(self) -> bool:
        """Whether anything in a step asks for a segmentation."""
        return self.lambda_seg > 0 or self.lambda_error > 0 or self.network_is_observed

    @property
    def network_is_observed(self) -> bool:
        """Whether the observation shows what a network makes of every image."""
        return any(part in NETWORK_OBSERVATIONS for part in self.observation)


def _pair(name: str, value: Sequence[int], expected: str) -> tuple[int, int]:
    try:
        low, high = (operator.index(bound) for bound in value)
    except (TypeError, ValueError):
        raise SeggymError(f"{name}={value!r} must be {expected}, in whole numbers") from None
    return low, high
