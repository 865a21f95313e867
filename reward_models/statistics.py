"""Intervals and comparisons over patients, and the summaries of a quality-versus-lines curve.

The unit that is resampled is the patient: slices and frames of one heart resemble each other, and resampling them as if
they were independent gives intervals about half as wide as they are. NaN marks a value that does not exist (a class
absent from a slice, a distance that failed); it is left out, and a patient with nothing else is left out as a whole.
What was left out is for the caller to report.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seggym.errors import SeggymError

EXACT_PATIENTS = 12
"""Up to so many patients all 2^n sign patterns are enumerated."""
PERMUTATIONS = 10_000
"""Random sign patterns beyond that: the smallest p-value is then 1 / 10,001."""


class Interval(NamedTuple):
    """A mean over patients with its bootstrap percentile interval; the ends are NaN with fewer than two patients."""

    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean over patients of ``a - b``, its interval, the two-sided p-value and the number of patients compared."""

    mean: float
    low: float
    high: float
    p_value: float
    patients: int


class LinesToTarget(NamedTuple):
    """Lines acquired until a curve first reaches its target.

    Attributes:
        lines: float, shape of the curves without their last axis. T + 1 where the target was not reached within T
            lines: the true number is at least that, so medians and ranks are right and a mean is a lower bound. NaN
            where the target does not exist.
        reached: bool, same shape; False both where censored and where NaN.
    """

    lines: NDArray[np.float64]
    reached: NDArray[np.bool_]


