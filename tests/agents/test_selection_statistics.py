"""Statistics of active-learning curves on curves whose answer is known, and the files and command around them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from seggym.agents.selection_comparison import compare_selection, selection_files, selection_text
from seggym.agents.selection_results import FILE, SelectionResult, load_selection
from seggym.agents.selection_statistics import (
    aubc,
    detectable_difference,
    foreground_efficiency,
    mean_ranks,
    paired_t,
    penalty_matrix,
    smallest_p,
)
from seggym.cli import main
from seggym.errors import SeggymError
from seggym.reward_models.statistics import paired_difference

SAMPLES = np.asarray([10, 20, 40, 80])


def result(strategy="random", gain=0.0, seeds=(0, 1, 2), **changes):
    """Four rounds on six volumes of three patients; ``gain`` is added to the Dice from round 1 on."""
    rng = np.random.default_rng(5)
    shape = (len(seeds), len(SAMPLES), 6)
    base = np.stack([0.5 + 0.3 * (1 - np.exp(-SAMPLES / 30))] * len(seeds))[..., None]
    dice = base + 0.02 * rng.standard_normal(shape) + gain * (np.arange(4) > 0)[:, None]
    values = {
        "strategy": strategy,
        "options": {},
        "privileged": False,
        "seeds": seeds,
        "samples": SAMPLES,
        "pool": 100,
        "pixels": np.tile(SAMPLES * 256.0, (len(seeds), 1)),
        "foreground": np.tile(SAMPLES / 100, (len(seeds), 1)),
        "cost": np.tile(SAMPLES * 2.0, (len(seeds), 1)),
        "cost_unit": "minutes",
        "volumes": tuple(f"p{v // 2}/{v % 2}" for v in range(6)),
        "patients": tuple(f"p{v // 2}" for v in range(6)),
        "dice": dice,
        "full": np.full(6, 0.9),
        "selected": tuple(tuple((f"s{seed}r{r}",) for r in range(4)) for seed in seeds),
        "key": {"data": {"cohort": "acdc", "fingerprint": "abc"}, "learner": {"name": "probe"}},
    }
    return SelectionResult(**{**values, **changes})


def test_area_of_constant_and_straight_curves():
    assert aubc([0.1, 0.1, 0.1], [1, 2, 3]) == pytest.approx(0.1)
    for axis in ("samples", "log_samples", "rounds"):
        assert aubc([0.1, 0.1, 0.1, 0.1], SAMPLES, axis) == pytest.approx(0.1)
    assert aubc(SAMPLES / 100, SAMPLES) == pytest.approx((0.1 + 0.8) / 2)
    assert aubc(np.log2(SAMPLES), SAMPLES, "log_samples") == pytest.approx(np.log2([10, 80]).mean())
    assert aubc([0.0, 0.1, 0.2, 0.3], SAMPLES, "rounds") == pytest.approx(0.15)
    # By hand: (10 * .25 + 20 * .75 + 40 * 1) / 70.
    assert aubc([0.0, 0.5, 1.0, 1.0], SAMPLES) == pytest.approx((2.5 + 15 + 40) / 70)
    assert aubc(np.ones((2, 3, 4)), SAMPLES).shape == (2, 3)


def test_areas_that_do_not_exist():
    with pytest.raises(SeggymError, match="at least two rounds"):
        aubc([0.1], [1])
    with pytest.raises(SeggymError, match="axis='fraction' is unknown"):
        aubc([0.1, 0.2], [1, 2], "fraction")


@pytest.mark.parametrize("b", [0.7, 8.0, 60.0, -0.5])
def test_foreground_efficiency_recovers_the_curve(b):
    x = np.linspace(0.02, 0.3, 6) * np.ones((3, 1))
    y = 0.9 - 0.4 * np.exp(-b * (x - 0.02))
    slow = 0.9 - 0.4 * np.exp(-2.0 * (x / 2 + 0.01 - 0.02))
    found = foreground_efficiency({"one": x, "other": x / 2 + 0.01}, {"one": y, "other": slow}, 0.9)
    assert found["one"] == pytest.approx(b, rel=1e-3)
    assert found["other"] == pytest.approx(2.0, rel=1e-3)


def test_foreground_efficiency_without_an_upper_end():
    x, y = np.linspace(0, 1, 4)[None], np.full((1, 4), 0.6)
    for full in (float("nan"), 0.6, 0.5):
        assert np.isnan(foreground_efficiency({"a": x}, {"a": y}, full)["a"])


def test_paired_t_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0.3, 1, 7)
    assert paired_t(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert paired_t(np.zeros(4)) == 1
    assert paired_t(np.full(4, 0.2)) == 0
    assert np.isnan(paired_t([0.2]))


def test_penalty_matrix_of_a_winner_and_two_that_are_equal():
    rng = np.random.default_rng(1)
    base = rng.normal(0.6, 0.02, (5, 4))
    start = base[:, :1]

    def curve(gain, noise):
        return np.concatenate([start, base[:, 1:] + gain + noise * rng.standard_normal((5, 3))], axis=1)

    curves = {"winner": curve(0.2, 0.001), "one": curve(0.0, 0.01), "other": curve(0.0, 0.01)}
    matrix = penalty_matrix(curves)
    np.testing.assert_allclose(matrix[0], [0, 1, 1])
    np.testing.assert_allclose(matrix[:, 0], 0)
    # Wins in one round of three only count a third; round 0, shared, counts where it is asked for.
    late = {"late": np.concatenate([base[:, :3], base[:, 3:] + 0.2], axis=1), "one": base}
    np.testing.assert_allclose(penalty_matrix(late), [[0, 1 / 3], [0, 0]])
    np.testing.assert_allclose(penalty_matrix(late, skip_first=False), [[0, 1 / 4], [0, 0]])
    assert not penalty_matrix({name: values[:1] for name, values in curves.items()}).any()


def test_holm_makes_the_penalty_matrix_stricter():
    """Ten strategies that differ by chance alone: some of 45 pairs look different without the correction."""
    rng = np.random.default_rng(3)
    curves = {str(n): 0.6 + 0.02 * rng.standard_normal((5, 8)) for n in range(10)}
    assert penalty_matrix(curves, corrected=False).sum() > 0
    assert penalty_matrix(curves).sum() < penalty_matrix(curves, corrected=False).sum() / 2


def test_ranks_share_ties():
    assert mean_ranks({"a": np.asarray([0.9, 0.5]), "b": np.asarray([0.8, 0.5]), "c": np.asarray([0.7, 0.6])}) == {
        "a": (1 + 2.5) / 2,
        "b": (2 + 2.5) / 2,
        "c": (3 + 1) / 2,
    }


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 10])
def test_the_smallest_p_is_that_of_the_exact_test(seeds):
    """All differences have one sign: no pattern is more extreme."""
    values = 1 + np.random.default_rng(seeds).random(seeds)
    exact = paired_difference(values, np.zeros(seeds), list(range(seeds)), draws=1)
    assert smallest_p(seeds) == exact.p_value
    assert smallest_p(3) == 0.25


def test_the_detectable_difference_is_detected_with_that_probability():
    values = np.random.default_rng(2).normal(0, 0.03, 5)
    spread, size = values.std(ddof=1), detectable_difference(values)
    draws = np.random.default_rng(4).normal(size, spread, (20_000, 5))
    found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.015)
    assert np.isnan(detectable_difference([0.1]))


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 20])
def test_the_detectable_difference_of_any_number_of_seeds(seeds):
    """SciPy's distribution function is NaN in its far tail, which two or four seeds look at."""
    values = np.arange(seeds) - (seeds - 1) / 2
    size = detectable_difference(values)
    shift = size / (values.std(ddof=1) / np.sqrt(seeds))
    assert stats.nct.sf(stats.t.isf(0.025, seeds - 1), seeds - 1, shift) == pytest.approx(0.8, abs=1e-3)


