"""Where policies are compared: the environment, its data, and the networks that score."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from seggym import __version__
from seggym.agents.baselines import TuningGround
from seggym.agents.rollouts import RunPlan
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.segmentation import Segmenter
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import build_engine, choose_patients, load_cohort, require_fit, resolve_device
from seggym.envs.kspace.volumes.settings import VolumeSettings, settings_type
from seggym.envs.kspace.volumes.sources import build_volume_engine
from seggym.errors import SeggymError
from seggym.kspace.acquisition import SliceStack
from seggym.kspace.reconstruction.methods import parse_reconstruction
from seggym.reward_models.checkpoints import RewardModel, open_reward_model
from seggym.reward_models.frozen import load_frozen
from seggym.reward_models.slices import prepared_slices

_NOT_SETTINGS = ("autoreset_mode", "output", "render_mode", "max_episode_steps")
_KSPACE_ENTRY = "seggym.envs.kspace."


@dataclass(frozen=True)
class Bench:
    """Where policies are compared.

    ``settings`` of the environments (the role is whose patients are scored); ``make_engine(settings, N)``;
    ``independent`` is network B, None where there is none; ``provenance`` is plain JSON: data, networks, versions.
    """

    env_id: str
    settings: KSpaceSettings
    stack: SliceStack
    class_names: tuple[str, ...]
    make_engine: Callable[[KSpaceSettings, int], KSpaceEngine]
    independent: Segmenter | None
    provenance: dict[str, Any]

    def ground(self, length: int, cache: Path | None = None, progress: bool = True, **options: Any) -> TuningGround:
        """What baselines are tuned on: the training role of the same environment, scored at every step."""

        def make(at_most: int) -> KSpaceEngine:
            return self.tuning_engine("train", at_most, length)

        return TuningGround(
            self.settings.scan, make, length, key=self.key_of("train"), cache=cache, progress=progress, **options
        )

    def tuning_engine(
        self, role: str, at_most: int, length: int, observation: Sequence[str] = ("acquired",)
    ) -> KSpaceEngine:
        """An engine over the patients of ``role`` that scores every step, for at most ``at_most`` of their slices.

        Phase and echo shift are drawn anew for every slice: an order that is tuned to those of a few patients does
        worse on others, and what is compared with a learned policy should be as good as it can be.
        """
        settings = replace(
            self.settings,
            role=role,
            reward="dense",
            budget=length,
            observation=observation,
            illegal_action="noop",
            augment=not isinstance(self.settings, VolumeSettings),
        )
        # A first engine of one environment knows how many slices there are; data and networks are shared.
        slices = len(self.make_engine(settings, 1).stack)
        return self.make_engine(settings, min(slices, at_most))

    def key_of(self, role: str) -> dict[str, Any]:
        """What a result depends on beside policy and budgets.

        Where data and networks lie and how fast it goes are no part: networks are known by their weights.
        """
        described = asdict(self.settings)
        # What is observed matters to a trained policy only, and its weights say that.
        for name in (
            "data_root",
            "root",
            "device",
            "role",
            "budget",
            "train_sampler_filename",
            "reward_model",
            "split",
        ):
            del described[name]
        del described["observation"]
        method, options = parse_reconstruction(self.settings.reconstruction)
        options.pop("folder", None)
        described["reconstruction"] = {"method": method, **options}
        names = ("fingerprint", "weights", "split")
        return {**described, "role": role, **{name: self.provenance.get(name) for name in names}}

    @property
    def key(self) -> dict[str, Any]:
        """All that a score depends on beside policy and budgets (plain JSON)."""
        return self.key_of(self.settings.role)

    def comparison_key(self, plan: RunPlan, repeats: int) -> dict[str, Any]:
        """What two evaluations must have in common for their policies to be compared: data, split, networks, budgets.

        How a policy was trained (its objective, what it observes) is no part of it.
        """
        own = self.key
        names = (
            *("cohort", "cohort_options", "role", "fingerprint", "split", "weights"),
            *("candidates", "stop_action", "choose_axis", "lines_per_step", "remeasure", "corruption_flagged"),
            "reconstruction",
        )
        return {
            **{name: own.get(name) for name in names},
            "acquisition": self.settings.scan.as_dict(),
            "budgets": [plan.budgets[0], plan.budgets[-1]],
            "once": plan.once,
            "repeats": repeats,
        }


def settings_of(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> KSpaceSettings:
    """The settings of a registered k-space environment with ``env_kwargs`` over its defaults."""
    name = env_id.rpartition(":")[2]
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise SeggymError(
            f"environment {env_id!r} is not registered ({error}); `seggym envs` lists those that are"
        ) from None
    if not str(spec.entry_point).startswith(_KSPACE_ENTRY):
        raise SeggymError(f"environment {env_id!r} is no k-space environment, which is what this evaluation compares")
    kwargs = {**spec.kwargs, **(env_kwargs or {})}
    try:
        chosen = {key: value for key, value in kwargs.items() if key not in _NOT_SETTINGS}
        return settings_type(spec.entry_point)(**chosen)
    except TypeError as error:
        raise SeggymError(f"environment {env_id!r} does not take these arguments: {error}") from None


def open_bench(
    env_id: str, env_kwargs: Mapping[str, Any] | None = None, role: str = "test", net_b: str | None = None
) -> Bench:
    """The bench of a registered environment; patients that a scoring network was trained on are refused.

    ``net_b`` is the folder of the independent network; by default the one that comes with the reward model. A copy of a
    network of the reward model is refused.
    """
    settings = replace(
        settings_of(env_id, env_kwargs), role=role, precision="fp32", train_sampler_filename=None, illegal_action="noop"
    )
    cohort, split = load_cohort(settings)
    stack = prepared_slices(cohort, choose_patients(cohort, split, settings), settings.scan)
    weights: dict[str, str] = {}
    independent = None
    if settings.reward_model is not None and settings.needs_network:
        model = open_reward_model(settings.reward_model)
        weights = {name: card.weights for name, card in model.cards.items()}
        if net_b is None and model.independent is not None:
            model.require_unseen("independent", stack.patients, cohort.name)
            net_b = str(model.independent)
        elif net_b is not None:
            other = open_reward_model(net_b)
            other.require_unseen("full", stack.patients, cohort.name)
            require_fit(other, "full", cohort, settings)
            weights["independent"] = other.cards["full"].weights
            net_b = str(other.full)
        if net_b is not None:
            _require_independent(model, weights["independent"], net_b)
            independent = load_frozen(net_b, resolve_device(settings.device), "fp32")
    if settings.reconstruction_network is not None:
        weights["reconstruction"] = open_reward_model(settings.reconstruction_network).cards["full"].weights
    provenance = {
        "cohort": cohort.name,
        "measured": cohort.measured,
        "fingerprint": cohort.fingerprint,
        "weights": weights,
        "split": {name: list(getattr(split, name)) for name in ("train", "val", "test")},
        "versions": {
            "seggym": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    build: Any = build_volume_engine if isinstance(settings, VolumeSettings) else build_engine
    return Bench(env_id, settings, stack, tuple(cohort.class_names), build, independent, provenance)


def _require_independent(model: RewardModel, weights: str, net_b: str) -> None:
    """Network B must not be one of the networks A: it would confirm whatever exploits them."""
    same = [name for name, card in model.cards.items() if name != "independent" and card.weights == weights]
    if same:
        raise SeggymError(
            f"net_b={net_b} has the weights {weights}, which are those of {model.path(same[0])}, expected a network of "
            "another seed and architecture than the reward model: pass another folder, or leave net_b out"
        )