def bootstrap_interval(
    values: ArrayLike,
    patients: Sequence[Hashable],
    *,
    runs: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of patient means with a percentile interval from resampling patients.

    Args:
        values: (N,) measurements; NaN is left out.
        patients: (N,) the patient of each.
        runs: (N,) the training run (seed) of each. With it, runs are resampled as well, independently of patients, and
            a patient's value is the mean over its run means.
        draws: bootstrap samples.
        seed: of the bootstrap; the same input and seed give the same interval.
        level: coverage, between 0 and 1.

    Raises:
        SeggymError: lengths differ, a value is infinite, or ``draws`` or ``level`` is out of range.
    """
    cells = _cell_means(_finite_or_nan(values), patients, runs)
    return _interval(cells, draws=draws, seed=seed, level=level)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    patients: Sequence[Hashable],
    *,
    runs: Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Compare two methods on the same cases: mean over patients of ``a - b`` with interval and p-value.

    The p-value is that of the sign-flip permutation test on the patients' mean differences, two-sided: exact up to 12
    patients, from 10,000 random sign patterns beyond. It is NaN where no pair exists.

    Args:
        a: (N,) values of the first method; a pair with a NaN on either side is left out.
        b: (N,) values of the second method on the same cases.
        patients: (N,) the patient of each case.
        runs, draws, seed, level: as in :func:`bootstrap_interval`.

    Raises:
        SeggymError: as :func:`bootstrap_interval`.
    """
    first, second = _finite_or_nan(a), _finite_or_nan(b)
    if first.shape != second.shape:
        raise SeggymError(f"a and b must hold the same cases, found shapes {first.shape} and {second.shape}")
    cells = _cell_means(first - second, patients, runs)
    interval = _interval(cells, draws=draws, seed=seed, level=level)
    return PairedDifference(*interval, p_value=_sign_flip(_row_means(cells), seed), patients=len(cells))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment over one family of contrasts (Scand. J. Statist. 1979), in the order given.

    A NaN, a contrast that could not be tested, stays NaN and does not count as a member of the family.
    """
    tested = sorted((name for name, p in p_values.items() if not np.isnan(p)), key=lambda name: p_values[name])
    adjusted = {name: float("nan") for name in p_values}
    largest = 0.0
    for rank, name in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def area(curve: ArrayLike) -> NDArray[np.float64]:
    """Mean of Q_1..Q_T over curves (..., T+1) that start with Q_0, the quality before the first line: shape (...).

    Q_0 is left out, being the same for every policy. A NaN in a curve makes its area NaN.

    Raises:
        SeggymError: a curve has no point after Q_0.
    """
    return _curves(curve)[..., 1:].mean(axis=-1)


def lines_to(curve: ArrayLike, full: ArrayLike, fraction: float = 0.95) -> LinesToTarget:
    """Lines until quality first reaches ``fraction`` of its value at full k-space.

    Args:
        curve: (..., T+1) quality after 0, 1, .., T acquired lines.
        full: (...) or a scalar, quality with all of k-space. Where it is not positive, or it or the curve holds a NaN,
            the target does not exist.
        fraction: of ``full``.

    Raises:
        SeggymError: a curve has no point after Q_0, or ``full`` does not fit the curves.
    """
    curves, complete = _curves(curve), np.asarray(full, dtype=np.float64)
    if complete.shape not in ((), curves.shape[:-1]):
        raise SeggymError(f"full must be a number or of shape {curves.shape[:-1]}, found shape {complete.shape}")
    defined = (complete > 0) & ~np.isnan(curves).any(axis=-1)
    hits = curves >= fraction * complete[..., None]
    reached = hits.any(axis=-1) & defined
    lines = np.where(reached, hits.argmax(axis=-1), curves.shape[-1])
    return LinesToTarget(lines=np.where(defined, lines, np.nan), reached=reached)


def _curves(curve: ArrayLike) -> NDArray[np.float64]:
    curves = np.asarray(curve, dtype=np.float64)
    if curves.ndim == 0 or curves.shape[-1] < 2:
        raise SeggymError(f"curve must be (..., T+1) with T at least 1, found shape {curves.shape}; begin it with Q_0")
    return curves


def _finite_or_nan(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if np.isinf(array).any():
        raise SeggymError(f"values must be finite or NaN, found {np.isinf(array).sum()} infinite; mark them as NaN")
    return array


def _cell_means(
    values: NDArray[np.float64], patients: Sequence[Hashable], runs: Sequence[Hashable] | None
) -> NDArray[np.float64]:
    """(P, R) mean per patient and run, NaN where a patient has no value in a run; patients without any are left out."""
    groups: Sequence[Hashable] = [0] * len(patients) if runs is None else runs
    if values.ndim != 1 or not len(values) == len(patients) == len(groups):
        raise SeggymError(
            "values, patients and runs must be flat and equally long, found shape "
            f"{values.shape}, {len(patients)} patients and {len(groups)} runs; give one patient per value"
        )
    kept: list[int] = np.flatnonzero(~np.isnan(values)).tolist()
    row, rows = _numbered([patients[index] for index in kept])
    column, columns = _numbered([groups[index] for index in kept])
    sums, counts = np.zeros((rows, columns)), np.zeros((rows, columns))
    np.add.at(sums, (row, column), values[kept])
    np.add.at(counts, (row, column), 1)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _numbered(names: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    """Each name's number in order of first appearance (names need not be sortable), and how many there are."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.intp), len(numbers)


def _row_means(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nanmean(cells, axis=1) if cells.size else np.zeros(0)


def _interval(cells: NDArray[np.float64], *, draws: int, seed: int, level: float) -> Interval:
    if draws < 1 or not 0 < level < 1:
        raise SeggymError(f"draws must be at least 1 and level between 0 and 1, found {draws} and {level}")
    count, runs = cells.shape
    if count == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(_row_means(cells).mean())
    if count == 1:
        return Interval(mean, np.nan, np.nan)
    generator = np.random.default_rng(seed)
    patient_weights = generator.multinomial(count, np.full(count, 1 / count), size=draws)
    run_weights = generator.multinomial(runs, np.full(runs, 1 / runs), size=draws)
    seen = run_weights @ (~np.isnan(cells)).T
    totals = run_weights @ np.nan_to_num(cells).T
    means = np.divide(totals, seen, out=np.zeros_like(totals), where=seen > 0)
    weights = patient_weights * (seen > 0)
    drawn = weights.sum(axis=1)
    # With runs that cover few patients a draw can hold no value at all; it says nothing and is left out.
    samples = (weights * means).sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _sign_flip(differences: NDArray[np.float64], seed: int) -> float:
    count = len(differences)
    if count == 0:
        return float("nan")
    # Patterns that tie with the observed one must count although their sums differ in the last digit.
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if count <= EXACT_PATIENTS:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))
        return float((np.abs(signs @ differences) >= observed).mean())
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(PERMUTATIONS, count))
    return float((1 + (np.abs(signs @ differences) >= observed).sum()) / (1 + PERMUTATIONS))
