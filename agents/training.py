"""Train a policy into a run folder: make the parts, learn, and leave something that can be evaluated or resumed."""

import contextlib
import json
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure

from seggym.agents import resuming
from seggym.agents.algorithms import Algorithm
from seggym.agents.algorithms.evolution import Evolution, evolve
from seggym.agents.algorithms.lookahead import Lookahead, fit_gains
from seggym.agents.algorithms.networks import find_algorithm, policy_kwargs
from seggym.agents.algorithms.scores import best_legal, is_equivariant, num_passed_scores, policy_heads
from seggym.agents.blind import BlindEngine
from seggym.agents.callbacks import (
    Checkpoints,
    EpisodeLog,
    MetricsFile,
    StatefulCallback,
    TrainingStopped,
    Validation,
    metric_columns,
)
from seggym.agents.priors import low_frequency_prior, start_head
from seggym.agents.selection_training import selection_facts, selection_measure
from seggym.agents.snapshots import save_snapshot
from seggym.agents.validation import validate, validation_episodes
from seggym.agents.vec_env import BatchedVecEnv
from seggym.configs.checking import build
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import load_cohort
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.pools import SELECTION_ENGINES, PooledEngine
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import open_reward_model, weights_hash
from seggym.reward_models.frozen import FrozenNetwork, resolve_device

# Episodes between two writes to TensorBoard for DQN, which has no rollouts of its own length; PPO writes each rollout.
_LOG_EPISODES = 200
_VALIDATION_BATCH = 64

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


def train(settings: TrainSettings) -> Path:
    """Run ``settings`` to the end, or until Ctrl-C; returns the run folder with ``best/`` and ``last/`` in it."""
    check_run_folder(settings)
    folder = Path(settings.run_dir)
    last = folder / "last"
    state = resuming.read_state(last) if settings.resume else None
    if state is not None:
        _require_same_run(settings, state["settings"], last)
    torch.set_num_threads(settings.threads)
    model = make_model(settings)
    engine: Engine = model.env.batch.engine  # type: ignore[union-attr]
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))

    facts = snapshot_facts(settings, engine)
    file = MetricsFile(folder / "metrics.csv", metric_columns(facts["num_classes"]))
    log = EpisodeLog(file, settings.log_every)
    measure = validation_measure(settings, model) if settings.eval_every else dict
    keep = lambda metrics: save_snapshot(folder / "best", model, {**facts, "metrics": metrics})  # noqa: E731
    validation = Validation(file, settings.eval_every, measure, keep)

    def save() -> None:
        save_snapshot(last, model, {**facts, "metrics": {}})
        callbacks = {name: callback.state_dict() for name, callback in parts.items()}
        identity = json.dumps(settings.identity())
        resuming.write_state(last, {**resuming.capture(model), "callbacks": callbacks, "settings": identity})

    with _ctrl_c() as stop_requested:
        checkpoints = Checkpoints(settings.checkpoint_every, save, stop_requested)
        parts: dict[str, StatefulCallback] = {"log": log, "validation": validation, "checkpoints": checkpoints}
        if state is not None:
            resuming.restore(model, state)
            for name, callback in parts.items():
                callback.load_state_dict(state["callbacks"][name])
        file.begin(model.num_timesteps)
        if state is None:
            _start(model, engine, settings, validation)
        try:
            _learn(model, settings, list(parts.values()))
        except TrainingStopped:
            print(f"Stopped at step {model.num_timesteps}; go on with the same command and resume=true ({last}).")
            return folder
        if settings.eval_every:
            validation.run()
        else:
            keep({})
        save()
    return folder


def _start(model: BaseAlgorithm, engine: Engine, settings: TrainSettings, validation: Validation) -> None:
    """What comes before the first step, if anything."""
    if settings.evolution is None and settings.lookahead is None:
        return
    if settings.evolution is not None and settings.lookahead is not None:
        raise SeggymError(
            "agent.evolution and agent.lookahead are both set, and the fit of the second would forget what the first "
            "found: set one of them to null"
        )
    if settings.eval_every:
        # The policy before it is a candidate for the best one, too.
        validation.init_callback(model)
        validation.run()
        validation.forget_step()
    if settings.evolution is not None:
        gains = evolve(model, engine, build(Evolution, settings.evolution, "agent.evolution."), settings.seed)
        print(f"evolution: the last generation gains {gains[-1]:+.4f} over the start, on the same episodes")
    elif settings.lookahead is not None:
        shares = fit_gains(model, engine, build(Lookahead, settings.lookahead, "agent.lookahead."), settings.seed)
        print(f"lookahead: in pools held out {shares[-1]:+.0%} of what the best candidate gains over a random one")


