"""Intervals over patients, paired tests and curve summaries against SciPy and numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from seggym.errors import SeggymError
from seggym.reward_models.statistics import area, bootstrap_interval, holm, lines_to, paired_difference


def hearts(seed=0, patients=20, slices=16):
    """Values whose slices resemble each other within a patient: (values, patient of each)."""
    generator = np.random.default_rng(seed)
    levels = generator.normal(0.8, 0.1, patients)
    values = levels[:, None] + generator.normal(0, 0.05, (patients, slices))
    return values.ravel(), np.repeat(np.arange(patients), slices).tolist()


def test_mean_is_the_mean_of_patient_means():
    assert bootstrap_interval([1.0, 1.0, 1.0, 3.0], ["a", "a", "a", "b"]).mean == 2.0


def test_interval_is_over_patients_not_slices():
    values, patients = hearts()
    by_patient = bootstrap_interval(values, patients)
    by_slice = bootstrap_interval(values, list(range(len(values))))
    assert by_patient.mean == pytest.approx(by_slice.mean)
    # 16 slices per heart that share a level: the slice bootstrap pretends to 320 independent hearts instead of 20.
    assert by_patient.high - by_patient.low > 2 * (by_slice.high - by_slice.low)
    # Copying every slice adds no information, and the patient bootstrap knows it.
    copied = bootstrap_interval(np.tile(values, 4), patients * 4)
    assert copied == pytest.approx(by_patient)


def test_interval_agrees_with_scipys_percentile_bootstrap():
    values, patients = hearts(1)
    means = values.reshape(20, 16).mean(axis=1)
    expected = stats.bootstrap((means,), np.mean, method="percentile", n_resamples=20_000, rng=3).confidence_interval
    found = bootstrap_interval(values, patients, draws=20_000)
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)


def test_level_and_seed():
    values, patients = hearts(2)
    wide, narrow = (bootstrap_interval(values, patients, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bootstrap_interval(values, patients, seed=4) == bootstrap_interval(values, patients, seed=4)
    assert bootstrap_interval(values, patients, seed=4) != bootstrap_interval(values, patients, seed=5)


def test_nan_values_are_left_out_and_patients_with_nothing_else_too():
    nan = np.nan
    assert bootstrap_interval([1, nan, 3, nan], ["a", "a", "b", "c"]) == bootstrap_interval([1, 3], ["a", "b"])
    alone = bootstrap_interval([1, 2, nan], ["a", "a", "b"])
    assert alone.mean == 1.5
    assert np.isnan([alone.low, alone.high]).all()
    assert np.isnan(bootstrap_interval([nan, nan], ["a", "b"])).all()
    assert np.isnan(bootstrap_interval([], [])).all()


def test_resampling_runs_widens_the_interval_when_runs_differ():
    generator = np.random.default_rng(0)
    levels = generator.normal(0, 0.1, 20)
    values = (levels[:, None] + np.array([-0.3, 0.0, 0.3])).ravel()
    patients, runs = np.repeat(np.arange(20), 3).tolist(), [0, 1, 2] * 20
    pooled, crossed = bootstrap_interval(values, patients), bootstrap_interval(values, patients, runs=runs)
    assert crossed.mean == pytest.approx(pooled.mean)
    assert crossed.high - crossed.low > 3 * (pooled.high - pooled.low)
    # One run, or runs that agree, change nothing of substance.
    single = bootstrap_interval(values[::3], patients[::3], runs=[7] * 20)
    assert single == bootstrap_interval(values[::3], patients[::3])


def test_runs_that_cover_few_patients_still_give_a_finite_interval():
    found = bootstrap_interval([1.0, 2.0, 3.0], ["a", "b", "c"], runs=[0, 1, 1])
    assert np.isfinite(found).all()
    assert found.low <= found.mean <= found.high


@settings(max_examples=30, deadline=None)
@given(differences=st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_exact_p_value_equals_scipys_permutation_test(differences):
    found = paired_difference(differences, np.zeros(len(differences)), list(range(len(differences))))
    expected = stats.permutation_test(
        (np.array(differences), np.zeros(len(differences))),
        lambda a, b, axis: np.abs(np.mean(a - b, axis=axis)),
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
        n_resamples=np.inf,
    )
    assert found.p_value == pytest.approx(expected.pvalue)


def test_paired_difference_by_hand():
    # Five patients who all improve: 2 of the 2^5 sign patterns are as extreme.
    found = paired_difference([0.5, 0.7, 0.6, 0.9, 0.8, 0.8], [0.4] * 6, ["a", "a", "b", "c", "d", "e"])
    assert found.mean == pytest.approx((0.2 + 0.2 + 0.5 + 0.4 + 0.4) / 5)
    assert found.p_value == 2 / 32
    assert found.patients == 5
    assert 0 < found.low < found.mean < found.high


def test_paired_difference_sees_what_unpaired_intervals_hide():
    values, patients = hearts(3)
    noise = np.random.default_rng(1).normal(0, 0.005, len(values))
    found = paired_difference(values + 0.02 + noise, values, patients)
    assert found.low > 0
    # Twenty patients are beyond enumeration, so the smallest reachable p-value is that of 10,000 random patterns.
    assert found.p_value == 1 / 10_001
    better, worse = bootstrap_interval(values + 0.02, patients), bootstrap_interval(values, patients)
    assert better.low < worse.high


def test_sampled_p_value_agrees_with_a_t_test_on_normal_differences():
    values = np.random.default_rng(8).normal(0.3, 1.0, 40)
    found = paired_difference(values, np.zeros(40), list(range(40)))
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)


def test_pairs_with_a_nan_on_either_side_are_left_out():
    nan = np.nan
    found = paired_difference([1.0, nan, 3.0, 4.0], [0.0, 1.0, nan, 2.0], ["a", "b", "c", "d"])
    assert (found.mean, found.patients) == (1.5, 2)
    nothing = paired_difference([nan], [1.0], ["a"])
    assert np.isnan(nothing[:4]).all()
    assert nothing.patients == 0
    same = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], ["a", "b", "c"])
    assert same.p_value == 1.0


def test_holm_by_hand():
    # Sorted .01 .03 .04 .5 times 4 3 2 1 is .04 .09 .08 .5, made monotone.
    adjusted = holm({"d": 0.5, "a": 0.01, "c": 0.04, "b": 0.03})
    assert adjusted == pytest.approx({"d": 0.5, "a": 0.04, "c": 0.09, "b": 0.09})
    assert list(adjusted) == ["d", "a", "c", "b"]
    assert holm({}) == {}
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    with_nan = holm({"a": 0.02, "b": np.nan, "c": 0.5})
    assert np.isnan(with_nan.pop("b"))
    assert with_nan == {"a": 0.04, "c": 0.5}


@settings(max_examples=50, deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_exactly_what_the_step_down_procedure_rejects(p_values):
    adjusted = holm({str(index): p for index, p in enumerate(p_values)})
    level, rejected = 0.05, set()
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        if (len(p_values) - rank) * p_values[index] > level:
            break
        rejected.add(str(index))
    assert {name for name, p in adjusted.items() if p <= level} == rejected


def test_area_leaves_the_start_out():
    assert area([0.9, 0.2, 0.4]) == pytest.approx(0.3)
    assert area([[0.0, 1.0], [1.0, 0.0]]).tolist() == [1.0, 0.0]
    assert np.isnan(area([0.1, np.nan, 0.3]))
    with pytest.raises(SeggymError, match="Q_0"):
        area([0.5])


def test_lines_to_by_hand():
    curves = [[0.1, 0.5, 0.96, 0.9], [0.1, 0.2, 0.3, 0.4], [0.99, 0.0, 0.0, 0.0], [0.1, np.nan, 1.0, 1.0]]
    found = lines_to(curves, [1.0, 1.0, 1.0, 1.0])
    # The second never gets there: T + 1 = 4, censored. The fourth cannot be judged.
    np.testing.assert_array_equal(found.lines, [2, 4, 0, np.nan])
    assert found.reached.tolist() == [True, False, True, False]


def test_lines_to_without_a_target():
    found = lines_to([[0.0, 0.0], [0.0, -0.1], [0.5, 0.6]], [0.0, -0.2, np.nan])
    assert np.isnan(found.lines).all()
    assert not found.reached.any()


def test_lines_to_shapes_and_fraction():
    found = lines_to([0.0, 0.5, 1.0], 1.0, fraction=0.5)
    assert (found.lines, found.reached) == (1, True)
    assert lines_to(np.zeros((2, 3, 5)), np.ones((2, 3))).lines.tolist() == [[5.0] * 3] * 2
    with pytest.raises(SeggymError, match="full"):
        lines_to(np.zeros((2, 5)), np.ones(3))


def test_bad_input_is_refused_with_a_sentence():
    with pytest.raises(SeggymError, match="equally long"):
        bootstrap_interval([1.0, 2.0], ["a"])
    with pytest.raises(SeggymError, match="infinite"):
        bootstrap_interval([1.0, np.inf], ["a", "b"])
    with pytest.raises(SeggymError, match="infinite"):
        paired_difference([1.0, np.inf], [1.0, np.inf], ["a", "b"])
    with pytest.raises(SeggymError, match="level"):
        bootstrap_interval([1.0, 2.0], ["a", "b"], level=95)
    with pytest.raises(SeggymError, match="same cases"):
        paired_difference([1.0], [1.0, 2.0], ["a"])
