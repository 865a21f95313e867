"""The command line of RL4Seg: presets, stages, sentences."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from seggym.agents.pixel.settings import PixelSettings
from seggym.agents.rl4seg.baselines.registry import BASELINES
from seggym.agents.rl4seg.settings import run_settings, stage_of
from seggym.agents.rl4seg.trial import domain_settings
from seggym.configs.checking import build, plain
from seggym.errors import SeggymError
from seggym.reward_models.error_training import ErrorNetSettings
from seggym.reward_models.reward_pairs import PairSettings
from seggym.reward_models.shape_prior import PriorSettings

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/adaptation/experiment").glob("*.yaml"))
TINY = (
    "domains.cohort_options={patients: 16, size: 32}", "domains.size=32", "domains.rules=topology",
    "domains.fractions=[0.35, 0.15, 0.2, 0.15, 0.15]", "widths=[12, 24]", "pretrain.iterations=20",
    "prior.iterations=3", "prior.widths=[8, 16]", "prior.latent=4",
)  # fmt: skip


def composed(*overrides):
    with initialize_config_module("seggym.configs.adaptation", version_base="1.3"):
        config = compose("train_rl4seg", [*overrides, "out=nowhere"], return_hydra_config=False)
        return plain(config)


def command(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "agents" / script), *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_preset_is_a_run(experiment):
    """Of every group each key is known, and the seed reaches the split."""
    settings = run_settings(composed(f"experiment={experiment}", "seed=3"))
    assert settings.name == experiment
    assert settings.baselines == tuple(BASELINES)
    domains = domain_settings(settings)
    assert domains.domain_seed == 3
    groups = {"pairs": PairSettings, "reward": ErrorNetSettings, "ppo": PixelSettings, "prior": PriorSettings}
    for name, kind in groups.items():
        build(kind, getattr(settings, name), f"{name}.")
    halvings = 2 ** (len(settings.widths) - 1)
    assert domains.size % halvings == 0


def test_there_are_the_presets_that_the_documentation_names():
    assert {"phantom", "camus", "camus_views", "acdc"} <= set(EXPERIMENTS)


def test_stages_are_checked():
    assert stage_of("ppo") == "ppo"
    with pytest.raises(SeggymError, match="stage='pretain' is unknown; did you mean pretrain"):
        stage_of("pretain")


def test_a_stage_from_the_command_line(tmp_path):
    result = command("train_rl4seg.py", "experiment=phantom", "stage=pretrain", f"out={tmp_path / 'run'}", *TINY)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/0/actor/model.safetensors").is_file()
    assert (tmp_path / "run/config.yaml").is_file()
    assert not (tmp_path / "run/1").exists()
    wrong = command(
        "train_rl4seg.py", "experiment=phantom", "stage=pretrain", f"out={tmp_path / 'run'}", "seed=1", *TINY
    )
    assert wrong.returncode == 2
    assert "another data." in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("stage=al", "stage='al' is unknown"),
        ("domains.cohort=camus", "no camus data at"),
        ("domains.sise=64", "domains.sise"),
        ("seed=zero", "seed='zero' is a str, expected int"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, argument, said):
    result = command(
        "train_rl4seg.py", "experiment=camus", argument,
        f"out={tmp_path}", SEGGYM_CAMUS_ROOT=str(tmp_path / "none"),
    )  # fmt: skip
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_report_of_nothing_is_one_sentence(tmp_path):
    result = command("report_rl4seg.py", tmp_path)
    assert result.returncode == 2
    assert "holds no finished run" in result.stderr
