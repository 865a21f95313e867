"""The values of a run of RL4Seg, checked before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from seggym.agents.pixel.settings import PixelSettings
from seggym.agents.rl4seg.supervised import FitSettings
from seggym.agents.strategies.naming import nearest
from seggym.cohorts.shifts import KINDS
from seggym.configs.checking import build, require_at_least, require_choices
from seggym.envs.adaptation.settings import DomainSettings
from seggym.errors import SeggymError
from seggym.reward_models.error_training import ErrorNetSettings
from seggym.reward_models.reward_pairs import PairSettings
from seggym.reward_models.shape_prior import PriorSettings

STAGES = ("all", "pretrain", "predict", "reward", "ppo", "baselines", "evaluate", "severity")
STARTS = ("plain", "histogram", "fda", "augmented")
TEST_TIME = ("off", "on", "force")
LOOKS = ("plain", "histogram", "augmented")


@dataclass(frozen=True)
class LoopOptions:
    """How many ``iterations``, and what PPO is told in iteration i.

    The weight of entropy is ``entropy`` / (2 i) and that of the divergence from the supervised network ``divergence`` /
    (2 i), as in RL4Seg. ``shrink`` begins an iteration from shrunk and perturbed weights. ``source_looks`` puts source
    images with their true labels into every reward data set, whose errors are known: as they are (plain), with the
    histograms of target images (histogram), or strongly augmented (augmented); a look may be named several times. PPO
    is shown ``copies`` of every image and of every anchor, each turned, scaled and changed in contrast in its own way,
    the first as it is. With ``ensemble`` the reward is the mean of the reward nets of all iterations so far, else, as
    in RL4Seg, the last one's. A reward net begins with the weights of the supervised network (``reward_start``
    supervised), of the reward net before it (before), or with random ones (scratch).
    """

    iterations: int = 3
    entropy: float = 0.3
    divergence: float = 0.1
    shrink: bool = False
    source_looks: Sequence[str] = ("histogram", "augmented")
    copies: int = 8
    ensemble: bool = True
    reward_start: str = "supervised"

    def __post_init__(self) -> None:
        for look in self.source_looks:
            if look not in LOOKS:
                raise SeggymError(f"loop.source_looks names {look!r}; {nearest(str(look), LOOKS)}")
        require_choices(self, {"reward_start": ("supervised", "before", "scratch")})
        require_at_least(self, "loop.", iterations=1, copies=1, entropy=0, divergence=0)

    def weights(self, iteration: int) -> tuple[float, float]:
        """Weights of entropy and divergence in ``iteration`` (from 1)."""
        return self.entropy / (2 * iteration), self.divergence / (2 * iteration)


@dataclass(frozen=True)
class Augmentation:
    """Strong augmentation by the family of shifts: see :func:`seggym.agents.rl4seg.baselines.styles.augmented`."""

    kinds: Sequence[str] = ("gain", "gamma", "speckle", "attenuation", "blur", "bias")
    severities: Sequence[int] = (1, 5)
    share: float = 0.8

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise SeggymError(f"augmentation.kinds names {kind!r}; {nearest(str(kind), KINDS)}")
        ends = list(self.severities)
        if len(ends) != 2 or not all(isinstance(end, int) for end in ends) or not 1 <= ends[0] <= ends[1] <= 5:
            raise SeggymError(f"augmentation.severities={ends}, expected [lowest, highest] within 1 to 5")
        if not 0 <= self.share <= 1:
            raise SeggymError(f"augmentation.share={self.share} must lie in 0 to 1")


@dataclass(frozen=True)
class SelectionWeights:
    """What a checkpoint is chosen by (see :mod:`seggym.agents.rl4seg.selection`); no part of it needs a label."""

    reward: float = 1.0
    validity: float = 0.25
    agreement: float = 0.5
    enough: float = 0.9
    band: int = 2
    checkpoints: int = 3

    def __post_init__(self) -> None:
        require_at_least(self, "choice.", reward=0, validity=0, agreement=0, band=0, checkpoints=1)
        if self.reward + self.agreement == 0:
            raise SeggymError("choice.reward and choice.agreement must not both be 0: a valid mask may lie anywhere")


@dataclass(frozen=True)
class RunSettings:
    """One seed of a run. The groups of other modules are checked here and stay plain values, without their seeds.

    ``widths`` are those of every segmentation network. ``start`` is the source network that RL4Seg and the baselines
    which adapt a network begin with: trained on source images as they are (plain), with the histograms (histogram) or
    low-frequency amplitudes (fda) of target images, or strongly augmented. ``tto`` optimises the last policy for single
    test images: off, on (those whose mask breaks a rule) or force (all).
    """

    out: str
    name: str
    seed: int
    domains: Mapping[str, Any]
    pretrain: FitSettings
    prior: Mapping[str, Any]
    pairs: Mapping[str, Any]
    reward: Mapping[str, Any]
    ppo: Mapping[str, Any]
    loop: LoopOptions
    choice: SelectionWeights
    baselines: tuple[str, ...]
    widths: Sequence[int] = (12, 24, 48, 96)
    start: str = "plain"
    augmentation: Augmentation = field(default_factory=Augmentation)
    tto: str = "off"
    threads: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise SeggymError(f"start={self.start!r} is unknown; {nearest(self.start, STARTS)}")
        if self.tto not in TEST_TIME:
            raise SeggymError(f"tto={self.tto!r} is unknown; {nearest(self.tto, TEST_TIME)}")
        require_at_least(self, seed=0, threads=1)
        # Before anything is computed, let alone written: settings of a begun run cannot be changed.
        for name, kind in _CHECKED_ELSEWHERE.items():
            build(kind, getattr(self, name), f"{name}.")
        widths = self.reward.get("widths", self.widths)
        if self.loop.reward_start == "supervised" and list(widths) != list(self.widths):
            raise SeggymError(
                f"reward.widths={list(widths)} and widths={list(self.widths)} differ, but loop.reward_start=supervised "
                "says that reward nets begin as the supervised network: leave reward.widths out, or change the start"
            )

    def identity(self) -> dict[str, Any]:
        """All that the networks follow from, plain JSON: not where the run lies, nor which baselines it is given."""
        content = asdict(self)
        return {key: value for key, value in content.items() if key not in ("out", "baselines", "tto")}


_CHECKED_ELSEWHERE = {
    "domains": DomainSettings, "prior": PriorSettings, "pairs": PairSettings, "reward": ErrorNetSettings,
    "ppo": PixelSettings,
}  # fmt: skip


def run_settings(values: Mapping[str, Any]) -> RunSettings:
    """The run that the configuration ``values`` (plain) describe; raises :class:`SeggymError` for what is wrong."""
    from seggym.agents.rl4seg.baselines.registry import BASELINES

    chosen = values["baselines"]
    if chosen not in ("all", None) and not isinstance(chosen, (list, tuple)):
        raise SeggymError(f"baselines={chosen!r}, expected all, or a list of names such as [source_only, adabn]")
    names = tuple(BASELINES) if chosen == "all" else tuple(chosen or ())
    for name in names:
        if name not in BASELINES:
            raise SeggymError(f"baselines names {name!r}; {nearest(str(name), BASELINES)}")
    groups = {"pretrain": FitSettings, "loop": LoopOptions, "choice": SelectionWeights, "augmentation": Augmentation}
    plain = [name for name in RunSettings.__dataclass_fields__ if name not in (*groups, "baselines")]
    return build(
        RunSettings,
        {
            **{name: values[name] for name in plain},
            **{name: build(kind, values[name], f"{name}.") for name, kind in groups.items()},
            "baselines": names,
        },
    )


def stage_of(value: Any) -> str:
    """The stage that a command line names."""
    if value not in STAGES:
        raise SeggymError(f"stage={value!r} is unknown; {nearest(str(value), STAGES)}")
    return str(value)
