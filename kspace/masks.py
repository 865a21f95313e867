"""Random undersampling for the training of reward models."""

import numpy as np

from seggym.kspace import orders
from seggym.kspace.acquisition import Acquisition

_RATIOS = (1, 2, 4, 10**6)  # lines on the major side per line on the minor side; the last one is one-sided


def random_acquired(acquisition: Acquisition, count: int, rng: np.random.Generator) -> np.ndarray:
    """Masks of acquired lines as an environment could leave them: bool (count, M).

    Every sampling policy must find the network equally prepared for it, so each mask follows one of many kinds of
    order, cut off at a random number of lines: 1/8 fully sampled, 1/8 uniformly random, 1/8 equispaced, 1/4 variable
    density with a random power, 3/8 centre-out with a random side and ratio. Two thirds of the budgets lie below a
    quarter of k-space, where an episode spends its time, the others anywhere.
    """
    matrix = acquisition.matrix
    acquired = np.zeros((count, matrix), bool)
    acquired[:, orders.initial_block(matrix, acquisition.initial_lines)] = True
    for mask in acquired:
        highest = matrix // 4 if rng.uniform() < 2 / 3 else matrix - acquisition.initial_lines
        budget = int(rng.integers(0, highest + 1))
        kind = rng.integers(8)
        if kind == 0:
            mask[:] = True
            continue
        if kind == 1:
            order = orders.uniformly_random(matrix, rng)
        elif kind == 2:
            order = orders.equispaced(matrix, budget, acquisition.initial_lines, rng)
        elif kind in (3, 4):
            order = orders.variable_density(matrix, rng.uniform(1, 12), rng)
        else:
            order = orders.partial_fourier(matrix, side=rng.choice((-1, 1)), ratio=rng.choice(_RATIOS))
        mask[order[~mask[order]][:budget]] = True
    return acquired