def test_a_file_comes_back_as_it_was(tmp_path):
    first = result()
    first.dice[0, 0, 0] = np.nan
    path = first.save(tmp_path)
    assert path.name == FILE
    assert json.loads(path.read_text())["dice"][0][0][0] is None
    again = load_selection(path)
    for name, value in vars(first).items():
        np.testing.assert_array_equal(getattr(again, name), value) if isinstance(value, np.ndarray) else None
        assert isinstance(value, np.ndarray) or getattr(again, name) == value
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_curves_are_means_over_patients_of_what_is_known():
    dice = np.full((1, 4, 6), 0.5)
    dice[0, 1] = [0.2, 0.4, 0.6, np.nan, 0.9, 0.9]
    one = result(seeds=(0,), dice=dice)
    assert one.curves[0, 1] == pytest.approx((0.3 + 0.6 + 0.9) / 3)
    np.testing.assert_allclose(one.fraction, [0.1, 0.2, 0.4, 0.8])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dice": np.zeros((3, 4, 5))}, "dice of a selection result has shape"),
        ({"dice": np.full((3, 4, 6), 80.0)}, "dice of a selection result"),
        ({"samples": np.asarray([10, 20, 20, 80])}, "samples of a selection result"),
        ({"samples": np.asarray([10, 20, 40, 101])}, "expected growing numbers up to the pool"),
        ({"foreground": np.full((3, 4), 30.0)}, "foreground of a selection result"),
        ({"seeds": (0, 1, 1)}, "seeds of a selection result"),
        ({"selected": ((), (), ())}, "selected of a selection result"),
    ],
)
def test_a_result_that_does_not_fit_is_refused(changes, sentence):
    with pytest.raises(SeggymError, match=sentence):
        result(**changes)


