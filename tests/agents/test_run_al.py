"""The loop of active learning: results, budgets, labels, bad input."""

import json

import numpy as np
import pytest
import torch
from small_runs import PHANTOMS, TINY_UNET, quiet, run, small_run

from seggym.agents.al import loop
from seggym.agents.al.settings import PolicySettings, sample_counts
from seggym.agents.al.trial import open_trial
from seggym.agents.selection_comparison import compare_selection, selection_text
from seggym.agents.selection_results import load_selection
from seggym.agents.strategies import STRATEGIES
from seggym.envs.selection.engine import SelectionEngine
from seggym.errors import SeggymError

# --- results ----------------------------------------------------------------------------------------------------------


def test_what_a_run_writes_is_what_it_did(tmp_path, encoder):
    said = []
    settings = small_run(tmp_path, encoder, "entropy")
    result = loop.run(settings, said.append)
    assert result.samples.tolist() == [3, 5, 8]
    assert [len(names) for names in result.selected[0]] == [3, 2, 3]
    flat = [name for names in result.selected[0] for name in names]
    assert len(set(flat)) == 8
    # A mask covers every pixel of its slice; minutes: three a slice, one for every volume that is opened.
    assert result.pixels[0].tolist() == [count * 32 * 32 for count in (3, 5, 8)]
    opened = [len({name.rpartition("_slice_")[0] for name in flat[:count]}) for count in (3, 5, 8)]
    assert result.cost[0].tolist() == [3.0 * count + volumes for count, volumes in zip((3, 5, 8), opened, strict=True)]
    assert load_selection(tmp_path / "selection.json").selected == result.selected
    assert any("8 slices" in line and "8,192 annotated pixels" in line for line in said)


def test_scores_are_dice_of_volumes(tmp_path, encoder):
    """Against predictions upsampled and counted in numpy."""
    settings = small_run(tmp_path, encoder)
    result = loop.run(settings, quiet)
    trial = open_trial(settings)
    order = [trial.names.index(name) for names in result.selected[0] for name in names]
    engine = trial.engine
    loop._start(trial)
    for first, last in ((3, 5), (5, 8)):
        engine.annotate(0, torch.tensor(order[first:last]))
    scored = trial.scored["test"]
    believed = engine.learner.predict(torch.tensor([0]), scored.slices[None])[0].numpy().argmax(1)
    predicted, truth = np.kron(believed, np.ones((4, 4), int)), scored.labels.numpy()
    for volume in range(len(scored.names)):
        own = (scored.cases == volume).numpy()
        dice = [
            2
            * ((predicted[own] == k) & (truth[own] == k)).sum()
            / ((predicted[own] == k).sum() + (truth[own] == k).sum())
            for k in (1, 2, 3)
        ]
        assert result.dice[0, -1, volume] == pytest.approx(np.mean(dice), abs=1e-6)
    assert result.patients == tuple(name.rpartition("_")[0] for name in scored.names)
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 3 * (len(scored.names) + len(trial.scored["reward"].names))


def test_strategies_of_a_seed_share_round_0_and_the_whole_pool(tmp_path, encoder, home, monkeypatch):
    begun = []
    begin = SelectionEngine.begin
    monkeypatch.setattr(SelectionEngine, "begin", lambda self, *given: begun.append(1) or begin(self, *given))
    first = run(tmp_path / "a", encoder, "random", model=TINY_UNET)
    again = run(tmp_path / "b", encoder, "entropy", model=TINY_UNET)
    longer = run(tmp_path / "c", encoder, "margin", model=TINY_UNET, policy={"budgets": [3, 20]})
    assert len(begun) == 1
    for other in (again, longer):
        assert other.selected[0][0] == first.selected[0][0]
        assert np.array_equal(other.dice[0, 0], first.dice[0, 0])
        assert np.array_equal(other.full, first.full)
    other_seed = run(tmp_path / "d", encoder, "random", model=TINY_UNET, seed=1)
    assert len(begun) == 2
    assert other_seed.selected[0][0] != first.selected[0][0]
    assert np.array_equal(other_seed.full, first.full)
    assert len(list((home / "cache" / "al").glob("*.json"))) == 1


def test_seeds_and_strategies_are_compared(tmp_path, encoder):
    strategies = {"random": "random", "k": {"type": "kcenter"}, "pixels": {"type": "kcenter", "features": "pixels"}}
    runs = [tmp_path / name / f"seed{seed}" for name in strategies for seed in (0, 1)]
    for folder in runs:
        run(folder, encoder, strategies[folder.parent.name], seed=int(folder.name[-1]))
    table = compare_selection([folder / "selection.json" for folder in runs])
    assert table.names == ("random", "kcenter (features=embeddings)", "kcenter (features=pixels)")
    assert table.results[0].seeds == (0, 1)
    assert len(selection_text(table).splitlines()) > 10
    run(tmp_path / "other", encoder, "margin", model={"learner": "probe", "ann_type": "scribble"})
    with pytest.raises(SeggymError, match=r"annotation\.ann_type"):
        compare_selection([tmp_path / name / "selection.json" for name in ("random/seed0", "other")])


