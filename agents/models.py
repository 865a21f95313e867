"""The settings of a training, and the model that they describe: environment, algorithm, prior."""

import json
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from seggym.agents.algorithms import Algorithm
from seggym.agents.algorithms.networks import find_algorithm, policy_kwargs
from seggym.agents.algorithms.scores import is_equivariant, num_passed_scores, policy_heads
from seggym.agents.blind import BlindEngine
from seggym.agents.priors import low_frequency_prior, start_head
from seggym.agents.vec_env import BatchedVecEnv
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.pools import SELECTION_ENGINES, PooledEngine
from seggym.errors import SeggymError
from seggym.reward_models.frozen import resolve_device

Engine = KSpaceEngine | SelectionEngine | PooledEngine


@dataclass(frozen=True)
class TrainSettings:
    """A run.

    ``hyperparameters`` go to the stable-baselines3 algorithm, ``network`` is described at
    :func:`seggym.agents.algorithms.networks.policy_kwargs`, ``prior_strength`` at :mod:`seggym.agents.priors` (0 is
    off), ``group_size`` at :mod:`seggym.agents.algorithms.grouped` (1 is off). ``eval_every``, ``checkpoint_every`` and
    ``log_every`` count environment steps, 0 is never; ``eval_episodes`` bounds the number of validation slices.
    ``device`` is the policy's, the environment has its own. ``rollouts_on_device`` leaves observations and rollouts of
    PPO there instead of in main memory; None is where the environment runs on a GPU. ``blind`` trains and validates
    with the observations of other patients (:mod:`seggym.agents.blind`). ``augment`` trains, and does not validate,
    with phase and echo shift drawn for every episode. ``evolution`` holds fields of
    :class:`seggym.agents.algorithms.evolution.Evolution`, ``lookahead`` those of
    :class:`seggym.agents.algorithms.lookahead.Lookahead`; one of both may come before the first step, None is none.
    """

    run_dir: str
    env_id: str
    env_kwargs: dict[str, Any]
    algorithm: str
    hyperparameters: dict[str, Any]
    network: dict[str, Any]
    prior_strength: float = 0.0
    group_size: int = 1
    seed: int = 0
    total_steps: int = 200_000
    num_envs: int = 32
    eval_every: int = 20_000
    eval_episodes: int = 128
    checkpoint_every: int = 20_000
    log_every: int = 4_000
    resume: bool = False
    threads: int = 1
    device: str = "auto"
    rollouts_on_device: bool | None = None
    progress_bar: bool = False
    blind: bool = False
    augment: bool = False
    evolution: dict[str, Any] | None = None
    lookahead: dict[str, Any] | None = None

    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be resumed."""
        free = ("run_dir", "total_steps", "eval_every", "eval_episodes", "checkpoint_every", "log_every", "resume")
        identity = {name: value for name, value in asdict(self).items() if name not in (*free, "progress_bar")}
        return json.loads(json.dumps(identity))


def make_model(settings: TrainSettings) -> BaseAlgorithm:
    """Environment, algorithm and prior of a run, untrained; everything random in it follows from the seed."""
    algorithm = find_algorithm(settings.algorithm)
    on_device = _rollouts_on_device(settings, algorithm)
    kwargs = {**settings.env_kwargs, "output": "torch"} if on_device else settings.env_kwargs
    if settings.augment:
        kwargs = {**kwargs, "augment": True}
    batch = make_batch(settings.env_id, kwargs, settings.num_envs)
    if settings.blind:
        _require_scans(batch.engine)
        batch.engine = BlindEngine(batch.engine)
    env = BatchedVecEnv(batch, settings.group_size)
    rollouts: dict[str, Any] = {}
    if algorithm.rollout_buffer is not None:
        rollouts["rollout_buffer_class"] = algorithm.rollout_buffer
        rollouts["rollout_buffer_kwargs"] = {
            "group_size": settings.group_size,
            "held_on": None if on_device else "cpu",
        }
    if settings.group_size > 1:
        if algorithm.rollout_buffer is None:
            raise SeggymError(
                f"agent.group_size={settings.group_size}: {settings.algorithm} has no rollouts, set it to 1"
            )
        if getattr(env.batch.engine.settings, "stop_action", False):  # type: ignore[attr-defined]
            raise SeggymError(
                f"agent.group_size={settings.group_size} compares scans that are at the same step, which "
                "env.kwargs.stop_action=true lets drift apart: set agent.group_size=1"
            )
        pools = getattr(env.batch.engine, "pools", [None])  # type: ignore[attr-defined]
        if len(pools) > 1 and settings.num_envs // len(pools) % settings.group_size:
            raise SeggymError(
                f"agent.group_size={settings.group_size} compares environments of one pool, of which each of the "
                f"{len(pools)} has {settings.num_envs // len(pools)}: choose a group_size that divides that"
            )
    try:
        with warnings.catch_warnings():
            # They warn that a batch does not divide the rollout, or that a small network is faster on a CPU.
            warnings.simplefilter("ignore", UserWarning)
            model = algorithm.trainer(
                algorithm.policy,
                env,
                seed=settings.seed,
                device=settings.device,
                policy_kwargs=policy_kwargs(settings.algorithm, settings.network),
                **rollouts,
                **_with_schedule(settings.hyperparameters),
            )
    except (TypeError, ValueError, AssertionError) as error:
        raise SeggymError(
            f"agent.hyperparameters={settings.hyperparameters} do not suit {settings.algorithm}: {error}; see the "
            "parameters of that algorithm in the documentation of stable-baselines3"
        ) from error
    heads = policy_heads(model.policy)
    passed = num_passed_scores(model.policy)
    if settings.prior_strength or passed:
        start_head(heads[0], _prior(settings, env.batch.engine), passed)  # type: ignore[attr-defined]
        for copy in heads[1:]:
            copy.load_state_dict(heads[0].state_dict())
    if is_equivariant(model.policy):
        _fix(model.policy, settings)
    return model


def _prior(settings: TrainSettings, engine: Engine) -> torch.Tensor:
    """What the head says of each action before training, float32 (A,)."""
    if isinstance(engine, SELECTION_ENGINES):
        if settings.prior_strength:
            raise SeggymError(
                f"agent.prior_strength={settings.prior_strength} prefers phase-encode lines near DC, of which "
                f"{settings.env_id} has none: set it to 0"
            )
        return torch.zeros(engine.num_actions)
    if settings.prior_strength and engine.acquisition.trajectory != "lines":
        raise SeggymError(
            f"agent.prior_strength={settings.prior_strength} prefers phase-encode lines near DC, the trajectory is "
            f"{engine.acquisition.trajectory!r}: set it to 0, as agent=spoke_ppo and agent=point_ppo do"
        )
    return low_frequency_prior(engine.num_lines, settings.prior_strength, engine.num_actions)


def _fix(policy: Any, settings: TrainSettings) -> None:
    """Keep the heads as they are: each passes on the scores of a features extractor that treats all actions alike."""
    for head in policy_heads(policy):
        if head.in_features != getattr(policy, "q_net", policy).features_dim:
            raise SeggymError(
                f"agent.network.net_arch={settings.network['net_arch']} puts layers behind the scores of the extractor "
                f"{settings.network['extractor']!r}: set it to [], or to pi: [] where actor and critic have their own"
            )
        head.requires_grad_(False)


def _require_scans(engine: Any) -> None:
    if isinstance(engine, SELECTION_ENGINES):
        raise SeggymError("blind=true swaps the measurements of patients, of which active learning has none: set false")


def _with_schedule(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters, with ``learning_rate: {start: .., end: ..}`` as the line from one to the other."""
    rate = hyperparameters.get("learning_rate")
    if not isinstance(rate, dict):
        return hyperparameters
    if set(rate) != {"start", "end"}:
        raise SeggymError(f"agent.hyperparameters.learning_rate={rate} must be a number, or hold start and end")
    schedule = LinearSchedule(float(rate["start"]), float(rate["end"]), end_fraction=1.0)
    return {**hyperparameters, "learning_rate": schedule}


def _rollouts_on_device(settings: TrainSettings, algorithm: Algorithm) -> bool:
    if settings.rollouts_on_device and algorithm.rollout_buffer is None:
        raise SeggymError(
            f"rollouts_on_device=true: {settings.algorithm} has no rollouts, its replay buffer is in main memory; set "
            "it to false or null"
        )
    if settings.rollouts_on_device is not None:
        return settings.rollouts_on_device
    device = resolve_device(settings.env_kwargs.get("device", "auto"))
    return algorithm.rollout_buffer is not None and device.type == "cuda"


def make_batch(env_id: str, env_kwargs: dict[str, Any], num_envs: int) -> Any:
    """The batched environment as stable-baselines3 needs it: resets in the step that ends an episode."""
    if env_id not in gymnasium.registry:
        known = [name for name, spec in gymnasium.registry.items() if "seggym" in str(spec.vector_entry_point)]
        raise SeggymError(f"env.id={env_id!r} is unknown, expected one of {', '.join(known)}")
    try:
        return gymnasium.make_vec(
            env_id,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode="SameStep",
            **env_kwargs,
        )
    except TypeError as error:
        raise SeggymError(f"env.kwargs={env_kwargs} do not suit {env_id}: {error}") from error
