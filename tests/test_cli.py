"""The ``seggym`` command: exit codes, sentences and files."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from seggym import speed_check
from seggym.agents.models import TrainSettings, make_model
from seggym.agents.snapshots import save_snapshot
from seggym.cli import main
from seggym.cohorts import acdc
from seggym.envs import ENVIRONMENTS
from seggym.reward_models import precision
from seggym.reward_models.checkpoints import PACKAGED

PHANTOMS = {"cohort_options": {"patients": 6, "test_patients": 2}}


def run(capsys, *arguments):
    """Exit code and what was printed."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_envs_lists_every_id(capsys):
    code, out, _ = run(capsys, "envs")
    assert code == 0
    for name in ENVIRONMENTS:
        assert name in out
    assert "Discrete(160)" in out
    assert "uint8 (1, 96, 96)" in out


@pytest.fixture(autouse=True)
def _short_speed_check(monkeypatch):
    monkeypatch.setattr(speed_check, "SECONDS", 0.02)


def test_doctor_says_what_it_found(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path))
    monkeypatch.setenv("SEGGYM_ACDC_ROOT", str(acdc.write_example(tmp_path / "acdc")))
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for word in ("device:", "precision=auto:", "threads:", "gymnasium", str(tmp_path), "KSpaceSeg-ACDC-v0", "Advice"):
        assert word in out
    assert f"acdc: {tmp_path / 'acdc'}" in out
    speed = re.search(r"16 at once, fp32: (\d+) image-steps per second\n.* takes (\d+)% of the time of a step", out)
    assert speed is not None
    assert int(speed[1]) > 0
    assert int(speed[2]) > 0


def test_doctor_says_which_reward_model_a_name_means(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path))
    assert "independent; comes with seggym" in run(capsys, "doctor")[1]
    published = shutil.copytree(PACKAGED["phantom"], tmp_path / "reward_models" / "phantom")
    assert f"independent; published in {published}" in run(capsys, "doctor")[1]


def test_doctor_says_which_precision_auto_is_and_why(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "native_precision", lambda device: "bf16")
    assert re.search(r"full: bf16, because bf16 changes \d+% of 96 greedy choices", run(capsys, "doctor")[1])
    published = shutil.copytree(PACKAGED["phantom"], tmp_path / "reward_models" / "phantom")
    (published / "full" / "precision.json").unlink()
    (published / "fold0" / "precision.json").write_text("{")
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "full: fp32, because there is no record" in out
    assert f"full of {published} would be faster in bf16: the command that trained" in out
    assert f"fold0: precision record {published / 'fold0' / 'precision.json'} is not readable JSON" in out
    assert "fold1: bf16" in out
    monkeypatch.setattr(precision, "native_precision", lambda device: "fp32")
    assert "full: fp32, because the cpu has no native bf16" in run(capsys, "doctor")[1]


def test_doctor_goes_on_where_the_speed_cannot_be_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path))
    published = shutil.copytree(PACKAGED["phantom"], tmp_path / "reward_models" / "phantom")
    (published / "index.json").write_text("{")
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert f"not measured: index of a reward model {published / 'index.json'} is not readable JSON" in out
    assert "Advice" in out


def test_doctor_advises_on_threads(capsys, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    assert "more threads than cores" in run(capsys, "doctor")[1]


def test_doctor_measures_the_caches(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path))
    (tmp_path / "cache" / "mine").mkdir(parents=True)
    (tmp_path / "cache" / "mine" / "entry").write_bytes(bytes(2_500_000))
    assert "cache of mine: 2.5 MB in 1 files" in run(capsys, "doctor")[1]


def test_doctor_names_missing_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGGYM_ACDC_ROOT", str(tmp_path / "nowhere"))
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert f"nothing at {tmp_path / 'nowhere'}" in out
    assert "set SEGGYM_ACDC_ROOT" in out