def check_run_folder(settings: TrainSettings) -> None:
    """Raise :class:`SeggymError` where a new run would overwrite another."""
    folder = Path(settings.run_dir)
    if not settings.resume and ((folder / "last" / resuming.STATE).exists() or (folder / "best").exists()):
        raise SeggymError(
            f"{folder} already holds a run: set resume=true to go on with it, or choose another run_dir or seed"
        )


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
    start, end = float(rate["start"]), float(rate["end"])
    return {**hyperparameters, "learning_rate": lambda remaining: end + (start - end) * remaining}


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


def _learn(model: BaseAlgorithm, settings: TrainSettings, callbacks: list[StatefulCallback]) -> None:
    remaining = settings.total_steps - model.num_timesteps
    if remaining <= 0:
        print(f"The run already has {model.num_timesteps} steps; raise total_steps to train it further.")
        # Nothing is learnt, but the callbacks still need their model.
        for callback in callbacks:
            callback.init_callback(model)
        return
    model.learn(
        remaining,
        callback=list(callbacks),
        log_interval=1 if hasattr(model, "rollout_buffer") else _LOG_EPISODES,
        reset_num_timesteps=model.num_timesteps == 0,
        progress_bar=settings.progress_bar,
    )


def validation_measure(settings: TrainSettings, model: BaseAlgorithm) -> Callable[[], dict[str, float]]:
    """Measures the policy of ``model`` on the validation patients: dense rewards, single precision, largest budget."""
    trained_on: Engine = model.env.batch.engine  # type: ignore[union-attr]
    if isinstance(trained_on, SELECTION_ENGINES):
        return selection_measure(trained_on.settings, settings.eval_episodes, model)
    kwargs = {
        **settings.env_kwargs,
        "role": "val",
        "reward": "dense",
        "precision": "fp32",
        "budget": trained_on.settings.budget_range[1],
        "train_sampler_filename": None,
    }
    engine: Any = make_batch(settings.env_id, kwargs, min(_VALIDATION_BATCH, settings.eval_episodes)).engine
    if settings.blind:
        engine = BlindEngine(engine)
    episodes = validation_episodes(engine, settings.eval_episodes)

    def measure() -> dict[str, float]:
        model.policy.set_training_mode(False)
        return validate(engine, episodes, lambda seen, legal: best_legal(model.policy, seen, legal))

    return measure


def snapshot_facts(settings: TrainSettings, engine: Engine) -> dict[str, Any]:
    """What a snapshot says about the run it comes from."""
    run = {name: getattr(settings, name) for name in ("algorithm", "network", "env_id", "env_kwargs", "seed")}
    if isinstance(engine, SELECTION_ENGINES):
        return {**run, **selection_facts(engine)}
    scan: KSpaceSettings = engine.settings
    reward_model = None
    if scan.needs_network:
        assert scan.reward_model is not None
        reward_model = weights_hash(open_reward_model(scan.reward_model).full)
    env_kwargs = dict(settings.env_kwargs)
    if scan.precision == "auto":
        # What was chosen, since another machine may choose otherwise.
        precisions = [network.precision for network in engine.networks if isinstance(network, FrozenNetwork)]
        env_kwargs["precision"] = precisions[0] if precisions else "fp32"
    return {
        **run,
        "env_kwargs": env_kwargs,
        "num_lines": engine.num_lines,
        "num_classes": engine.stack.num_classes,
        "reward_model_hash": reward_model,
        "cohort": scan.cohort,
        "patients": sorted(set(engine.stack.patients)),
        "data_fingerprint": load_cohort(scan)[0].fingerprint,
    }


def _require_same_run(settings: TrainSettings, saved: str, folder: Path) -> None:
    before, now = json.loads(saved), settings.identity()
    changed = [f"{name}={now[name]} instead of {before.get(name)}" for name in now if now[name] != before.get(name)]
    if changed:
        raise SeggymError(
            f"the run in {folder} was made with other settings: {'; '.join(changed)}; resume it with its own, or "
            "choose another run_dir"
        )


@contextlib.contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to stop at the next rollout, where the state can be saved exactly.

    The second one interrupts at once; the previous checkpoint stays.
    """
    requested = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: requested
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        nonlocal requested
        requested = True
        signal.signal(signal.SIGINT, previous)
        print("Stopping after this rollout; press Ctrl-C again to stop without saving.")

    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, previous)
