"""Orders in which the lines of k-space can be measured: permutations of 0..M-1, without looking at any data.

A fixed budget of T lines is the first T entries that are not among the initial lines.
"""

import numpy as np


def initial_block(matrix: int, count: int) -> np.ndarray:
    """The ``count`` (odd) lines around DC, DC included."""
    return np.arange(matrix // 2 - count // 2, matrix // 2 + count // 2 + 1)


def centre_out(matrix: int) -> np.ndarray:
    """DC first, then outwards, the positive side first at equal distance."""
    return partial_fourier(matrix, side=1, ratio=1)


def partial_fourier(matrix: int, side: int, ratio: int) -> np.ndarray:
    """Centre-out with ``ratio`` lines on one side (+1 or -1) for every line on the other; 1 is symmetric."""
    offsets = np.arange(matrix) - matrix // 2
    major = sorted(offsets[offsets * side > 0], key=abs)
    minor = sorted(offsets[offsets * side < 0], key=abs)
    order = [0]
    while major or minor:
        order += [major.pop(0) for _ in range(min(ratio, len(major)))]
        order += [minor.pop(0) for _ in range(min(1, len(minor)))]
    return np.asarray(order) + matrix // 2


def variable_density(matrix: int, power: float, rng: np.random.Generator) -> np.ndarray:
    """Random order, drawn without replacement with density (1 - |k| / k_max)^power (Lustig et al., MRM 2007)."""
    distance = np.abs(np.arange(matrix) - matrix // 2) / (matrix // 2 + 1)
    return drawn_by_weight(power * np.log(1 - distance), rng)


def drawn_by_weight(log_weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random order, drawn without replacement with probabilities proportional to the weights."""
    # Gumbel's trick: sorting perturbed log-weights is sampling without replacement.
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))), kind="stable")


def uniformly_random(matrix: int, rng: np.random.Generator) -> np.ndarray:
    """Every order with equal probability."""
    return rng.permutation(matrix)


def equispaced(matrix: int, budget: int, initial_lines: int, rng: np.random.Generator) -> np.ndarray:
    """``budget`` lines at equal distances over all lines but the initial block, from a random offset; then the rest."""
    return initial_then_spread(initial_block(matrix, initial_lines), np.arange(matrix), budget, rng)


def initial_then_spread(initial: np.ndarray, order: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    """``initial`` ones, then ``budget`` others at equal distances in ``order`` from a random offset; then the rest."""
    free = order[~np.isin(order, initial)]
    budget = min(budget, len(free))
    offset = rng.uniform()
    chosen = free[((np.arange(budget) + offset) * len(free) / max(budget, 1)).astype(int)]
    return np.concatenate([initial, chosen, free[~np.isin(free, chosen)]])
