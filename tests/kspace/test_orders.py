"""Orders are permutations with the properties that their names promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seggym.kspace import orders
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.masks import random_acquired

matrices = st.integers(4, 200)
seeds = st.integers(0, 2**32 - 1)


def is_permutation(order, matrix):
    return sorted(order.tolist()) == list(range(matrix))


@given(matrices, st.sampled_from((-1, 1)), st.sampled_from((1, 2, 3, 10**6)), seeds, st.floats(0.1, 20))
def test_every_order_is_a_permutation(matrix, side, ratio, seed, power):
    rng = np.random.default_rng(seed)
    assert is_permutation(orders.centre_out(matrix), matrix)
    assert is_permutation(orders.partial_fourier(matrix, side, ratio), matrix)
    assert is_permutation(orders.variable_density(matrix, power, rng), matrix)
    assert is_permutation(orders.uniformly_random(matrix, rng), matrix)


@given(matrices, seeds, st.data())
def test_equispaced_is_a_permutation_with_equal_distances(matrix, seed, data):
    initial = data.draw(st.sampled_from([count for count in (1, 3, 5) if count < matrix]))
    budget = data.draw(st.integers(0, matrix))
    order = orders.equispaced(matrix, budget, initial, np.random.default_rng(seed))
    assert is_permutation(order, matrix)
    block = orders.initial_block(matrix, initial)
    free = [line for line in range(matrix) if line not in set(block)]
    budget = min(budget, len(free))
    chosen = sorted(free.index(line) for line in order[initial : initial + budget])
    if budget > 1:
        distances = np.diff(chosen)
        assert distances.max() - distances.min() <= 1
    assert sorted(order[:initial]) == block.tolist()


@given(matrices, st.sampled_from((-1, 1)), st.sampled_from((1, 2, 3)))
def test_partial_fourier_grows_outwards_on_both_sides(matrix, side, ratio):
    offsets = orders.partial_fourier(matrix, side, ratio) - matrix // 2
    assert offsets[0] == 0
    for sign in (-1, 1):
        distances = np.abs(offsets[offsets * sign > 0])
        assert (np.diff(distances) == 1).all()
        assert len(distances) == 0 or distances[0] == 1
    major = (offsets[1 : 1 + ratio] * side > 0).sum()
    assert major == min(ratio, (offsets * side > 0).sum())


@pytest.mark.parametrize("matrix", [8, 9])
def test_centre_out_by_hand(matrix):
    expected = [4, 5, 3, 6, 2, 7, 1, 0] if matrix == 8 else [4, 5, 3, 6, 2, 7, 1, 8, 0]
    assert orders.centre_out(matrix).tolist() == expected
    assert orders.initial_block(matrix, 3).tolist() == [3, 4, 5]


def test_variable_density_prefers_the_centre_as_stated():
    """The first line of the order is drawn with probability proportional to (1 - |k| / k_max)^power."""
    matrix, power, draws = 9, 3.0, 20_000
    rng = np.random.default_rng(0)
    counts = np.bincount([orders.variable_density(matrix, power, rng)[0] for _ in range(draws)], minlength=matrix)
    weights = (1 - np.abs(np.arange(matrix) - 4) / 5) ** power
    expected = weights / weights.sum()
    error = np.abs(counts / draws - expected)
    assert (error < 5 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_random_masks_cover_what_a_policy_could_leave():
    scan = Acquisition(matrix=160, crop=128)
    masks = random_acquired(scan, 4000, np.random.default_rng(0))
    assert masks.shape == (4000, 160)
    assert masks.dtype == bool
    assert masks[:, orders.initial_block(160, 3)].all()
    lines = masks.sum(1)
    assert lines.min() == 3
    assert lines.max() == 160
    assert (lines == 160).mean() == pytest.approx(1 / 8, abs=0.03)
    assert (lines <= 43).mean() > 0.5
    one_sided = masks[:, 82:].any(1) != masks[:, :79].any(1)
    assert one_sided.any()
    again = random_acquired(scan, 4000, np.random.default_rng(0))
    np.testing.assert_array_equal(masks, again)
