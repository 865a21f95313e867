"""Numbers of active-learning curves: area, foreground efficiency, pairwise penalties, ranks, what could be detected.

A curve is Dice by round. Seeds are paired: strategies start from the same samples and the same network with one seed.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, optimize, stats

from seggym.errors import SeggymError
from seggym.reward_models.statistics import holm

AXES = ("samples", "log_samples", "rounds")
"""The x-axes of an area: annotated samples, their logarithm (doubling the budget counts the same anywhere), rounds."""


def aubc(values: ArrayLike, samples: ArrayLike, axis: str = "samples") -> np.ndarray:
    """Area under the budget curve by trapezoids, divided by the width of the x-axis: a mean Dice.

    ``values`` (..., R) belong to ``samples`` (R,), the start included; a constant curve has that constant as area. A
    NaN makes the area NaN. Raises :class:`SeggymError` for fewer than two rounds or an unknown axis.
    """
    curves, budgets = np.asarray(values, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if axis not in AXES:
        raise SeggymError(f"axis={axis!r} is unknown, expected one of {', '.join(AXES)}; name one of them")
    if len(budgets) < 2 or curves.shape[-1:] != budgets.shape:
        raise SeggymError(
            f"an area needs at least two rounds and a value for each, found {len(budgets)} rounds and values of shape "
            f"{curves.shape}; run more rounds"
        )
    x = {"samples": budgets, "log_samples": np.log(budgets), "rounds": np.arange(len(budgets), dtype=np.float64)}[axis]
    return integrate.trapezoid(curves, x, axis=-1) / (x[-1] - x[0])


def foreground_efficiency(
    foreground: Mapping[str, np.ndarray], curves: Mapping[str, np.ndarray], full: float
) -> dict[str, float]:
    """How fast each strategy turns annotated foreground into Dice: b of y = c - a exp(-b (x - x0)).

    nnActive's FG-Eff (Luth et al., TMLR 2025): x is the share of the pool's foreground that is annotated (0 to 1), c
    the Dice ``full`` with the whole pool, x0 and c - a the means of x and y in round 0 over all strategies and seeds; b
    alone is fitted, by least squares over rounds and seeds. Both mappings hold (S, R) by strategy. NaN where ``full``
    is not known or no better than the start.
    """
    x0 = float(np.mean([x[:, 0].mean() for x in foreground.values()]))
    start = float(np.mean([y[:, 0].mean() for y in curves.values()]))

    def fit(x: np.ndarray, y: np.ndarray) -> float:
        def residuals(b: np.ndarray) -> np.ndarray:
            return full - (full - start) * np.exp(np.clip(-b[0] * (x - x0), None, 50)) - y

        # One parameter, but not convex: begin at the best point of a coarse grid.
        grid = np.concatenate([-np.logspace(2, -2, 17), [0.0], np.logspace(-2, 4, 25)])
        best = min(grid, key=lambda b: float((residuals(np.asarray([b])) ** 2).sum()))
        return float(optimize.least_squares(residuals, [best], x_scale=max(abs(best), 1e-3)).x[0])

    if not full > start:
        return dict.fromkeys(curves, float("nan"))
    return {name: fit(foreground[name].ravel(), curves[name].ravel()) for name in curves}


def paired_t(differences: ArrayLike) -> float:
    """Two-sided p of the paired t-test on ``differences`` (S,); 1 where all are 0 and NaN for fewer than two."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return float("nan")
    spread = values.std(ddof=1) / np.sqrt(len(values))
    if spread <= 1e-12 * max(np.abs(values).max(), 1e-300):
        # The test statistic is 0 / 0 or infinite.
        return 1.0 if not values.any() else 0.0
    return float(2 * stats.t.sf(abs(values.mean() / spread), len(values) - 1))


def penalty_matrix(
    curves: Mapping[str, np.ndarray], *, level: float = 0.05, corrected: bool = True, skip_first: bool = True
) -> np.ndarray:
    """Share of rounds in which the strategy of a row beats that of a column significantly, (A, A).

    The pairwise penalty matrix of Ash et al. (BADGE, ICLR 2020) with paired t-tests over seeds (two-sided, at
    ``level``); ``corrected`` adjusts the pairs of one round by Holm. ``curves`` hold (S, R) by strategy, row s the same
    seed everywhere. ``skip_first`` leaves round 0 out, where all are the same. With one seed nothing is significant.
    """
    names = list(curves)
    rounds = range(int(skip_first), next(iter(curves.values())).shape[1])
    matrix = np.zeros((len(names), len(names)))
    for number in rounds:
        differences = {
            f"{a} {b}": (a, b, curves[names[a]][:, number] - curves[names[b]][:, number])
            for a, b in combinations(range(len(names)), 2)
        }
        p_values = {pair: paired_t(values) for pair, (_, _, values) in differences.items()}
        for pair, p in (holm(p_values) if corrected else p_values).items():
            a, b, values = differences[pair]
            if p < level:
                winner, loser = (a, b) if values.mean() > 0 else (b, a)
                matrix[winner, loser] += 1 / len(rounds)
    return matrix


def mean_ranks(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean over seeds of the rank of each strategy, 1 the best, ties shared; ``values`` hold (S,) by strategy."""
    ranks = stats.rankdata(-np.stack(list(values.values())), axis=0).mean(1)
    return dict(zip(values, ranks.tolist(), strict=True))


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p of an exact sign-flip test over ``seeds`` paired differences: 2 of 2^S patterns."""
    return 2.0 ** (1 - seeds)


def detectable_difference(differences: ArrayLike, *, power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference that a paired t-test over as many seeds would find with probability ``power``.

    In the unit of ``differences`` (S,), whose standard deviation is taken for the true one; NaN for fewer than two.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if count < 2:
        return float("nan")
    critical = stats.t.isf(level / 2, count - 1)

    def missing(noncentrality: float) -> float:
        # Far from zero SciPy's lower tail is NaN instead of next to nothing.
        lower = np.nan_to_num(stats.nct.cdf(-critical, count - 1, noncentrality))
        return float(stats.nct.sf(critical, count - 1, noncentrality) + lower - power)

    high = 2.0
    while missing(high) < 0:
        high *= 2
    return float(optimize.brentq(missing, 0.0, high) * values.std(ddof=1) / np.sqrt(count))
