"""Pooled numbers against sums done by hand, and comparisons of evaluations."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_bench import make_bench

from seggym.agents.comparison import compare, comparison_text
from seggym.agents.curves import CARD, NUMBERS, Curves, Method, curves_of, joined, load_curves, pooled
from seggym.agents.evaluation import evaluate_policies
from seggym.agents.policies import CallablePolicy, FixedOrder
from seggym.agents.pooling import PooledTable, Resampling, paired
from seggym.agents.report import write_report
from seggym.cli import main
from seggym.errors import SeggymError
from seggym.kspace import orders

FULL = np.asarray([1.0, 0.8])


def method(name, *curves, kind="policy", privileged=False):
    """Curves (R, points, V) given as runs of volumes of points."""
    return Method(name, kind, privileged, {"B": np.asarray(curves).transpose(0, 2, 1)})


def fold(number, patients, *methods):
    count = len(patients)
    volumes = tuple(f"{patient}_v{index}" for index, patient in enumerate(patients))
    return Curves("E-v0", (0, 1, 2), volumes, tuple(patients), (number,) * count, {"B": FULL[:count]}, methods, {})


@pytest.fixture
def table():
    """Two folds of one patient with two volumes, and of one with one; the first fold has two runs of the policy."""
    first = fold(
        0, ["p", "p"],
        method("mine", [[0.1, 0.96, 0.97], [0.1, 0.2, 0.77]], [[0.1, 0.5, 0.6], [0.1, 0.2, 0.3]]),
        method("random", [[0.1, 0.4, 0.5], [0.1, 0.2, 0.2]], kind="baseline"),
        method("greedy", [[0.1, 0.98, 1.0], [0.1, 0.78, 0.8]], kind="baseline", privileged=True),
    )  # fmt: skip
    second = fold(
        1, ["q"],
        method("mine", [[0.2, 0.5, 0.96]]),
        method("random", [[0.2, 0.3, 0.4]], kind="baseline"),
        method("greedy", [[0.2, 0.97, 0.98]], kind="baseline", privileged=True),
    )  # fmt: skip
    return PooledTable(pooled([first, second], {"a": 1}), "mine", zero="random", one="greedy")


def test_endpoints_by_hand(table):
    # Targets .95 and .76: run 0 of p reaches them after 1 and 2 lines, run 1 never (3); q after 2.
    np.testing.assert_array_equal(table.values("mine", "B", "lines_to_95"), [[1, 2, 2], [3, 3, np.nan]])
    np.testing.assert_allclose(
        table.values("mine", "B", "area"), [[0.965, 0.485, 0.73], [0.55, 0.25, np.nan]], equal_nan=True
    )


def test_means_are_over_runs_then_volumes_then_patients(table):
    lines = table.find(table.rows, method="mine", net="B", endpoint="lines_to_95")
    assert lines["mean"] == pytest.approx(((1.5 + 3) / 2 + 2) / 2)
    area = table.find(table.rows, method="mine", net="B", endpoint="area")
    assert area["mean"] == pytest.approx(((0.725 + 0.4) / 2 + 0.73) / 2)
    reached = table.find(table.rows, method="mine", net="B", endpoint="reached_95")
    assert reached["mean"] == pytest.approx((0.5 + 1) / 2)
    assert area["patients"] == 2


def test_contrasts_pair_runs_with_the_single_run_of_a_baseline(table):
    row = table.find(table.contrasts, other="random", net="B", endpoint="area")
    p = ((0.965 - 0.45) + (0.485 - 0.2)) / 2, ((0.55 - 0.45) + (0.25 - 0.2)) / 2
    assert row["mean"] == pytest.approx((np.mean(p) + (0.73 - 0.35)) / 2)
    # Two patients, both differences positive: the signs ++ and -- of four patterns are as extreme.
    assert row["p"] == pytest.approx(0.5)
    assert row["p_holm"] == pytest.approx(0.5)
    assert table.find(table.contrasts, other="greedy", net="B", endpoint="area")["p_holm"] is None


def test_the_bootstrap_covers_what_two_patients_and_two_runs_can_give(table):
    row = table.find(table.rows, method="mine", net="B", endpoint="area")
    # The extremes: p alone by its worse or its better run, and q alone, which has one run.
    assert row["low"] == pytest.approx(0.4)
    assert row["high"] == pytest.approx(0.73)
    draws = table.resampling._means(table.resampling._cells(table.values("mine", "B", "area")))
    p = [0.725, 0.4, (0.725 + 0.4) / 2]
    possible = [*p, 0.73, *((value + 0.73) / 2 for value in p)]
    assert all(np.isclose(draw, possible).any() for draw in draws)


def test_normalised_scores(table):
    found = {row["method"]: row for row in table.normalised if row["endpoint"] == "area"}
    assert found["random"]["mean"] == 0
    assert found["greedy"]["mean"] == pytest.approx(1)
    above = ((0.515 + 0.285 + 0.1 + 0.05) / 4 + 0.38) / 2
    below = ((0.99 - 0.45 + 0.79 - 0.2) / 2 + (0.975 - 0.35)) / 2
    assert found["mine"]["mean"] == pytest.approx(above / below)


def test_a_reference_on_some_volumes_is_compared_there_only():
    all_volumes = fold(
        0, ["p", "q"],
        method("mine", [[0.1, 0.5, 0.6], [0.1, 0.2, 0.3]]),
        method("random", [[0.1, 0.3, 0.4], [0.1, 0.2, 0.2]], kind="baseline"),
    )  # fmt: skip
    one = replace(
        fold(0, ["q"], method("greedy", [[0.1, 0.7, 0.7]], kind="baseline", privileged=True)),
        volumes=all_volumes.volumes[1:],
    )
    table = PooledTable(joined(all_volumes, one), "mine", zero="random", one="greedy")
    row = table.find(table.contrasts, other="greedy", net="B", endpoint="area")
    assert (row["mean"], row["patients"]) == (pytest.approx(0.25 - 0.7), 1)
    normalised = table.find(table.normalised, method="mine", net="B", endpoint="area")
    assert normalised["mean"] == pytest.approx((0.25 - 0.2) / (0.7 - 0.2))


def test_equal_runs_in_other_folds_do_not_widen_and_paired_runs_stay_paired():
    mine = np.asarray([[1.0, 5.0, 2.0], [3.0, 9.0, np.nan]])
    folds = [0, 0, 1]
    np.testing.assert_array_equal(paired(mine, mine, folds), np.zeros((2, 3)))
    resampling = Resampling(["p", "q", "r"], folds, draws=200)
    estimate = resampling.estimate(paired(mine, mine, folds))
    assert (estimate.low, estimate.high) == (0, 0)


def test_a_patient_in_two_folds_is_refused():
    parts = [fold(number, ["p"], method("mine", [[0.1, 0.5, 0.6]])) for number in (0, 1)]
    with pytest.raises(SeggymError, match="patient p is tested in more than one fold"):
        pooled(parts, {})


# --- comparing evaluations ------------------------------------------------------------------------------------------


def nearest_line(observation, action_mask):
    return np.where(action_mask, np.abs(np.arange(action_mask.shape[1]) - 16.1), np.inf).argmin(1)


def farthest_line(observation, action_mask):
    return np.where(action_mask, np.abs(np.arange(action_mask.shape[1]) - 16.1), -1).argmax(1)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two policies evaluated alike, and one with another budget."""
    place = tmp_path_factory.mktemp("evaluated")
    baseline = FixedOrder("centre_out", orders.centre_out(32))
    for name, function, high in (("near", nearest_line, 3), ("far", farthest_line, 3), ("short", nearest_line, 2)):
        result = evaluate_policies(
            make_bench(), [CallablePolicy(function), baseline], [1, high], progress=False, surface_budgets=[]
        )
        write_report(result, place / name)
    return place


