"""Training reward models on a few phantoms: determinism, resume, cross-fitting, files."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import load_file

from seggym.agents.train_reward_model import recipe
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.errors import SeggymError
from seggym.files import read_json, write_json
from seggym.kspace.acquisition import Acquisition
from seggym.reward_models import training, training_scans
from seggym.reward_models.checkpoints import open_reward_model, weights_hash
from seggym.reward_models.fitting import Plan, fit_reward_model
from seggym.reward_models.networks import build_network
from seggym.reward_models.slices import prepared_slices
from seggym.reward_models.training import Recipe, train_network
from seggym.reward_models.training_scans import Simulator

SCAN = Acquisition(matrix=48, crop=32)
RECIPE = Recipe(options={"widths": [4, 8]}, iterations=4, batch_size=3, validate_every=2, patience=0)
PHANTOMS = {"patients": 6, "test_patients": 1}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cohort(phantom_root):
    return open_cohort("phantom", **PHANTOMS)


@pytest.fixture(scope="module")
def stacks(cohort):
    split = split_cohort(cohort)
    return [prepared_slices(cohort, patients, SCAN) for patients in (split.train, split.val)]


def weights(network):
    return torch.cat([value.double().flatten() for value in network.state_dict().values()])


def test_same_seed_same_network(stacks, tmp_path):
    first, second, other = (
        train_network(replace(RECIPE, seed=seed), *stacks, SCAN, tmp_path / name, CPU)[0]
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_resume_after_a_kill_is_exact(stacks, tmp_path, monkeypatch):
    whole, _ = train_network(RECIPE, *stacks, SCAN, tmp_path / "whole", CPU)
    step, calls = training._Trainer._step, []

    def dying_step(self):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(training._Trainer, "_step", dying_step)
    with pytest.raises(KeyboardInterrupt):
        train_network(RECIPE, *stacks, SCAN, tmp_path / "parts", CPU)
    monkeypatch.setattr(training._Trainer, "_step", step)
    resumed, metrics = train_network(RECIPE, *stacks, SCAN, tmp_path / "parts", CPU)
    assert metrics["iterations"] == RECIPE.iterations
    assert torch.equal(weights(whole), weights(resumed))


def test_another_recipe_does_not_resume(stacks, tmp_path):
    train_network(RECIPE, *stacks, SCAN, tmp_path, CPU)
    with pytest.raises(SeggymError, match="another recipe"):
        train_network(replace(RECIPE, learning_rate=1e-4), *stacks, SCAN, tmp_path, CPU)


def test_patience_and_minutes_end_training(stacks, tmp_path, monkeypatch):
    monkeypatch.setattr(training._Trainer, "_validate", lambda self: setattr(self, "stale", self.stale + 1) or 0.0)
    long = replace(RECIPE, iterations=100, patience=2)
    assert train_network(long, *stacks, SCAN, tmp_path / "patience", CPU)[1]["iterations"] == 4
    late = replace(RECIPE, iterations=100, max_minutes=0.0)
    assert train_network(late, *stacks, SCAN, tmp_path / "late", CPU)[1]["iterations"] == 1


def test_augmented_labels_follow_their_images(stacks):
    """Images that *are* their labels stay so under every move: both are warped alike."""
    stack = stacks[0]
    scan = replace(SCAN, crop=SCAN.matrix, snr=None, phase=(0.0, 0.0), echo_shift=0.0)
    block = torch.zeros(1, scan.grid, scan.grid)
    low, high = round(0.3 * scan.grid), round(0.75 * scan.grid)
    block[:, low:high, low + 8 : high + 8] = 1.0
    shrunk = torch.nn.functional.interpolate(block[None], size=scan.crop, mode="nearest")[0]
    same = replace(
        stack, images=block.expand(len(stack), -1, -1), labels=shrunk.to(torch.uint8).expand(len(stack), -1, -1)
    )
    moved = training_scans._moved(same, torch.arange(12), scan, np.random.default_rng(3))
    seen = torch.nn.functional.interpolate(moved.images[:, None], size=scan.crop, mode="area")[:, 0] > 0.5
    overlap = (seen & (moved.labels > 0)).sum((1, 2)) / (seen | (moved.labels > 0)).sum((1, 2)).clamp_min(1)
    assert overlap.min() > 0.8
    assert not torch.equal(moved.labels[0], moved.labels[1])


def test_batches_differ_and_are_reproducible(stacks):
    one, two = (Simulator(stacks[0], SCAN, CPU, 5) for _ in range(2))
    images, labels = one.batch(4, True)
    again, same_labels = two.batch(4, True)
    assert torch.equal(images, again)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, one.batch(4, True)[0])


def test_cross_fitting_keeps_patients_apart(cohort, tmp_path):
    split = split_cohort(cohort)
    plan = Plan(RECIPE, replace(RECIPE, architecture="unext", options={"widths": [4, 4, 8, 8, 8]}), folds=2)
    scan = replace(SCAN, crop=32)
    fit_reward_model(tmp_path, cohort, split, scan, plan, CPU)
    model = open_reward_model(tmp_path)
    assert sorted(patient for fold in model.folds for patient in fold) == sorted(split.train)
    for fold, held_out in enumerate(model.folds):
        card = model.cards[f"fold{fold}"]
        assert not set(card.patients) & {*held_out, *split.val, *split.test}
        assert sorted([*card.patients, *held_out]) == sorted(split.train)
    assert sorted(model.cards["full"].patients) == sorted(split.train)
    assert model.cards["independent"].architecture == "unext"
    assert {model.network_for(patient, cohort.name) for patient in split.train} == {"fold0", "fold1"}
    assert {model.network_for(patient, cohort.name) for patient in (*split.val, *split.test)} == {"full"}
    assert set(model.cards["full"].metrics["test"]) == {"1", "2", "4", "8", "16"}

    # A second call finds everything done and changes nothing, also where the index is older than a field of the
    # acquisition; other data are refused.
    before = [weights_hash(tmp_path / name) for name in model.cards]
    index = read_json(tmp_path / "index.json", "index")
    del index["acquisition"]["coils"]
    write_json(tmp_path / "index.json", index)
    fit_reward_model(tmp_path, cohort, split, scan, plan, CPU)
    assert before == [weights_hash(tmp_path / name) for name in model.cards]
    with pytest.raises(SeggymError, match="other data"):
        fit_reward_model(tmp_path, replace(cohort, fingerprint="x"), split, scan, plan, CPU)
    for other in (replace(scan, snr=5.0), replace(scan, crop=16)):
        with pytest.raises(SeggymError, match="another acquisition"):
            fit_reward_model(tmp_path, cohort, split, other, plan, CPU)
    wider = replace(plan, recipe=replace(RECIPE, options={"widths": [4, 16]}))
    with pytest.raises(SeggymError, match="another recipe"):
        fit_reward_model(tmp_path, cohort, split, scan, wider, CPU)
    with pytest.raises(SeggymError, match="fold7"):
        fit_reward_model(tmp_path, cohort, split, scan, plan, CPU, members=["fold7"])


def test_nan_in_training_is_one_sentence(stacks, tmp_path):
    broken = replace(stacks[0], images=stacks[0].images * float("nan"))
    with pytest.raises(SeggymError, match="check-data"):
        train_network(RECIPE, broken, stacks[1], SCAN, tmp_path, CPU)


@pytest.mark.slow
def test_torchrun_trains_one_network_on_two_processes(tmp_path, phantom_root):
    """Both processes end with the same parameters, and the file holds the buffers of process 0."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29533"]
    command += ["tests/reward_models/keep_ranks.py", str(tmp_path)]
    command += ["cohort=phantom", f"output={tmp_path}/model", "folds=0"]
    command += ["independent=null", "reward_model=unet_small", "training.iterations=4", "training.batch_size=2"]
    # One validation, at the end, so that what is saved is what the processes ended with.
    command += ["+cohort.options.patients=6", "+cohort.options.test_patients=1", "training.validate_every=4"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    card = json.loads((tmp_path / "model" / "full" / "model.json").read_text())
    assert card["metrics"]["iterations"] == 4
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    parameters = [name for name, _ in build_network(card["architecture"], 4, **card["options"]).named_parameters()]
    for part in ("network", "averaged"):
        assert all(torch.equal(first[part][name], second[part][name]) for name in parameters)
        # Each process normalises its own batch, so the running means tell the two apart.
        assert not all(torch.equal(value, second[part][name]) for name, value in first[part].items())
    saved = load_file(tmp_path / "model" / "full" / "model.safetensors")
    assert set(saved) == set(first["averaged"])
    assert all(torch.equal(value, saved[name]) for name, value in first["averaged"].items())


def test_a_record_of_an_earlier_version_lacks_what_had_no_name_then():
    record = replace(RECIPE, iterations=7).as_dict()
    del record["start"], record["start_member"]
    assert replace(RECIPE, iterations=7).made(record)
    assert not RECIPE.made(record)
    assert not replace(RECIPE, iterations=7, start="phantom").made(record)
    assert not RECIPE.made(None)


def test_a_network_starts_from_another(cohort, tmp_path):
    split = split_cohort(cohort)
    tiny = replace(RECIPE, iterations=1, validate_every=1)
    fit_reward_model(tmp_path / "first", cohort, split, SCAN, Plan(tiny, None, folds=0), CPU)
    start = open_reward_model(tmp_path / "first").full
    kept = replace(tiny, start=str(start), learning_rate=1e-12, weight_decay=0.0, average=0.0, seed=5)
    fit_reward_model(tmp_path / "second", cohort, split, SCAN, Plan(kept, None, folds=0), CPU)
    before, after = (load_file(tmp_path / name / "full" / "model.safetensors") for name in ("first", "second"))
    learned = [name for name in before if "running" not in name and "batches" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learned)
    with pytest.raises(SeggymError, match="another architecture, other options"):
        train_network(
            replace(kept, options={"widths": [4, 16]}),
            *(prepared_slices(cohort, patients, SCAN) for patients in (split.train, split.val)),
            SCAN,
            tmp_path / "third",
            CPU,
        )


def test_a_start_that_has_seen_who_is_held_out_is_refused(cohort, tmp_path):
    split = split_cohort(cohort)
    tiny = replace(RECIPE, iterations=1, validate_every=1)
    fit_reward_model(tmp_path / "first", cohort, split, SCAN, Plan(tiny, None, folds=0), CPU)
    plan = Plan(replace(tiny, start=str(tmp_path / "first")), None, folds=2)
    with pytest.raises(SeggymError, match="was trained on"):
        fit_reward_model(tmp_path / "second", cohort, split, SCAN, plan, CPU, ["fold0"])


def test_net_b_may_be_trained_otherwise():
    with initialize_config_module("seggym.configs", version_base="1.3"):
        config = compose("train_reward_model", ["+experiment=phantom_points", "training.learning_rate=1e-3"])
        net_a, net_b = recipe(config, config.reward_model), recipe(config, config.independent)
        assert (net_a.iterations, net_b.iterations) == (600, 2400)
        assert net_a.learning_rate == net_b.learning_rate == 1e-3
        config = compose("train_reward_model", ["+independent.training.steps=3"])
        with pytest.raises(SeggymError, match=r"independent\.training\.steps is unknown"):
            recipe(config, config.independent)
