"""Classification in the loop, its report, and the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from small_runs import small_run, untrained_encoder

from seggym.agents.al import loop
from seggym.agents.al.report import finished_runs, write_report
from seggym.agents.al.scoring import part_scores
from seggym.agents.al.trial import open_trial
from seggym.cohorts import chaos, davis, mscmr
from seggym.envs.selection.images import write_example
from seggym.errors import SeggymError

ROOT = Path(__file__).parents[2]
IMAGES = {
    "cohort": {"name": "images", "options": {"count": 60, "classes": 3}, "split": None},
    "data": {"size": 16},
    "model": {"learner": "classifier", "options": {"iterations": 5, "widths": [4, 8]}},
    "policy": {"initial": 6, "queries": 2, "per_query": 4},
}


def quiet(line):
    pass


@pytest.mark.parametrize("strategy", ["random", "least_confidence", "margin", "entropy"])
def test_images_are_classified(tmp_path, strategy):
    settings = small_run(tmp_path, "", strategy, **IMAGES)
    result = loop.run(settings, quiet)
    assert result.samples.tolist() == [6, 10, 14]
    assert set(np.unique(result.dice)) <= {0.0, 1.0}
    assert result.key["metric"] == "accuracy"


def test_accuracy_and_f1_are_those_of_scikit_learn(tmp_path):
    trial = open_trial(small_run(tmp_path, "", **IMAGES))
    loop._start(trial)
    scored = trial.scored["test"]
    believed = trial.engine.learner.predict(torch.tensor([0]), scored.slices[None])[0].flatten(1).argmax(1)
    scores = part_scores(trial, trial.engine, "test")
    assert scores["accuracy"] == pytest.approx(float((believed == scored.labels).float().mean()))
    truth = scored.labels.numpy()
    expected = f1_score(truth, believed.numpy(), average=None, labels=np.unique(truth), zero_division=0)
    found = np.array(scores["f1"], dtype=float)
    assert found[np.unique(truth)] == pytest.approx(expected, abs=1e-6)


def test_images_of_a_folder_begin_with_those_that_are_labelled(tmp_path):
    root = write_example(tmp_path / "images", size=16)
    changed = {**IMAGES, "cohort": {"name": "images", "options": {}, "split": None}, "datadir": str(root)}
    changed["policy"] = {"queries": 2, "per_query": 4}
    result = loop.run(small_run(tmp_path / "run", "", "entropy", **changed), quiet)
    initial = len(list((root / "initial_labeled_images").rglob("*.png")))
    assert result.samples.tolist() == [initial, initial + 4, initial + 8]
    assert all(name.startswith("initial_labeled_images/") for name in result.selected[0][0])
    assert not any(name.startswith("initial") for names in result.selected[0][1:] for name in names)
    with pytest.raises(SeggymError, match=f"expected {initial}, the images that are labelled"):
        open_trial(small_run(tmp_path / "run", "", **{**changed, "policy": {"budgets": [1, 20]}}))


@pytest.mark.parametrize("ann_type", ["mask", "scribble"])
@pytest.mark.parametrize("reader", [mscmr, chaos, davis], ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_cohort_in_its_published_layout(tmp_path, reader, ann_type):
    name = reader.__name__.rpartition(".")[2]
    more = {"mscmr": {}, "chaos": {"modalities": ("ct",)}, "davis": {"layout": "h5"}}[name]
    root = reader.write_example(tmp_path / "data", patients=8, **more)
    settings = small_run(
        tmp_path / "run",
        untrained_encoder(tmp_path / "encoder"),
        "margin",
        cohort={"name": name, "options": {}, "split": None},
        datadir=str(root),
        model={"learner": "probe", "ann_type": ann_type},
        data={"size": 32, "spacing": None, "encoder": str(tmp_path / "encoder")},
    )
    result = loop.run(settings, quiet)
    whole = 8 * 32 * 32
    assert result.pixels[0, -1] == whole if ann_type == "mask" else 0 < result.pixels[0, -1] < whole
    assert set(result.patients).isdisjoint(name.split("_slice_")[0] for names in result.selected[0] for name in names)
    assert all(volume.startswith(patient) for volume, patient in zip(result.volumes, result.patients, strict=True))


def test_a_report_of_images(tmp_path):
    loop.run(small_run(tmp_path, "", **IMAGES), quiet)
    page = write_report([tmp_path], tmp_path).read_text()
    assert {path.stem for path in (tmp_path / "figures").glob("*on*.png")} >= {"accuracy_on_test", "f1_on_test"}
    assert page.count("<img") == page.count("data:image/png;base64,") >= 6


def test_a_report_of_strategies_and_seeds(tmp_path):
    encoder = untrained_encoder(tmp_path / "encoder")
    for strategy in ("random", "margin", "label_greedy"):
        for seed in (0, 1):
            loop.run(small_run(tmp_path / strategy / f"seed{seed}", encoder, strategy, seed=seed), quiet)
    runs = finished_runs(tmp_path)
    assert len(runs) == 6
    page = write_report(runs, tmp_path / "report").read_text()
    # Of one seed: round 0 once, the two others for every strategy.
    headings = re.findall(r"<h3>(\w+), seed (\d), round (\d)</h3>", page)
    assert [entry for entry in headings if entry[2] == "0"] == [("label_greedy", "0", "0")]
    assert {entry[:2] for entry in headings} == {(name, "0") for name in ("random", "margin", "label_greedy")}
    assert len(headings) == 1 + 3 * 2
    assert "label_greedy *" in page  # privileged, in the comparison
    assert (tmp_path / "report" / "comparison.json").is_file()
    assert (tmp_path / "report" / "figures" / "dice_on_test_myocardium.png").is_file()


def test_a_folder_without_runs_has_no_report(tmp_path):
    with pytest.raises(SeggymError, match="no finished run"):
        finished_runs(tmp_path)


def command(*arguments, script="run_al.py"):
    return subprocess.run(
        [sys.executable, f"agents/{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_command_line(tmp_path):
    encoder = untrained_encoder(tmp_path / "encoder")
    small = ["data.size=32", "data.spacing=6", f"data.encoder={encoder}", "policy.budgets=[3,5]", "policy.full=false"]
    small += ["+cohort.options.patients=9", "+cohort.options.test_patients=2"]
    done = command("experiment=phantom", "strategy=kcenter_pixels", f"run_dir={tmp_path}/run", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "budget: 5 slices" in done.stdout
    assert "round 1 of 1: 5 samples" in done.stdout
    assert {"config.yaml", "report.html", "selection.json", "results.csv"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    done = command(str(tmp_path / "run"), script="report_al.py")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("strategy=corclr", "did you mean coreclr"),
        ("experiment=acdc_wek", "did you mean acdc_weak"),
        ("strategy=random,entrop", "did you mean entropy"),
        ("exp_dir=/nowhere", "/nowhere/exp.yml does not exist"),
        ("model.optons=3", "model.optons is unknown"),
    ],
)
def test_a_mistyped_name_is_one_sentence(tmp_path, argument, said):
    done = command(argument, f"run_dir={tmp_path}/run")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
