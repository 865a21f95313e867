"""Train a policy with RLlib's PPO on several workers, into a run folder like that of :mod:`seggym.agents.training`."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from stable_baselines3.common.base_class import BaseAlgorithm

from seggym.agents.algorithms.masked_dqn import MASK
from seggym.agents.callbacks import MetricsFile, Schedule, metric_columns
from seggym.agents.models import TrainSettings, make_model
from seggym.agents.rllib.module import MaskedPolicyModule
from seggym.agents.rllib.workers import SUMS, report_scan, seed_environments
from seggym.agents.snapshots import save_snapshot
from seggym.agents.training import snapshot_facts, validation_measure
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.errors import SeggymError

CHECKPOINT = "rllib"  # RLlib's own files, in last/
# Hyperparameters by their names in stable-baselines3, which the configs use, and in RLlib.
_RLLIB_NAMES = {
    "learning_rate": "lr",
    "batch_size": "minibatch_size",
    "n_epochs": "num_epochs",
    "gamma": "gamma",
    "gae_lambda": "lambda_",
    "clip_range": "clip_param",
    "ent_coef": "entropy_coeff",
    "vf_coef": "vf_loss_coeff",
    "max_grad_norm": "grad_clip",
}


def train_rllib(settings: TrainSettings, workers: int, address: str | None = None) -> Path:
    """Run ``settings`` with ``num_envs`` environments on each of ``workers`` processes; returns the run folder.

    ``workers=0`` samples in this process. ``address`` joins a running Ray cluster ("auto" finds it); None starts Ray
    on this machine. ``best/`` and ``last/`` hold snapshots that any evaluation of seggym reads; ``last/rllib`` is
    RLlib's checkpoint, for one's own use only, because RLlib unpickles it.
    """
    torch.set_num_threads(settings.threads)
    # The same network in stable-baselines3: it is validated and saved, with weights that RLlib trained.
    twin = make_model(replace(settings, num_envs=1, device="cpu"))
    engine: KSpaceEngine = twin.env.batch.engine  # type: ignore[union-attr]
    # What "auto" is here is what it is on every worker, whatever machine that runs on.
    settings = replace(settings, env_kwargs=snapshot_facts(settings, engine)["env_kwargs"])
    config = algorithm_config(settings, workers, engine.num_lines)
    # A cluster in a hospital should not report its use to the makers of Ray.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=address, include_dashboard=False if address is None else None, ignore_reinit_error=True)
    try:
        algorithm = config.build_algo()
        try:
            _learn(algorithm, settings, twin, engine)
        finally:
            algorithm.stop()
    finally:
        ray.shutdown()
    return Path(settings.run_dir)


def algorithm_config(settings: TrainSettings, workers: int, num_lines: int) -> PPOConfig:
    """RLlib's configuration of a run; raises :class:`SeggymError` for settings that RLlib's PPO does not have."""
    if settings.algorithm != "maskable_ppo" or settings.group_size != 1:
        raise SeggymError(
            f"agent.algorithm={settings.algorithm} with agent.group_size={settings.group_size} is not what RLlib "
            "trains here, expected maskable_ppo with 1: set agent=maskable_ppo agent.group_size=1, or use train_asmr.sh"
        )
    if MASK not in settings.env_kwargs["observation"]:
        raise SeggymError(f"env.kwargs.observation lacks {MASK!r}, from which RLlib's policy takes its mask: add it")
    given = dict(settings.hyperparameters)
    n_steps = given.pop("n_steps", 64)
    if not given.pop("normalize_advantage", True):
        raise SeggymError("agent.hyperparameters.normalize_advantage=false is not offered by RLlib: set it to true")
    unknown = sorted(set(given) - set(_RLLIB_NAMES))
    if unknown:
        raise SeggymError(
            f"agent.hyperparameters names {', '.join(unknown)}, expected some of n_steps, normalize_advantage, "
            f"{', '.join(_RLLIB_NAMES)}: leave it out with RLlib"
        )
    per_iteration = n_steps * settings.num_envs * max(workers, 1)
    if given.get("batch_size", 0) > per_iteration:
        raise SeggymError(
            f"agent.hyperparameters.batch_size={given['batch_size']} is more than the {per_iteration} steps of an "
            "iteration (n_steps x num_envs x num_workers): lower it, or raise one of those"
        )
    module = {"network": settings.network, "prior_strength": settings.prior_strength, "num_lines": num_lines}
    # RLlib adds the number of the worker; from a seed sequence, neighbouring runs still draw different actions.
    streams = int(np.random.SeedSequence([settings.seed]).generate_state(1)[0]) >> 1
    # The module's name in front lets a worker import it, and so register the environment.
    env_id = settings.env_id if ":" in settings.env_id else f"seggym:{settings.env_id}"
    return (
        PPOConfig()
        .environment(env_id, env_config=settings.env_kwargs)
        .env_runners(
            num_env_runners=workers,
            num_envs_per_env_runner=settings.num_envs,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=n_steps,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=MaskedPolicyModule, model_config=module))
        .callbacks(
            on_environment_created=partial(seed_environments, settings.seed),
            on_episode_end=report_scan,
        )
        .training(
            train_batch_size_per_learner=per_iteration,
            # What stable-baselines3 does not have: a penalty on the divergence, and a bound on the critic's loss.
            use_kl_loss=False,
            vf_clip_param=float("inf"),
            **{_RLLIB_NAMES[name]: value for name, value in given.items()},
        )
        .debugging(seed=streams, log_level="ERROR")
    )


def _learn(algorithm: Algorithm, settings: TrainSettings, twin: BaseAlgorithm, engine: KSpaceEngine) -> None:
    """Iterate until ``total_steps``, writing ``metrics.csv``, ``best/`` and ``last/`` on the way."""
    folder = Path(settings.run_dir)
    facts = snapshot_facts(settings, engine)
    measure = validation_measure(settings, twin) if settings.eval_every else None
    file = MetricsFile(folder / "metrics.csv", metric_columns(engine.stack.num_classes))
    file.begin(0)
    evaluations, checkpoints = Schedule(settings.eval_every), Schedule(settings.checkpoint_every)
    best = -np.inf
    while twin.num_timesteps < settings.total_steps:
        sampled = algorithm.train()["env_runners"]
        steps = twin.num_timesteps = int(sampled["num_env_steps_sampled_lifetime"])
        _copy_weights(algorithm, twin)
        file.append({"step": steps, "phase": "train", **_means(sampled.get(SUMS, {}))})
        ended = steps >= settings.total_steps
        if measure and (evaluations.due(steps) or ended):
            metrics = {name: round(value, 6) for name, value in measure().items()}
            file.append({"step": steps, "phase": "validation", **metrics})
            better = metrics["mean_quality"] > best
            print(f"step {steps}: validation quality {metrics['mean_quality']:.4f}{' (best)' if better else ''}")
            if better:
                best = metrics["mean_quality"]
                save_snapshot(folder / "best", twin, {**facts, "metrics": metrics})
        if checkpoints.due(steps) or ended:
            save_snapshot(folder / "last", twin, {**facts, "metrics": {}})
            algorithm.save_to_path(str((folder / "last" / CHECKPOINT).resolve()))
    if not measure:
        save_snapshot(folder / "best", twin, {**facts, "metrics": {}})


def _copy_weights(algorithm: Algorithm, twin: BaseAlgorithm) -> None:
    """Give ``twin`` the weights that RLlib's learner has now."""
    weights: dict[str, Any] = algorithm.get_weights([DEFAULT_MODULE_ID])[DEFAULT_MODULE_ID]
    prefix = "policy."
    state = {name.removeprefix(prefix): torch.as_tensor(np.array(value)) for name, value in weights.items()}
    twin.policy.load_state_dict(state)


def _means(sums: dict[str, Any]) -> dict[str, float]:
    """Means over the episodes that ended in an iteration; nothing but their number, where there are none."""
    episodes = float(sums.get("episodes", 0))
    if not episodes:
        return {"episodes": 0}
    return {
        "episodes": episodes,
        **{name: round(float(total) / episodes, 6) for name, total in sums.items() if name != "episodes"},
    }
