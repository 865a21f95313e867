"""A policy trained for one scan: the agent of the Hard environments, as protocol K1 trains it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.headroom.scans import FEATURES, Options, environment
from benchmarks.k1.protocol import agent_settings
from seggym.agents.models import TrainSettings
from seggym.agents.resuming import STATE
from seggym.agents.snapshots import LearnedPolicy, load_policy
from seggym.agents.training import train
from seggym.configs.checking import build


def trained_policies(options: Options, name: str) -> list[LearnedPolicy]:
    """The policies of the feature ``name``, one for each seed; none where nothing is to be trained."""
    device = "cpu" if not torch.cuda.is_available() else options.device
    seeds = range(options.seeds) if options.steps else ()
    return [load_policy(_train(training_settings(options, name, seed)), device) for seed in seeds]


def training_settings(options: Options, name: str, seed: int) -> TrainSettings:
    """The run of a policy for the feature ``name``: it observes what the scan has, and labels of training patients."""
    scan, kwargs = FEATURES[name]
    observation = ["energy", "acquired", "budget"]
    if kwargs.get("corruption_flagged"):
        observation.append("corrupted")
    if "phase_encode" in scan or kwargs.get("choose_axis"):
        observation.append("axis")
    env_id, env_kwargs = environment(options, name, observation, objective="area", precision="auto")
    # The search weighs lines, and choosing an axis is none: there PPO begins with the rule.
    evolution = None if kwargs.get("choose_axis") else {"generations": options.generations}
    # As in the presets of K1: where the echo hardly moves, near centre-out.
    start = {} if scan.get("echo_shift", 0) > 4 else {"off_dc": -2.0}
    network = {"extractor_kwargs": {"start": start}}
    values: dict[str, Any] = {
        **agent_settings({"agent": "echo_ppo", "agent_overrides": {"evolution": evolution, "network": network}}),
        "run_dir": str(Path(options.out) / "policies" / f"{options.cohort}-{name.replace(' ', '_')}-seed{seed}"),
        "env_id": env_id,
        "env_kwargs": env_kwargs,
        "seed": seed,
        "total_steps": options.steps,
        "num_envs": 64,
        "eval_every": options.steps,
        "eval_episodes": 128,
        "checkpoint_every": options.steps,
    }
    return build(TrainSettings, values)


def _train(settings: TrainSettings) -> Path:
    folder = Path(settings.run_dir)
    if not (folder / "last" / STATE).is_file():
        # Killed before its first checkpoint: it begins again, from nothing.
        shutil.rmtree(folder, ignore_errors=True)
        return train(settings)
    return train(replace(settings, resume=True))
