"""A small environment for the tests of agents."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import untrained_encoder

from seggym.agents.models import TrainSettings

LINES = 32


@pytest.fixture
def tiny_env() -> dict[str, Any]:
    """Id and keyword arguments of scans of 32 lines on six phantoms; the reward needs no network."""
    return {
        "id": "KSpaceRecon-Phantom-v0",
        "kwargs": {
            "cohort_options": {"patients": 6, "test_patients": 1},
            "acquisition": {"matrix": LINES, "crop": 32},
            "budget": [2, 5],
            "observation": ["image", "acquired", "budget", "action_mask"],
        },
    }


@pytest.fixture
def tiny_run(tiny_env, tmp_path) -> TrainSettings:
    """A short run of masked PPO in :func:`tiny_env`."""
    return TrainSettings(
        run_dir=str(tmp_path / "run"),
        env_id=tiny_env["id"],
        env_kwargs=tiny_env["kwargs"],
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 8, "batch_size": 16},
        network={"extractor": "dict", "extractor_kwargs": {}, "net_arch": [16], "activation": "tanh"},
        prior_strength=24.0,
        total_steps=64,
        num_envs=4,
        eval_every=32,
        eval_episodes=3,
        log_every=32,
        device="cpu",
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """Folder of an encoder that has seen no patient."""
    return untrained_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A cache of one's own, so that a test sees what is trained in it."""
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
