"""The entry point on real files: a snapshot, a reward model of untrained networks, and the sentences for bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import seggym
from seggym.agents.algorithms.networks import find_algorithm
from seggym.agents.eval_asmr import run
from seggym.agents.evaluation import open_bench
from seggym.agents.models import TrainSettings
from seggym.agents.snapshots import load_policy
from seggym.agents.training import train
from seggym.errors import SeggymError
from seggym.filming import film
from seggym.reward_models.checkpoints import ModelCard, save_network, weights_hash
from seggym.reward_models.networks import build_network

RECON = "KSpaceRecon-Phantom-v0"
SEG = "KSpaceSeg-Phantom-v0"
PHANTOMS = {"patients": 6, "test_patients": 2}
SMALL = {"cohort_options": PHANTOMS, "acquisition": {"matrix": 40, "crop": 32}, "device": "cpu"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path / "home"))


def values(**changes):
    """The values of configs/eval_asmr.yaml, quick, with ``changes``."""
    with initialize_config_module("seggym.configs", version_base="1.3"):
        content = OmegaConf.to_container(compose("eval_asmr"))
    quick = {"eval_range": [1, 2], "baselines": ["random", "centre_out"], "progress_bar": False, "surface_budgets": []}
    assert set(changes) - {"env"} <= set(content)
    return {**content, **quick, **changes}


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory) -> list[Path]:
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("runs") / f"seed{seed}"
        settings = TrainSettings(
            run_dir=str(folder),
            env_id=RECON,
            env_kwargs={**SMALL, "observation": ["image", "acquired", "budget"], "budget": 2},
            algorithm="maskable_ppo",
            hyperparameters={"n_steps": 4, "batch_size": 8, "n_epochs": 1},
            network={"extractor": "dict", "extractor_kwargs": {}, "net_arch": [8], "activation": "tanh"},
            seed=seed,
            total_steps=8,
            num_envs=2,
            eval_every=0,
            checkpoint_every=0,
        )
        train(settings)
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A function that makes a reward model of untrained networks; ``seen`` are the patients of the independent one."""
    folder = tmp_path_factory.mktemp("reward_model")

    def make(seen: tuple[str, ...] = ()) -> str:
        torch.manual_seed(0)
        for name, patients in (("full", ()), ("independent", seen)):
            network = build_network("unet", 4)
            names = ["background", "RV", "myocardium", "LV"]
            card = ModelCard("unet", {}, 4, names, "segmentation", 32, list(patients), "phantom", "none")
            save_network(folder / name, network, card)
        index = {"folds": [], "cohort": "phantom", "fingerprint": "none", "acquisition": {}}
        (folder / "index.json").write_text(json.dumps(index))
        return str(folder)

    return make


def test_a_snapshot_is_evaluated_in_its_own_environment(snapshots):
    table = run(values(load_from_snapshot_base_dir=str(snapshots[0])))
    assert "maskable_ppo" in table
    content = json.loads((snapshots[0] / "evaluation.json").read_text())
    assert content["env_id"] == RECON
    assert content["settings"]["acquisition"]["matrix"] == 40
    assert len(content["patients"]) == 2
    assert (snapshots[0] / "report.html").is_file()
    stored = sorted((snapshots[0] / "evaluation_cache").iterdir())
    times = [path.stat().st_mtime_ns for path in stored]
    run(values(load_from_snapshot_base_dir=str(snapshots[0])))
    assert [path.stat().st_mtime_ns for path in sorted((snapshots[0] / "evaluation_cache").iterdir())] == times


def test_seeds_are_aggregated(snapshots, tmp_path):
    run(values(load_from_snapshot_base_dir=[str(folder) for folder in snapshots], output=str(tmp_path)))
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["policies"][0]["name"] == "maskable_ppo"
    assert content["policies"][0]["runs"] == 2


def test_both_networks_score_and_surfaces_are_there(reward_model, tmp_path):
    model = reward_model()
    env = {"id": SEG, "kwargs": SMALL}
    options = {"reward_model_dir": model, "surface_budgets": [2], "max_slices": 2, "window": 2, "baselines": None}
    run(values(env=env, output=str(tmp_path), **options))
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert {row["net"] for row in content["results"]} == {"A", "B", "image"}
    assert {"full", "independent"} <= set(content["provenance"]["weights"])
    assert len(content["policies"]) == 10