def test_check_data(capsys, tmp_path):
    root = acdc.write_example(tmp_path / "acdc")
    code, out, _ = run(capsys, "check-data", root)
    assert code == 0
    assert "2 patients, 4 volumes, no problem found" in out
    broken = next(root.glob("patient001/*_gt.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:100])
    code, out, _ = run(capsys, "check-data", root)
    assert code == 2
    assert broken.name in out
    code, _, err = run(capsys, "check-data", root, "--num-classes", 1)
    assert code == 2
    assert err.startswith("error: num_classes is 1")


def test_convert(capsys, tmp_path):
    root = acdc.write_example(tmp_path / "acdc")
    code, out, _ = run(capsys, "convert", root, tmp_path / "png")
    assert code == 0
    assert "4 volumes" in out
    assert len(list((tmp_path / "png" / "patient001").rglob("*.png"))) == 2 * 2 * 3
    code, _, err = run(capsys, "convert", root, tmp_path / "png")
    assert code == 2
    assert "is not an empty folder" in err


@pytest.mark.parametrize("policy", ["random", "centre_out", "energy_following"])
def test_render_a_baseline(capsys, tmp_path, policy):
    out = tmp_path / "episode.gif"
    arguments = ("render", "KSpaceRecon-Phantom-v0", "--policy", policy, "--budget", 4, "--out", out)
    code, printed, _ = run(capsys, *arguments, "--kwargs", json.dumps(PHANTOMS))
    assert code == 0
    assert f"{policy}, 7 of 128 lines" in printed
    with Image.open(out) as picture:
        assert picture.format == "GIF"
        assert picture.n_frames == 5
        picture.seek(0)
        first = np.asarray(picture.convert("RGB"))
        picture.seek(4)
        last = np.asarray(picture.convert("RGB"))
    assert first.shape == last.shape
    assert (first != last).any()


def test_render_is_reproducible_and_png_is_the_last_state(capsys, tmp_path):
    pictures = []
    for seed, name in ((3, "one.png"), (3, "two.png"), (4, "three.png")):
        arguments = ("render", "seggym:KSpaceRecon-Phantom-v0", "--seed", seed, "--budget", 3, "--out", tmp_path / name)
        assert run(capsys, *arguments, "--kwargs", json.dumps(PHANTOMS))[0] == 0
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            pictures.append(np.asarray(picture))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()


def test_render_an_external_policy(capsys, tmp_path, monkeypatch):
    (tmp_path / "my_cli_agent.py").write_text("def first(observation, mask):\n    return mask.argmax(1)\n")
    monkeypatch.chdir(tmp_path)
    arguments = ("render", "KSpaceRecon-Phantom-v0", "--policy", "my_cli_agent:first", "--budget", 2, "--out", "a.png")
    code, printed, _ = run(capsys, *arguments, "--kwargs", json.dumps(PHANTOMS))
    assert code == 0
    assert "5 of 128 lines" in printed
    spokes = {"acquisition": {"matrix": 64, "crop": 48, "trajectory": "radial", "spokes": 16}}
    assert "5 of 16 spokes" in run(capsys, *arguments, "--kwargs", json.dumps({**PHANTOMS, **spokes}))[1]


def test_render_a_snapshot(capsys, tmp_path):
    """It brings its own environment; what it was trained with (role, sampler) is left behind."""
    settings = TrainSettings(
        run_dir="",
        env_id="KSpaceRecon-Phantom-v0",
        env_kwargs={**PHANTOMS, "acquisition": {"matrix": 32, "crop": 32}, "budget": [2, 5]},
        algorithm="maskable_ppo",
        hyperparameters={},
        network={"extractor": "dict", "extractor_kwargs": {}, "net_arch": [16], "activation": "relu"},
        num_envs=2,
        device="cpu",
    )
    model = make_model(settings)
    engine = model.env.batch.engine
    facts = {name: getattr(settings, name) for name in ("algorithm", "network", "env_id", "seed")}
    kwargs = {**settings.env_kwargs, "role": "train", "train_sampler_filename": str(tmp_path / "gone.npz")}
    sizes = {"num_lines": engine.num_lines, "num_classes": engine.stack.num_classes}
    data = {"cohort": "phantom", "patients": sorted(set(engine.stack.patients)), "data_fingerprint": "0"}
    rest = {"env_kwargs": kwargs, "reward_model_hash": None, **data, "metrics": {}}
    save_snapshot(tmp_path / "run" / "best", model, {**facts, **sizes, **rest})
    arguments = ("--snapshot", tmp_path / "run", "--out", tmp_path / "a.gif", "--budget", 4)
    code, printed, err = run(capsys, "render", "KSpaceRecon-Phantom-v0", *arguments)
    assert code == 0, err
    assert "7 of 32 lines" in printed
    code, _, err = run(capsys, "render", "KSpaceRecon-Phantom-v0", *arguments, "--kwargs", '{"role": "train"}')
    assert code == 2
    assert "role=train" in err
    code, _, err = run(capsys, "render", "KSpaceSeg-Phantom-v0", *arguments)
    assert code == 2
    assert "was trained in KSpaceRecon-Phantom-v0" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("KSpaceRecon-Phantom-v0", "--policy", "clever", "--out", "a.gif"), "is no baseline (random, "),
        (("KSpaceRecon-Phantom-v0", "--out", "a.mp4"), "must end in .gif"),
        (("KSpaceRecon-Phantom-v0", "--out", "a.gif", "--kwargs", "{role: test}"), "--kwargs is not JSON"),
        (("KSpaceRecon-Phantom-v0", "--out", "a.gif", "--kwargs", "[1]"), "holds a list"),
        (("KSpaceRecon-Phantom-v0", "--out", "a.gif", "--budget", "126"), "budget=126 must lie in 1..125"),
        (("KSpaceRecon-Phantom-v0", "--out", "a.gif", "--kwargs", '{"colour": 1}'), "does not take these arguments"),
        (("KSpaceSeg-Nobody-v0", "--out", "a.gif"), "is not registered"),
        (
            ("KSpaceRecon-ACDC-v0", "--out", "a.gif", "--kwargs", '{"data_root": "/nowhere"}'),
            "no acdc data at /nowhere",
        ),
        (("KSpaceRecon-Phantom-v0", "--snapshot", "/nowhere", "--out", "a.gif"), "/nowhere"),
    ],
)
def test_render_mistakes_are_one_sentence(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "render", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())
