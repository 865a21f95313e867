"""Sweeps of training runs: what the presets say, and two jobs that submitit really starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module

from seggym.agents.snapshots import load_policy, snapshot_folders

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launcher is missing: pip install '.[slurm]'")
ROOT = Path(__file__).parents[2]
LAUNCHERS = {"serial": "BasicLauncher", "local": "LocalLauncher", "slurm": "SlurmLauncher"}
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_names_its_launcher_and_a_folder_per_job(preset):
    with initialize_config_module("seggym.configs", version_base="1.3"):
        config = compose("train_asmr", [f"+sweep={preset}"], return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith(f".{LAUNCHERS[preset]}")
    config.hydra.job.num = 4
    assert config.hydra.sweep.subdir == "KSpaceSeg-Phantom-v0/maskable_ppo/seed0_job4"


def test_slurm_takes_what_a_cluster_asks_for():
    asked = ["hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1", "hydra.launcher.array_parallelism=4"]
    with initialize_config_module("seggym.configs", version_base="1.3"):
        config = compose("train_asmr", ["+sweep=slurm", *asked], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert (launcher.partition, launcher.gpus_per_node, launcher.array_parallelism) == ("gpu", 1, 4)
    assert launcher.timeout_min > 60  # longer than the hour that the launcher would give


@pytest.mark.slow
def test_two_jobs_run_at_the_same_time_into_folders_of_their_own(tmp_path, phantom_root):
    command = [sys.executable, "agents/train_asmr.py", "--multirun", "+sweep=local", f"hydra.sweep.dir={tmp_path}"]
    command += ["env=krecon_phantom", "seed=0,1", "total_steps=64", "num_envs=8", "eval_every=32", "eval_episodes=3"]
    command += ["agent.hyperparameters.n_steps=4", "+env.kwargs.acquisition.matrix=32"]
    command += ["+env.kwargs.acquisition.crop=32", "+env.kwargs.cohort_options.patients=6"]
    command += ["+env.kwargs.cohort_options.test_patients=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = snapshot_folders(f"{tmp_path}/KSpaceRecon-Phantom-v0/maskable_ppo/*")
    assert [run.name for run in runs] == ["seed0_job0", "seed1_job1"]
    for seed, run in enumerate(runs):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["run_dir"] == str(run)
        assert config["seed"] == load_policy(run).card["seed"] == seed
        assert (run / "metrics.csv").is_file()
    # Two processes, not one after the other in this one.
    assert len(list((tmp_path / ".submitit").glob("*/*_result.pkl"))) == 2
