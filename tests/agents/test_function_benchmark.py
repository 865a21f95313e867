"""The benchmark of function, from label maps to the table: on a few phantoms, with the packaged networks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import function  # noqa: E402  benchmarks are no part of the package
from seggym.agents import rollouts  # noqa: E402
from seggym.agents.evaluation import evaluate_policies, open_bench  # noqa: E402
from seggym.cohorts.cohort import open_cohort  # noqa: E402
from seggym.errors import SeggymError  # noqa: E402

# Of another seed, so that no packaged network was trained on a patient of that name.
PHANTOMS = {"cohort_options": {"patients": 5, "test_patients": 2, "seed": 7}}


@pytest.fixture(scope="module")
def written(tmp_path_factory, seggym_home):
    """Folder and document of a run with two lines, and the record."""
    folder = tmp_path_factory.mktemp("function")
    document = folder / "page.md"
    document.write_text("before\n<!-- begin phantom -->\nold\n<!-- end phantom -->\nafter\n")
    arguments = ["lines=2", "tune=2", f"kwargs={json.dumps(PHANTOMS)}", f"output={folder}", f"document={document}"]
    function.main(*arguments)
    return folder, document.read_text(), json.loads((folder / "function.json").read_text())


def test_truth_is_that_of_the_label_files(written):
    """Voxels counted in the files, with the spacing of their headers."""
    _, _, record = written
    cohort = open_cohort("phantom", **PHANTOMS["cohort_options"])
    assert record["patients"] == sorted(cohort.official_test)
    for index, patient in enumerate(record["patients"]):
        diastole, systole = cohort.volumes([patient])
        volumes = [(v.label == 3).sum() * np.prod(v.spacing) / 1000 for v in (diastole, systole)]
        assert record["truth"]["LVEDV"][index] == pytest.approx(volumes[0])
        assert record["truth"]["LVEF"][index] == pytest.approx(100 * (volumes[0] - volumes[1]) / volumes[0])
        muscle = (diastole.label == 2).sum() * np.prod(diastole.spacing) / 1000
        assert record["truth"]["LVM"][index] == pytest.approx(1.05 * muscle)


def test_predicted_volumes_are_those_of_the_label_maps(written, monkeypatch):
    """Bias of full k-space against the truth, from network A's label maps of that evaluation."""
    _, _, record = written
    bench = open_bench("KSpaceSeg-Phantom-v0", PHANTOMS, "test")
    maps = []
    kept = rollouts.segmentation_scores
    monkeypatch.setattr(
        rollouts, "segmentation_scores", lambda labels, *rest: maps.append(labels) or kept(labels, *rest)
    )
    result = evaluate_policies(bench, [], [1, 2], surface_budgets=(), progress=False)
    rows = [i for i, patient in enumerate(result.cases.patients) if patient == record["patients"][0]]
    frames = sorted({bench.stack.volumes[row] for row in rows})
    volumes = []
    for frame in frames:
        members = [row for row in rows if bench.stack.volumes[row] == frame]
        pixels = (maps[0][0, members] == 3).sum().item()
        volumes.append(pixels * bench.stack.spacing[members[0]].double().prod().item() / 1000)
    expected = 100 * (volumes[0] - volumes[1]) / volumes[0]
    pairs = {record["patients"][0]: tuple(frames)}
    found = function.function_of(result, pairs)["full_kspace", "A", "full"]
    assert found["LVEF"].tolist() == pytest.approx([expected])
    assert found["LVEDV"].tolist() == pytest.approx([volumes[0]])


def test_the_record_compares_with_truth_and_with_full_kspace(written):
    folder, page, record = written
    rows = {(r["policy"], r["net"], r["lines"], r["reference"], r["measure"]): r for r in record["agreement"]}
    for policy in ("centre_out", "partial_fourier"):
        for lines in (0, 1, 2):
            for reference in ("truth", "full k-space"):
                assert rows[policy, "B", lines, reference, "LVEF"]["patients"] <= 2
    assert ("full_kspace", "A", "full", "truth", "RVEF") in rows
    assert ("full_kspace", "A", "full", "full k-space", "RVEF") not in rows
    assert page.startswith("before\n<!-- begin phantom -->\n| policy |")
    assert page.endswith("<!-- end phantom -->\nafter\n")
    assert "old" not in page
    assert (folder / "function_net_B.png").stat().st_size > 10_000


def test_folds_are_joined_by_patient(monkeypatch, tmp_path):
    """Two folds of one patient each: what is compared are both patients, with their own reference."""
    truth = {"LVEF": np.array([50.0])}

    def run(fold, options):
        number = int(fold.split)
        values = {("full_kspace", "B", "full"): {"LVEF": np.array([50.0 + number])}}
        settings = type("Settings", (), {"scan": type("Scan", (), {"as_dict": lambda self: {}})(), "cohort": "acdc"})()
        bench = type("Bench", (), {"settings": settings, "provenance": {"split": number}})()
        return [f"patient{number}"], truth, values, bench

    monkeypatch.setattr(function, "run_fold", run)
    function.main("fold=1:model", "fold=3:model", f"output={tmp_path}", "document=")
    record = json.loads((tmp_path / "function.json").read_text())
    assert record["patients"] == ["patient1", "patient3"]
    assert record["provenance"] == [{"split": 1}, {"split": 3}]
    [row] = record["agreement"]
    assert row["bias"][0] == 2
    assert row["deviation"] == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["line=3"], "'line=3' is unknown"),
        (["lines=0"], "lines=0 must be a whole number"),
        (["fold=a"], "fold=a must be SPLIT:REWARD_MODEL"),
        (["fold=a:b", "fold=a:b:c"], "give one to every fold, or to none"),
        (["fold=a:b", "snapshot=c"], "leave split=, reward_model= and snapshot= out"),
    ],
)
def test_a_wrong_command_is_a_sentence(arguments, sentence):
    with pytest.raises(SeggymError, match=sentence):
        function.folds_of(function.parse(arguments))


def test_volumes_add_up_over_slices():
    """Two volumes of 2 and 1 slices, one point, one class."""
    cases = type("Cases", (), {"spacing": torch.tensor([[10.0, 2.0, 1.0]] * 3), "volumes": {"a": [0, 2], "b": [1]}})()
    result = type("Result", (), {"cases": cases})()
    found = function.predicted_volumes(result, np.array([[[100.0], [50.0], [200.0]]]))
    assert {name: values.tolist() for name, values in found.items()} == {"a": [[6.0]], "b": [[1.0]]}
