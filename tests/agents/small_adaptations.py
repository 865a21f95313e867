"""Runs of RL4Seg that take seconds: echo phantoms of 32 x 32 pixels, two patients or so per role, a few iterations."""

from pathlib import Path
from typing import Any

from seggym.agents.rl4seg.settings import RunSettings, run_settings

DOMAINS: dict[str, Any] = {
    "cohort": "echo",
    "cohort_options": {"patients": 16, "size": 32},
    "size": 32,
    "source_frames": ["ED"],
    "target_frames": ["ED"],
    "fractions": [0.35, 0.15, 0.2, 0.15, 0.15],
    "shift": {"kinds": ["gamma"], "severity": 2, "seed": 0},
    # Masks of so few iterations break every rule about hearts.
    "rules": "topology",
}


def small_adaptation(out: Path, **changed: Any) -> RunSettings:
    """Settings of a run; ``changed`` replaces values, or values within groups."""
    values: dict[str, Any] = {
        "out": str(out),
        "name": "small",
        "seed": 0,
        "domains": DOMAINS,
        "widths": [12, 24, 32],
        "start": "plain",
        "tto": "off",
        "augmentation": {"kinds": ["gain", "gamma"]},
        "pretrain": {"iterations": 120, "batch": 8, "learning_rate": 5e-3, "validate_every": 40},
        "prior": {"iterations": 20, "batch": 8, "widths": [8, 16, 16], "latent": 8},
        "pairs": {"swap": 1, "weight_noise": [0.01], "contrast": [0.8], "noise": [0.1], "agreement": 0.2},
        "reward": {"iterations": 6, "batch": 4, "validate_every": 3},
        "ppo": {"images": 16, "batch": 8, "minibatch": 4, "epochs": 1},
        "loop": {"iterations": 2, "copies": 2},
        "choice": {"checkpoints": 2},
        "baselines": [],
        "threads": 1,
        "device": "cpu",
    }
    for key, value in changed.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return run_settings(values)


def written(folder: Path) -> dict[str, bytes]:
    """What a run has found out, by file; records hold times."""
    names = ("evaluation.json", "metrics.csv", "model.safetensors", "choice.json", "index.csv", "masks.npz", "ppo.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in names}


def quiet(line: str) -> None:
    """Says nothing of what a run says."""
