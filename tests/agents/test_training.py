"""Prior, extractor, validation and the run folder that the command line leaves behind."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from hydra import compose, initialize_config_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seggym.agents.algorithms import ALGORITHMS
from seggym.agents.algorithms.networks import policy_kwargs
from seggym.agents.algorithms.scores import best_legal
from seggym.agents.extractors import DictExtractor
from seggym.agents.models import make_batch, make_model
from seggym.agents.priors import low_frequency_prior
from seggym.agents.snapshots import load_policy
from seggym.agents.train_asmr import env_kwargs
from seggym.agents.training import train
from seggym.agents.validation import validate, validation_episodes
from seggym.configs.checking import plain
from seggym.errors import SeggymError
from seggym.kspace.orders import centre_out
from seggym.reward_models.checkpoints import ModelCard, save_network, weights_hash
from seggym.reward_models.networks import build_network

ROOT = Path(__file__).parents[2]
AGENTS = sorted(path.stem for path in (ROOT / "configs" / "agent").glob("*.yaml"))
ENVS = sorted(path.stem for path in (ROOT / "configs" / "env").glob("k*.yaml"))


@pytest.fixture
def settings(tiny_run):
    return tiny_run


# --- prior ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [128, 160])
def test_prior_samples_the_central_quarter(lines):
    strength = yaml.safe_load((ROOT / "configs" / "agent" / "maskable_ppo.yaml").read_text())["prior_strength"]
    logits = low_frequency_prior(lines, strength).double().expand(500, -1).clone()
    logits[:, lines // 2 - 1 : lines // 2 + 2] = -torch.inf
    generator = torch.Generator().manual_seed(0)
    # Twelve lines without replacement, as the mask has it.
    drawn = torch.multinomial(logits.softmax(1), 12, replacement=False, generator=generator)
    distance = (drawn - lines // 2).abs()
    assert (distance <= lines // 8).double().mean() > 0.85
    # It explores: the twelve are not the twelve that are nearest to the centre.
    assert (distance > 7).double().mean() > 0.1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_untrained_policy_goes_from_the_centre_outwards(settings, tiny_env, algorithm):
    hyperparameters = {"buffer_size": 100} if "dqn" in algorithm else {}
    model = make_model(replace(settings, algorithm=algorithm, hyperparameters=hyperparameters))
    engine = make_batch(tiny_env["id"], {**tiny_env["kwargs"], "role": "val", "budget": 8}, 2).engine
    validate(engine, validation_episodes(engine, 2), lambda seen, legal: best_legal(model.policy, seen, legal))
    expected = sorted(abs(int(line) - 16) for line in centre_out(32)[:11])
    for scan in engine.acquired:
        assert sorted((scan.nonzero()[:, 0] - 16).abs().tolist()) == expected


def test_prior_of_further_actions_is_the_lowest():
    prior = low_frequency_prior(8, 2.0, 9)
    np.testing.assert_allclose(prior, [-1, -0.75, -0.5, -0.25, 0, -0.25, -0.5, -0.75, -1])


# --- extractor --------------------------------------------------------------------------------------------------------


def test_extractor_ignores_the_mask_and_sees_everything_else():
    space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (1, 96, 96), np.uint8),
            "features": spaces.Box(-np.inf, np.inf, (40,), np.float32),
            "acquired": spaces.MultiBinary(32),
            "budget": spaces.Box(0, 1, (1,), np.float32),
            "action_mask": spaces.MultiBinary(32),
        }
    )
    torch.manual_seed(0)
    extractor = DictExtractor(space, image_width=4, embedding=8)
    seen = {name: torch.rand(3, *part.shape) for name, part in space.spaces.items()}
    before = extractor(seen)
    assert before.shape == (3, 8 + 8 + 32 + 1)
    for name in space.spaces:
        changed = extractor({**seen, name: seen[name].flip(0, -1) + 0.5 * (name == "budget")})
        assert torch.equal(before, changed) == (name == "action_mask"), name


# --- validation -------------------------------------------------------------------------------------------------------


def test_validation_is_the_mean_of_the_episodes(tiny_env):
    kwargs = {**tiny_env["kwargs"], "role": "val", "budget": 3}
    engine = make_batch(tiny_env["id"], kwargs, 4).engine
    episodes = validation_episodes(engine, 6)
    assert len(episodes.samples) == 6
    centre = torch.tensor([14, 18, 13])

    def choose(seen, legal):
        return centre[engine.acquired.sum(1) - 3]

    found = validate(engine, episodes, choose)
    single = make_batch(tiny_env["id"], kwargs, 1)
    areas, finals = [], []
    for sample, key in zip(episodes.samples.tolist(), episodes.keys.tolist(), strict=True):
        single.reset(options={"episodes": [(sample, 3, key)]})
        qualities = []
        for line in centre.tolist():
            info = single.step(np.array([line]))[4]
            qualities.append(info.get("final_info", info)["quality"][0])
        areas.append(np.mean(qualities))
        finals.append(qualities[-1])
    assert found["mean_quality"] == pytest.approx(np.mean(areas), abs=1e-5)
    assert found["quality"] == pytest.approx(np.mean(finals), abs=1e-5)
    assert found["lines"] == 6


# --- runs -------------------------------------------------------------------------------------------------------------


def test_run_folder(settings):
    folder = train(settings)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    validation = [row for row in rows if row["phase"] == "validation"]
    assert [int(row["step"]) for row in validation] == [0, 32, 64]
    assert [row["phase"] for row in rows].count("train") == 1
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"episode/return", "episode/lines", "validation/mean_quality"} <= set(events.Tags()["scalars"])
    best = load_policy(folder)
    highest = max(validation, key=lambda row: float(row["mean_quality"]))
    assert best.card["steps"] == int(highest["step"])
    assert best.card["metrics"]["mean_quality"] == pytest.approx(float(highest["mean_quality"]), abs=1e-6)
    assert load_policy(folder / "last").card["steps"] == 64


def test_with_a_network(settings, tmp_path):
    names = ["background", "RV", "MYO", "LV"]
    card = ModelCard("unet", {"widths": [4, 8, 8, 8]}, 4, names, "segmentation", 32, [], "phantom", "none")
    torch.manual_seed(0)
    save_network(tmp_path / "net", build_network("unet", 4, widths=[4, 8, 8, 8]), card)
    kwargs = {
        **settings.env_kwargs,
        "reward_model": str(tmp_path / "net"),
        "observation": ["features", "acquired", "budget"],
        "objective": "area",
        "precision": "auto",
    }
    folder = train(replace(settings, env_id="KSpaceSeg-Phantom-v0", env_kwargs=kwargs))
    policy = load_policy(folder)
    assert policy.card["reward_model_hash"] == weights_hash(tmp_path / "net")
    assert policy.card["env_kwargs"] == {**kwargs, "precision": "fp32"}  # what "auto" is without a record
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert all(0 <= float(row[f"dice_{index}"]) <= 1 for row in rows for index in (1, 2, 3))


def test_without_validation_the_last_policy_is_kept(settings):
    folder = train(replace(settings, eval_every=0))
    best, last = (folder / name / "policy.safetensors" for name in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()


def test_bad_settings_are_one_sentence(settings):
    with pytest.raises(SeggymError, match=r"hyperparameters=.*nonsense"):
        train(replace(settings, hyperparameters={"nonsense": 1}))
    with pytest.raises(SeggymError, match="algorithm 'sac' is unknown"):
        train(replace(settings, algorithm="sac"))
    with pytest.raises(SeggymError, match=r"env\.id='CartPole-v9' is unknown"):
        train(replace(settings, env_id="CartPole-v9"))
    with pytest.raises(SeggymError, match=r"env\.kwargs"):
        train(replace(settings, env_kwargs={"nonsense": 1}))
    with pytest.raises(SeggymError, match=r"group_size=2 compares scans that are at the same step"):
        train(replace(settings, group_size=2, env_kwargs={**settings.env_kwargs, "stop_action": True}))


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("agent", AGENTS)
def test_every_pair_of_configs_composes(env, agent):
    options = ["env.kwargs.num_classes=3"] if env == "kspace_folder" else []
    with initialize_config_module("seggym.configs", version_base="1.3"):
        values = plain(compose("train_asmr", [f"env={env}", f"agent={agent}", "datadir=/data", *options]))
    kwargs = env_kwargs(values)
    assert kwargs["data_root"] == "/data"
    assert ("action_mask" in kwargs["observation"]) == (values["agent"]["algorithm"] == "masked_dqn")
    policy_kwargs(values["agent"]["algorithm"], values["agent"]["network"])
    assert values["run_dir"].endswith("/seed0")


def test_command_line(tmp_path, tiny_env):
    command = [
        *(sys.executable, str(ROOT / "agents" / "train_asmr.py")),
        *("env=krecon_phantom", "agent=ppo", f"run_dir={tmp_path / 'run'}", "total_steps=32", "num_envs=4"),
        "agent.group_size=2",
        *("agent.hyperparameters.n_steps=8", "agent.hyperparameters.batch_size=16", "eval_every=0", "device=cpu"),
        "+env.kwargs.cohort_options={patients: 6, test_patients: 1}",
        "+env.kwargs.acquisition={matrix: 32, crop: 32}",
        "progress_bar=false",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert load_policy(tmp_path / "run").card["algorithm"] == "ppo"
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["env"]["kwargs"]["acquisition"] == {"matrix": 32, "crop": 32}


def test_command_line_ends_with_one_sentence(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "agents" / "train_asmr.py"),
        "env=kspace_folder",
        f"run_dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "env.kwargs.num_classes" in done.stderr


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