# --- budgets and labels -----------------------------------------------------------------------------------------------


QUICK = {
    "coreclr": {"steps": 2, "groups_per_batch": 2, "size": 16, "features": 4, "projection": 4},
    "vaal": {"steps": 2, "batch": 4, "size": 8},
    "coregcn": {"epochs": 3},
}


@pytest.mark.parametrize("name", sorted(name for name, kind in STRATEGIES.items() if not kind.privileged))
def test_no_strategy_sees_a_label_that_is_not_annotated(tmp_path, encoder, monkeypatch, name):
    """All labels outside round 0 are made others; what is chosen next stays."""
    chooser, policy = {"type": name, **QUICK.get(name, {})}, {"budgets": [4, 9], "full": False}
    expected = run(tmp_path / "true", encoder, chooser, policy=policy).selected[0]
    trial = open_trial(small_run(tmp_path / "true", encoder, chooser, policy=policy))
    oracle = trial.engine.oracle
    known = [trial.names.index(sample) for sample in expected[0]]
    other = np.array([sample for sample in range(len(trial.names)) if sample not in known])
    for attribute in ("_masks", "_targets", "_lessons"):
        poisoned = getattr(oracle, attribute).clone()
        poisoned[other] = poisoned[np.roll(other, 7)]
        monkeypatch.setattr(oracle, attribute, poisoned)
    assert run(tmp_path / "poisoned", encoder, chooser, policy=policy).selected[0] == expected


@pytest.mark.parametrize(
    ("policy", "pool", "expected"),
    [
        ({"budgets": [0.07, 0.29, 1.0]}, 100, [7, 29, 100]),  # not 6.999... and 28.999...
        ({"budgets": [0.01, 0.02]}, 199, [1, 3]),  # as CoreCLR, rounded down
        ({"budgets": [4, 9]}, 10, [4, 9]),
        ({"initial": 5, "queries": 3, "per_query": 2}, 20, [5, 7, 9, 11]),
    ],
)
def test_budgets_are_cumulative(policy, pool, expected):
    assert sample_counts(PolicySettings(**policy), pool) == expected


def test_labels_outside_the_pool_are_paid_for():
    assert sample_counts(PolicySettings(budgets=[0.3, 0.5]), 100, counted=20) == [10, 30]
    assert sample_counts(PolicySettings(queries=2, per_query=3), 100, given=7) == [7, 10, 13]


@pytest.mark.parametrize(
    ("policy", "more", "said"),
    [
        ({"budgets": [5, 30]}, {}, "30 samples, but the pool has 20"),
        ({"initial": 10, "queries": 4, "per_query": 3}, {}, "22 samples, but the pool has 20"),
        ({"budgets": [0.1, 0.12]}, {}, "round 1 has 2 samples and round 0 has 2"),
        ({"budgets": [0.01, 0.5]}, {}, "leaves 0 of 20"),
        ({"budgets": [0.5, 0.9]}, {"counted": 12}, "after the 12 labels of validation"),
        ({"budgets": [1.5]}, {}, "shares between 0 and 1"),
        ({"budgets": ["many"]}, {}, "list of shares"),
        ({"budgets": [5], "queries": 2}, {}, "one of the two"),
        ({"queries": 2}, {}, "policy needs budgets"),
        ({"budgets": [5, 10]}, {"given": 4}, "expected 4, the images that are labelled"),
    ],
)
def test_budgets_that_cannot_be_are_one_sentence(policy, more, said):
    with pytest.raises(SeggymError, match=said):
        sample_counts(PolicySettings(**policy), 20, **more)


def test_labels_of_validation_are_counted(tmp_path, encoder):
    model = {**TINY_UNET, "weights": "best", "validate_every": 1}
    given = run(tmp_path / "given", encoder, "random", model=model)
    trial = open_trial(small_run(tmp_path / "given", encoder, "random", model=model))
    slices = len(trial.scored["reward"].slices)
    assert any(f"{slices} labelled slices of validation are given" in note for note in trial.notes)
    policy = {"budgets": [slices + 3, slices + 5, slices + 8], "validation_labels": "counted"}
    counted = run(tmp_path / "counted", encoder, "random", model=model, policy=policy)
    assert counted.samples.tolist() == [slices + 3, slices + 5, slices + 8]
    assert counted.selected == given.selected
    assert np.array_equal(counted.dice, given.dice)
    assert (counted.pixels - given.pixels == slices * 32 * 32).all()
    volumes = len(trial.scored["reward"].names)
    assert np.allclose(counted.cost - given.cost, 3 * slices + volumes)