def test_patients_that_net_b_was_trained_on_are_refused(reward_model):
    bench = open_bench(SEG, {**SMALL, "reward_model": reward_model()})
    seen = bench.stack.patients[0]
    with pytest.raises(SeggymError, match=f"was trained on {seen}"):
        open_bench(SEG, {**SMALL, "reward_model": reward_model((seen,))})


@pytest.fixture(scope="module")
def watching(tmp_path_factory) -> tuple[Path, list[str]]:
    """The run of a policy that observes features, and the folders of its reward model and of a foreign one."""
    base = tmp_path_factory.mktemp("watching")
    names = ["background", "RV", "myocardium", "LV"]
    models = [str(base / name) for name in ("own", "foreign")]
    for seed, folder in enumerate(models):
        torch.manual_seed(seed)
        card = ModelCard("unet", {"widths": [4, 4]}, 4, names, "segmentation", 32, [], "phantom", "none")
        save_network(folder, build_network("unet", 4, widths=[4, 4]), card)
    settings = TrainSettings(
        run_dir=str(base / "run"),
        env_id=SEG,
        env_kwargs={**SMALL, "observation": ["features", "acquired"], "budget": 2, "reward_model": models[0]},
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 4, "batch_size": 8, "n_epochs": 1},
        network={"extractor": "dict", "extractor_kwargs": {}, "net_arch": [8], "activation": "tanh"},
        total_steps=8,
        num_envs=2,
        eval_every=0,
        checkpoint_every=0,
    )
    return train(settings), models


def test_a_policy_that_observes_a_network_is_evaluated_with_that_network(watching):
    folder, (own, foreign) = watching
    moved = shutil.copytree(own, folder.parent / "moved")
    options = {"load_from_snapshot_base_dir": str(folder), "baselines": []}
    assert "maskable_ppo" in run(values(reward_model_dir=str(moved), **options))
    hashes = [weights_hash(model) for model in (own, foreign)]
    sentence = rf"observes features.*weights {hashes[0]}, but {foreign} has {hashes[1]}: pass the reward model"
    with pytest.raises(SeggymError, match=sentence):
        run(values(reward_model_dir=foreign, **options))
    with pytest.raises(SeggymError, match=sentence):
        film(SEG, str(folder), folder / "a.png", env_kwargs={"reward_model": foreign})


def test_patients_that_a_policy_was_trained_on_are_refused(snapshots, tmp_path):
    """By role and, with another split, by name; the environment needs no reward model to know them."""
    card = load_policy(snapshots[0]).card
    bench = open_bench(RECON, SMALL)
    trained = bench.provenance["split"]["train"]
    assert (card["cohort"], card["patients"]) == ("phantom", trained)
    for role in ("train", "all"):
        with pytest.raises(SeggymError, match=rf"was trained on {len(trained)} of .*role={role}"):
            run(values(load_from_snapshot_base_dir=str(snapshots[0]), role=role, baselines=[]))
        with pytest.raises(SeggymError, match=f"role={role}"):
            seggym.evaluate(snapshots[0], role=role, eval_range=[1, 1], progress=False)
    split = tmp_path / "split.json"
    others = bench.provenance["split"]["test"] + bench.provenance["split"]["val"]
    split.write_text(json.dumps({"train": [*trained[1:], *others[1:]], "val": [], "test": [trained[0], others[0]]}))
    with pytest.raises(SeggymError, match=f"was trained on 1 of the 2 patients.*{trained[0]} is one"):
        seggym.evaluate(snapshots[0], split=str(split), eval_range=[1, 1], progress=False)
    seggym.evaluate(snapshots[0], role="val", eval_range=[1, 1], progress=False)


