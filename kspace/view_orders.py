"""Orders of the views of any trajectory: permutations of 0..V-1, without looking at any data.

Lines have theirs in :mod:`seggym.kspace.orders`; here are those of spokes and points, and what every trajectory has.
"""

import math

import numpy as np

from seggym.kspace import orders
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.points import block_centres
from seggym.kspace.radial import GOLDEN_ANGLE, spoke_angles


def plain_order(acquisition: Acquisition) -> np.ndarray:
    """How to measure without knowing anything: centre-out, spokes by the golden angle; initial views come first."""
    if acquisition.trajectory == "radial":
        return golden_angle(acquisition)
    if acquisition.trajectory == "points":
        return points_centre_out(acquisition)
    return orders.centre_out(acquisition.matrix)


def near_centre(acquisition: Acquisition, window: int) -> np.ndarray:
    """The views that a search tries, in :func:`plain_order`: the 2 * ``window`` + 1 nearest to DC, and every spoke."""
    order = plain_order(acquisition)
    return order if acquisition.trajectory == "radial" else order[: 2 * window + 1]


def golden_angle(acquisition: Acquisition) -> np.ndarray:
    """The initial spokes, then always the free spoke nearest to the next multiple of the golden angle.

    Of spokes that are numbered by that angle it is their own order (Winkelmann et al., IEEE TMI 2007).
    """
    if acquisition.angles == "golden":
        return np.arange(acquisition.spokes)
    angles, order = spoke_angles(acquisition), acquisition.initial_views.tolist()
    free = np.ones(acquisition.spokes, bool)
    free[order] = False
    for number in range(1, acquisition.spokes - len(order) + 1):
        turn = np.abs(angles - number * GOLDEN_ANGLE % math.pi)
        distance = np.where(free, np.minimum(turn, math.pi - turn), np.inf)
        order.append(int(distance.argmin()))
        free[order[-1]] = False
    return np.asarray(order)


def spokes_by_angle(acquisition: Acquisition) -> np.ndarray:
    """One spoke beside the other: the order of the clock hand."""
    return np.argsort(spoke_angles(acquisition), kind="stable")


def equispaced_spokes(acquisition: Acquisition, budget: int, rng: np.random.Generator) -> np.ndarray:
    """``budget`` spokes at equal distances over all but the initial ones, from a random offset; then the rest."""
    return orders.initial_then_spread(acquisition.initial_views, spokes_by_angle(acquisition), budget, rng)


def points_centre_out(acquisition: Acquisition) -> np.ndarray:
    """The initial points, then by distance from DC, a lower index first at equal distance."""
    distance = np.hypot(*block_centres(acquisition).T)
    distance[acquisition.initial_views] = -1
    return np.argsort(distance, kind="stable")


def variable_density_points(acquisition: Acquisition, power: float, rng: np.random.Generator) -> np.ndarray:
    """Random order with density (1 - |k| / k_max)^power; k_max lies in the corner (Lustig et al., MRM 2007)."""
    distance = np.hypot(*block_centres(acquisition).T) / (math.sqrt(2) * (acquisition.matrix // 2 + 1))
    return orders.drawn_by_weight(power * np.log(1 - distance), rng)


def random_order(acquisition: Acquisition, power: float, rng: np.random.Generator) -> np.ndarray:
    """A random order with a density that falls from DC with ``power``; spokes, which all meet there, uniformly."""
    if acquisition.trajectory == "radial":
        return orders.uniformly_random(acquisition.spokes, rng)
    if acquisition.trajectory == "points":
        return variable_density_points(acquisition, power, rng)
    return orders.variable_density(acquisition.matrix, power, rng)