def test_the_best_weights_are_those_that_validate_best(tmp_path, encoder):
    """One trajectory of weights, whether or not it is watched: random numbers are the same."""
    model = {"learner": "unet", "options": {"iterations": 6, "batch": 4, "widths": [4, 8], "learning_rate": 0.03}}
    watched = {"last": {}, "only the last": {"validate_every": 99}, "every one": {"validate_every": 1}}
    found = {}
    for name, more in watched.items():
        best = {"weights": "best", **more} if more else {}
        run(tmp_path / name, encoder, "random", model={**model, **best}, policy={"budgets": [3, 5], "full": False})
        scores = [json.loads((tmp_path / name / f"round_{n}" / "scores.json").read_text()) for n in (0, 1)]
        found[name] = [(score["val"], score["test"]) for score in scores]
    assert found["only the last"] == found["last"]
    quality = {name: [np.nanmean(np.array(val["dice"], float)) for val, _ in found[name]] for name in found}
    assert all(a >= b - 1e-6 for a, b in zip(quality["every one"], quality["last"], strict=True))
    assert max(np.subtract(quality["every one"], quality["last"])) > 0.001


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, [8, 8, 8]),
        ({"iterations_by": "fraction"}, "share"),
        ({"iterations_by": "epochs"}, [8 * 1, 8 * 2, 8 * 2]),  # batches of 4
        ({"first_iterations": 5}, [5, 8, 8]),
    ],
)
def test_iterations_are_fixed_or_grow(tmp_path, encoder, model, expected):
    options = {"iterations": 8, "batch": 4, "widths": [4, 8]}
    trial = open_trial(small_run(tmp_path, encoder, model={**TINY_UNET, "options": options, **model}))
    if expected == "share":
        expected = [max(1, int(8 * count / len(trial.names))) for count in (3, 5, 8)]
    assert [trial.iterations_of(number, trial.iterations) for number in range(3)] == expected


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strategy": "entropi"}, "did you mean entropy"),
        ({"strategy": {"type": "bald", "member": 3}}, "did you mean members"),
        ({"data_geometry": {"type": "kcenter"}}, "data_geometry and model_uncertainty are both set"),
        ({"model": {"learner": "probe", "weights": "best"}}, "closed form"),
        ({"model": {"learner": "unet", "weights": "bst"}}, "did you mean best"),
        ({"policy": {"budgets": [3, 5000]}}, "but the pool has"),
        ({"data": {"sise": 32}}, "data.sise is unknown"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, encoder, changed, said):
    with pytest.raises(SeggymError, match=said):
        open_trial(small_run(tmp_path, encoder, **changed))


def test_a_class_that_round_0_misses_is_said(tmp_path, encoder):
    """The first slice of this seed has no foreground."""
    said = []
    for seed in range(30):
        settings = small_run(tmp_path / str(seed), encoder, seed=seed, policy={"budgets": [1, 2], "full": False})
        loop.run(settings, said.append)
        scores = json.loads((tmp_path / str(seed) / "round_0" / "scores.json").read_text())
        missing = [name for name, count in scores["pixels_by_class"].items() if not count]
        notes = [line for line in said if line.startswith("note: nothing of")]
        assert bool(notes) == bool(missing)
        if missing:
            assert all(name in notes[0] for name in missing)
            return
        said.clear()
    pytest.fail("every first slice shows every class")


def test_data_without_any_foreground_are_refused(tmp_path, encoder, monkeypatch):
    prepare = loop.open_trial.__globals__["load_material"]

    def emptied(*given):
        material = prepare(*given)
        monkeypatch.setattr(material.oracle, "_masks", torch.zeros_like(material.oracle._masks))
        return material

    monkeypatch.setitem(loop.open_trial.__globals__, "load_material", emptied)
    with pytest.raises(SeggymError, match="expected some foreground"):
        run(tmp_path, encoder)


@pytest.mark.parametrize("into", ["pool", "test"])
def test_a_duplicate_image_is_refused(tmp_path, encoder, monkeypatch, into):
    prepare = loop.open_trial.__globals__["load_material"]

    def doubled(*given):
        material = prepare(*given)
        images = material.pool.images
        patients = material.pool.table.patient
        first = int(material.pool.slices[0, 0])
        other = next(sample for sample in range(len(patients)) if patients[sample] != patients[0])
        second = int(material.pool.slices[other, 0]) if into == "pool" else int(material.scored["test"].slices[0])
        before = images[second].clone()
        images[second] = images[first]
        request.append(lambda: images.__setitem__(second, before))
        return material

    request = []
    monkeypatch.setitem(loop.open_trial.__globals__, "load_material", doubled)
    try:
        with pytest.raises(SeggymError, match="the same image as"):
            run(tmp_path, encoder)
    finally:
        for restore in request:
            restore()


def test_phantoms_of_these_tests_have_what_they_need(encoder, tmp_path):
    trial = open_trial(small_run(tmp_path, encoder))
    assert len(trial.names) > 20
    assert len(set(trial.patients["test"])) == PHANTOMS["test_patients"]
    assert not set(trial.patients["test"]) & set(trial.patients["val"])
