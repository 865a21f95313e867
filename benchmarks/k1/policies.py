"""The policies of K1: learned ones, and for each its blind twin, trained alike on observations of other patients."""

import shutil
from pathlib import Path
from typing import Any

from benchmarks.k1.networks import reward_model
from benchmarks.k1.protocol import Protocol
from benchmarks.k1.sharing import Task
from seggym.agents.models import TrainSettings
from seggym.agents.resuming import STATE
from seggym.agents.training import train
from seggym.configs.checking import build

KINDS = ("learned", "blind")


def run_folder(protocol: Protocol, fold: int, kind: str, seed: int) -> Path:
    """Where a policy is trained."""
    return protocol.out / "policies" / f"fold{fold}" / f"{kind}-seed{seed}"


def policy_tasks(protocol: Protocol) -> list[Task]:
    """One training run for every fold, kind and seed."""
    return [
        Task(
            run_folder(protocol, fold, kind, seed),
            lambda fold=fold, kind=kind, seed=seed: _train(protocol, fold, kind, seed),
        )
        for fold in range(len(protocol.folds))
        for seed in protocol.seeds(fold)
        for kind in KINDS
    ]


def _train(protocol: Protocol, fold: int, kind: str, seed: int) -> None:
    folder = run_folder(protocol, fold, kind, seed)
    resume = (folder / "last" / STATE).is_file()
    if not resume:
        # Killed before its first checkpoint: it begins again, from nothing.
        shutil.rmtree(folder, ignore_errors=True)
    agent = {key: value for key, value in protocol.content["agent"].items() if key != "name"}
    values: dict[str, Any] = {
        **agent,
        **protocol.content["training"],
        "run_dir": str(folder),
        "env_id": protocol.content["env"]["id"],
        "env_kwargs": protocol.env_kwargs(fold, reward_model(protocol, fold)),
        "seed": seed,
        "blind": kind == "blind",
        "resume": resume,
        "threads": protocol.threads,
        "device": protocol.device,
        "progress_bar": False,
    }
    train(build(TrainSettings, values))
