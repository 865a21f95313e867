"""Runs of active learning that take a second: phantoms of 32 x 32 pixels and an untrained encoder."""

from pathlib import Path
from typing import Any

import torch

from seggym.agents.al import loop
from seggym.agents.al.settings import LoopSettings, loop_settings
from seggym.agents.selection_results import SelectionResult
from seggym.reward_models.checkpoints import ModelCard, save_network
from seggym.reward_models.encoders import Encoder

PHANTOMS = {"patients": 9, "test_patients": 2}
PROBE: dict[str, Any] = {"learner": "probe"}
TINY_UNET: dict[str, Any] = {"learner": "unet", "options": {"iterations": 3, "batch": 4, "widths": [4, 8]}}


def untrained_encoder(folder: Path) -> str:
    """Folder of an encoder that has seen no patient."""
    torch.manual_seed(0)
    card = ModelCard("encoder", {"width": 8}, 6, [], "encoding", 32, [], "none", "none")
    save_network(folder, Encoder(6, width=8), card)
    return str(folder)


def small_run(run_dir: Path, encoder: str, strategy: str = "random", **changed: Any) -> LoopSettings:
    """Settings of a run; ``changed`` replaces groups ("model", "policy", "data", ...) or values of them."""
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "name": "small",
        "seed": 0,
        "datadir": None,
        "threads": 1,
        "device": "cpu",
        "cohort": {"name": "phantom", "options": PHANTOMS, "split": None},
        "data": {"size": 32, "spacing": 6.0, "encoder": encoder},
        "model": PROBE,
        "policy": {"budgets": [3, 5, 8]},
        "data_geometry": None,
        "model_uncertainty": {"type": strategy} if isinstance(strategy, str) else strategy,
    }
    return loop_settings({**values, **changed})


def written(folder: Path) -> dict[str, bytes]:
    """What a run has found out, by file: choices, scores and results."""
    names = ("query.json", "scores.json", "selection.json", "results.csv", "utilities.csv")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in names}


def quiet(line: str) -> None:
    """Says nothing of what a run says."""


def run(*arguments: Any, **changed: Any) -> SelectionResult:
    """What a small run comes to."""
    return loop.run(small_run(*arguments, **changed), quiet)