def test_damaged_and_foreign_files_are_one_sentence(tmp_path):
    path = result().save(tmp_path)
    content = json.loads(path.read_text())
    for key, value, sentence in [
        ("format", 9, "format 9, expected 'selection' of format 1"),
        ("dice", [[1]], re.escape(str(path)) + ": dice of a selection result has shape"),
        ("seeds", None, "is damaged"),
        ("strategy", {"name": "random"}, "is damaged .*options"),
    ]:
        path.write_text(json.dumps({**content, key: value}))
        with pytest.raises(SeggymError, match=sentence):
            load_selection(path)
    path.write_text(json.dumps(content)[:100])
    with pytest.raises(SeggymError, match="not readable JSON"):
        load_selection(path)


def saved(folder, *results):
    for number, one in enumerate(results):
        one.save(folder / f"{number}_{one.strategy}")
    return selection_files([folder])


def test_a_comparison_finds_the_gain_and_says_what_it_could_have_found(tmp_path):
    rng = np.random.default_rng(8)
    seeds = (4, 1, 7, 2, 9)
    better = result("coreclr", 0.1, seeds)
    worse = result("random", 0.0, seeds)
    worse = replace(worse, dice=np.clip(worse.dice + 0.005 * rng.standard_normal(worse.dice.shape), 0, 1))
    told = replace(result("label_greedy", 0.05, seeds), privileged=True)
    table = compare_selection(saved(tmp_path, better, worse, told))
    own = {entry["other"]: entry for entry in table.contrasts if entry["endpoint"] == "final"}
    expected = (better.curves - worse.curves)[:, -1]
    assert own["random"]["mean"] == pytest.approx(expected.mean())
    assert own["random"]["low"] < expected.mean() < own["random"]["high"]
    assert own["random"]["low"] > 0
    assert own["random"]["p"] == smallest_p(5)
    assert own["random"]["p_holm"] == own["random"]["p"]  # the privileged one is not in the family
    assert own["label_greedy"]["p_holm"] is None
    assert own["random"]["detectable"] == pytest.approx(detectable_difference(expected))
    assert [row["rank_aubc"] for row in table.rows] == [1, 3, 2]
    assert table.rows[0]["aubc"]["mean"] == pytest.approx(aubc(better.curves, SAMPLES).mean())
    assert table.penalties[0, 1] == 1
    assert json.dumps(table.to_json())
    text = selection_text(table)
    assert "label_greedy *" in text
    assert "at least 0.062 with 5" in text
    assert "10, 20, 40, 80 of 100 samples" in text


def test_seeds_of_one_strategy_may_lie_in_several_folders(tmp_path):
    parts = [result("random", seeds=(s,)) for s in (0, 1)] + [result("coreclr", seeds=(1, 0, 5))]
    table = compare_selection(saved(tmp_path, *parts))
    assert table.names == ("random", "coreclr")
    assert [r.seeds for r in table.results] == [(0, 1), (0, 1)]
    np.testing.assert_array_equal(table.results[1].dice, parts[2].dice[[1, 0]])
    with pytest.raises(SeggymError, match="seed 0 of random is there twice"):
        compare_selection(saved(tmp_path, *parts, parts[0]))


def test_results_that_cannot_be_compared(tmp_path):
    other = result("entropy", key={"data": {"cohort": "acdc", "fingerprint": "xyz"}, "learner": {"name": "probe"}})
    for number, (second, sentence) in enumerate(
        [
            (other, r"different data\.fingerprint, expected"),
            (result("entropy", pool=200), "different pool"),
            (result("entropy", seeds=(8, 9)), "share no seed"),
            (result("random", seeds=(8,)), "at least two strategies, found 1"),
        ]
    ):
        with pytest.raises(SeggymError, match=sentence):
            compare_selection(saved(tmp_path / str(number), result(), second))


def test_options_tell_strategies_of_one_name_apart(tmp_path):
    files = saved(tmp_path, result("kcenter"), result("kcenter", options={"features": "pixels"}))
    assert compare_selection(files).names == ("kcenter (features=None)", "kcenter (features=pixels)")


def test_the_command_tells_selection_runs_from_evaluations(tmp_path, capsys):
    saved(tmp_path, result("coreclr", 0.1), result("random"))
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(tmp_path), "--axis", "rounds"])
    assert ended.value.code == 0
    assert "area over rounds" in capsys.readouterr().out
    (tmp_path / "evaluated").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(tmp_path), str(tmp_path / "evaluated")])
    assert ended.value.code == 2
    assert "holds no selection.json" in capsys.readouterr().err
