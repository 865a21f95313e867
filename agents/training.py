"""Train a policy into a run folder: make the parts, learn, and leave something that can be evaluated or resumed."""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure

from seggym.agents import resuming
from seggym.agents.algorithms.evolution import Evolution, evolve
from seggym.agents.algorithms.lookahead import Lookahead, fit_gains
from seggym.agents.algorithms.scores import best_legal
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
from seggym.agents.models import Engine, TrainSettings, make_batch, make_model
from seggym.agents.selection_training import selection_facts, selection_measure
from seggym.agents.snapshots import save_snapshot
from seggym.agents.validation import validate, validation_episodes
from seggym.configs.checking import build
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import load_cohort
from seggym.envs.selection.pools import SELECTION_ENGINES
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import open_reward_model, weights_hash
from seggym.reward_models.frozen import FrozenNetwork

# Episodes between two writes to TensorBoard for DQN, which has no rollouts of its own length; PPO writes each rollout.
_LOG_EPISODES = 200
_VALIDATION_BATCH = 64


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