def test_curves_survive_their_files(evaluated):
    result = evaluate_policies(make_bench(), [CallablePolicy(nearest_line)], [1, 3], progress=False, surface_budgets=[])
    expected, found = curves_of(result, result.key), load_curves(evaluated / "near")
    assert (found.volumes, found.patients, found.points) == (expected.volumes, expected.patients, expected.points)
    for net in ("A", "B"):
        np.testing.assert_array_equal(found.methods[0].curves[net], expected.methods[0].curves[net])
        np.testing.assert_array_equal(
            found.area("nearest_line", net), result.area_values(result.policies[0], net, "volume")
        )
        lines, reached = found.lines("nearest_line", net)
        np.testing.assert_array_equal(lines, result.lines_values(result.policies[0], net)[0])
        np.testing.assert_array_equal(reached, result.lines_values(result.policies[0], net)[1])


def test_compare_pairs_the_policies_of_two_evaluations(evaluated, capsys):
    table = compare([evaluated / "near", evaluated / "far"])
    row = table.find(table.contrasts, other="far", net="B", endpoint="area")
    near, far = (load_curves(evaluated / name) for name in ("near", "far"))
    values = near.area("nearest_line", "B")[0] - far.area("farthest_line", "B")[0]
    patients = np.asarray(near.patients)
    assert row["mean"] == pytest.approx(np.mean([values[patients == p].mean() for p in np.unique(patients)]))
    with pytest.raises(SystemExit) as end:
        main(["compare", str(evaluated / "near"), str(evaluated / "far")])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == comparison_text(table).strip()


def test_compare_refuses_other_budgets_networks_or_files(evaluated, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", str(evaluated / "near"), str(evaluated / "short")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "budgets" in error
    assert error.count("\n") == 1
    other = tmp_path / "other"
    curves = load_curves(evaluated / "far")
    replace(curves, key={**curves.key, "weights": {"full": "x"}}).save(other)
    with pytest.raises(SeggymError, match=r"different weights\.full"):
        compare([evaluated / "near", other])
    with pytest.raises(SeggymError, match="holds no evaluation"):
        compare([evaluated / "near", tmp_path])
    with pytest.raises(SeggymError, match="named twice"):
        compare([evaluated / "near", evaluated / "near"])
    (other / NUMBERS).write_bytes((other / NUMBERS).read_bytes()[:-9])
    with pytest.raises(SeggymError, match="not the file"):
        load_curves(other)
    card = json.loads((other / CARD).read_text())
    Path(other / CARD).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(SeggymError, match="format 99"):
        load_curves(other)