def test_a_network_b_that_is_network_a_is_refused(reward_model, tmp_path):
    model = Path(reward_model())
    kwargs = {**SMALL, "reward_model": str(model)}
    other = str(model / "independent")
    assert open_bench(SEG, kwargs, net_b=other).provenance["weights"] == open_bench(SEG, kwargs).provenance["weights"]
    same = shutil.copytree(model / "full", tmp_path / "same")
    for net_b in (str(model), str(same)):
        with pytest.raises(SeggymError, match=rf"net_b=.* has the weights {weights_hash(same)}.*{model / 'full'}"):
            open_bench(SEG, kwargs, net_b=net_b)
    whole = shutil.copytree(model, tmp_path / "whole")
    shutil.copytree(same, whole / "independent", dirs_exist_ok=True)
    with pytest.raises(SeggymError, match="those of"):
        open_bench(SEG, {**SMALL, "reward_model": str(whole)})


def test_a_reconstruction_is_known_by_its_weights_not_by_its_path(tmp_path):
    """A cached result must not outlive a change of the network, and may follow it to another folder."""

    def key(name: str, seed: int) -> dict:
        torch.manual_seed(seed)
        card = ModelCard("unet", {"widths": [4, 4]}, 1, [], "reconstruction", 32, [], "phantom", "none")
        save_network(tmp_path / name, build_network("unet", 1, widths=[4, 4]), card)
        chosen = {"method": "network", "folder": str(tmp_path / name)}
        return open_bench(RECON, {**SMALL, "reconstruction": chosen}).key

    first = key("a", 0)
    assert key("b", 0) == first
    assert key("a", 1) != first
    assert first != open_bench(RECON, SMALL).key
    assert open_bench(RECON, {**SMALL, "reconstruction": "pocs"}).key != open_bench(RECON, SMALL).key


def test_one_line_for_anybody(snapshots):
    result = seggym.evaluate(snapshots[0], eval_range=[1, 1], progress=False)
    assert [policy.kind for policy in result.policies] == ["policy", "ceiling"]
    first = seggym.evaluate(lambda observation, mask: mask.argmax(1), RECON, eval_range=[1, 1], progress=False, **SMALL)
    assert first.policies[0].runs[0]["lines"].tolist() == [[0]] * len(first.cases)
    assert "area of SSIM" in first.table()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"load_from_snapshot_base_dir": "/nowhere"}, "/nowhere"),
        ({}, "environment is missing"),
        ({"load_from_snapshot_base_dir": "x", "policy": "a:b"}, "both set"),
        ({"env": {"id": RECON, "kwargs": SMALL}, "baselines": []}, "nothing to evaluate"),
        ({"env": {"id": RECON, "kwargs": SMALL}, "baselines": ["none"]}, "unknown"),
        ({"env": {"id": RECON, "kwargs": SMALL}, "eval_range": [2, 1]}, "eval_range"),
        ({"env": {"id": RECON, "kwargs": {"colour": 1}}}, "colour"),
        ({"env": {"id": SEG, "kwargs": {**SMALL, "reward_model": "/nowhere"}}}, "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence(changes, sentence):
    with pytest.raises(SeggymError, match=sentence):
        run(values(**changes))


def test_datadir_replaces_the_folder_that_a_run_knew(phantom_root, tmp_path):
    env = {"id": RECON, "kwargs": {**SMALL, "root": "/of/another/machine"}}
    run(values(env=env, datadir=str(phantom_root), baselines=["centre_out"], output=str(tmp_path)))
    assert json.loads((tmp_path / "evaluation.json").read_text())["settings"]["data_root"] == str(phantom_root)


def test_a_snapshot_of_another_environment_is_refused(snapshots):
    with pytest.raises(SeggymError, match="was trained in"):
        run(values(load_from_snapshot_base_dir=str(snapshots[0]), env={"id": SEG, "kwargs": {}}))
    with pytest.raises(SeggymError, match="was trained in"):
        seggym.evaluate(snapshots[0], SEG)


def test_the_environments_are_registered():
    assert {RECON, SEG} <= set(gymnasium.registry)
    assert find_algorithm("maskable_ppo")


def test_the_command_line_shows_one_sentence_and_ends_with_2():
    root = Path(seggym.__file__).parents[1]
    command = [sys.executable, "agents/eval_asmr.py", "load_from_snapshot_base_dir=/nowhere"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
