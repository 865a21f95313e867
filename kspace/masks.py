"""Random undersampling for the training of reward models."""

import numpy as np

from seggym.kspace import orders, view_orders
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.points import block_centres

_RATIOS = (1, 2, 4, 10**6)  # lines on the major side per line on the minor side; the last one is one-sided


def random_acquired(acquisition: Acquisition, count: int, rng: np.random.Generator) -> np.ndarray:
    """Masks of acquired views as an environment could leave them: bool (count, V).

    Every sampling policy must find the network equally prepared for it, so each mask follows one of many kinds of
    order, cut off at a random number of views. 1/8 are fully sampled. Of lines 1/8 are uniformly random, 1/8
    equispaced, 1/4 variable density with a random power, 3/8 centre-out with a random side and ratio; of spokes 1/4
    are uniformly random, 1/4 equispaced, 3/8 consecutive ones of the golden angle; of points 1/8 are uniformly random,
    3/8 variable density, 3/8 ellipses about a point near DC. Two thirds of the budgets lie below a quarter of k-space,
    where an episode spends its time, the others anywhere.
    """
    views, initial = acquisition.num_views, acquisition.initial_views
    acquired = np.zeros((count, views), bool)
    acquired[:, initial] = True
    draw = {"lines": _lines, "radial": _spokes, "points": _points}[acquisition.trajectory]
    for mask in acquired:
        highest = views // 4 if rng.uniform() < 2 / 3 else views - len(initial)
        budget = int(rng.integers(0, highest + 1))
        kind = rng.integers(8)
        if kind == 0:
            mask[:] = True
            continue
        order = draw(acquisition, int(kind), budget, rng)
        mask[order[~mask[order]][:budget]] = True
    return acquired


def _lines(acquisition: Acquisition, kind: int, budget: int, rng: np.random.Generator) -> np.ndarray:
    matrix = acquisition.matrix
    if kind == 1:
        return orders.uniformly_random(matrix, rng)
    if kind == 2:
        return orders.equispaced(matrix, budget, acquisition.initial_lines, rng)
    if kind in (3, 4):
        return orders.variable_density(matrix, rng.uniform(1, 12), rng)
    return orders.partial_fourier(matrix, side=rng.choice((-1, 1)), ratio=rng.choice(_RATIOS))


def _spokes(acquisition: Acquisition, kind: int, budget: int, rng: np.random.Generator) -> np.ndarray:
    if kind in (1, 2):
        return orders.uniformly_random(acquisition.spokes, rng)
    if kind in (3, 4):
        return view_orders.equispaced_spokes(acquisition, budget, rng)
    return np.roll(view_orders.golden_angle(acquisition), rng.integers(acquisition.spokes))


def _points(acquisition: Acquisition, kind: int, budget: int, rng: np.random.Generator) -> np.ndarray:
    if kind == 1:
        return orders.uniformly_random(acquisition.num_views, rng)
    if kind in (2, 3, 4):
        return view_orders.variable_density_points(acquisition, rng.uniform(1, 12), rng)
    aspect, centre = np.exp(rng.uniform(-0.7, 0.7)), rng.uniform(-0.1, 0.1, 2) * acquisition.matrix
    y, x = (block_centres(acquisition) - centre).T
    return np.argsort(np.hypot(y * aspect, x / aspect), kind="stable")
