"""A run that is stopped and resumed ends with the same bits as one that is not."""

import signal
from dataclasses import replace

import pytest
import torch

from seggym.agents import resuming
from seggym.agents.callbacks import EpisodeLog
from seggym.agents.training import train
from seggym.errors import SeggymError

PPO = {"n_steps": 8, "batch_size": 16, "n_epochs": 2}
DQN = {"learning_starts": 40, "buffer_size": 150, "batch_size": 16, "train_freq": 2, "target_update_interval": 32}
HYPERPARAMETERS = {"ppo": PPO, "maskable_ppo": PPO, "dqn": DQN, "masked_dqn": DQN}


@pytest.fixture
def settings(tiny_run):
    return replace(
        tiny_run, hyperparameters=PPO, prior_strength=6.0, total_steps=224, eval_every=96, checkpoint_every=64
    )


def interrupt_at(monkeypatch, step):
    original = EpisodeLog._on_step

    def on_step(self):
        if self.num_timesteps == step:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(EpisodeLog, "_on_step", on_step)


def flat(value, name=""):
    """Every tensor and number of a nested state by its path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{name}/{key}").items()}
    return {name: value}


@pytest.mark.parametrize(("algorithm", "on_device"), [*((name, False) for name in HYPERPARAMETERS), ("ppo", True)])
def test_bit_identical(settings, tmp_path, monkeypatch, capsys, algorithm, on_device):
    hyperparameters = HYPERPARAMETERS[algorithm]
    settings = replace(settings, algorithm=algorithm, hyperparameters=hyperparameters, rollouts_on_device=on_device)
    whole = train(replace(settings, run_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 108)
        parts = train(settings)
    output = capsys.readouterr().out
    assert "resume=true" in output
    assert 108 < resuming.read_state(parts / "last")["counters"]["num_timesteps"] < 224
    train(replace(settings, resume=True))
    expected, found = (flat(resuming.read_state(folder / "last")) for folder in (whole, parts))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        same = torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name]
        assert same, name
    assert (whole / "best" / "policy.safetensors").read_bytes() == (parts / "best" / "policy.safetensors").read_bytes()
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()


def test_after_a_crash_the_last_checkpoint_counts(settings, tmp_path, monkeypatch):
    whole = train(replace(settings, run_dir=str(tmp_path / "whole")))

    def crash(self):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        original = EpisodeLog._on_step
        patch.setattr(EpisodeLog, "_on_step", lambda self: crash(self) if self.num_timesteps > 170 else original(self))
        with pytest.raises(RuntimeError, match="power cut"):
            train(settings)
    resumed = train(replace(settings, resume=True))
    assert (whole / "last" / "policy.safetensors").read_bytes() == (
        resumed / "last" / "policy.safetensors"
    ).read_bytes()
    assert (whole / "metrics.csv").read_text() == (resumed / "metrics.csv").read_text()


def test_nothing_to_resume(settings):
    with pytest.raises(SeggymError, match="nothing to resume"):
        train(replace(settings, resume=True))


def test_other_settings_are_refused(settings):
    train(replace(settings, total_steps=32))
    with pytest.raises(SeggymError, match="seed=1 instead of 0"):
        train(replace(settings, resume=True, seed=1))


def test_a_run_is_not_overwritten(settings):
    train(replace(settings, total_steps=32))
    with pytest.raises(SeggymError, match="already holds a run"):
        train(settings)


def test_a_damaged_state_is_refused(settings):
    folder = train(replace(settings, total_steps=32))
    path = folder / "last" / resuming.STATE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SeggymError, match="cannot read"):
        train(replace(settings, resume=True))


def test_a_finished_run_can_be_extended(settings):
    folder = train(replace(settings, total_steps=64))
    train(replace(settings, total_steps=128, resume=True))
    assert resuming.read_state(folder / "last")["counters"]["num_timesteps"] == 128
    train(replace(settings, total_steps=128, resume=True))
    assert resuming.read_state(folder / "last")["counters"]["num_timesteps"] == 128
