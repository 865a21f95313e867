"""Simulated coils: a combined image without noise is the object, and coils differ."""

import pytest
import torch

from seggym.kspace.coils import birdcage


@pytest.mark.parametrize("coils", [1, 2, 5, 16])
@pytest.mark.parametrize("size", [32, 33])
def test_the_root_of_the_sum_of_squares_is_one(coils, size):
    maps = birdcage(coils, size)
    assert (maps.shape, maps.dtype) == ((coils, size, size), torch.complex64)
    torch.testing.assert_close(maps.abs().square().sum(0).sqrt(), torch.ones(size, size))


def test_every_coil_is_strongest_next_to_itself():
    size = 65
    maps = birdcage(4, size).abs()
    # Coils at the right, the bottom (rows grow downwards), the left and the top.
    edges = [(size // 2, -1), (-1, size // 2), (size // 2, 0), (0, size // 2)]
    for coil, (row, column) in enumerate(edges):
        assert int(maps[:, row, column].argmax()) == coil
    # A quarter of a turn takes one coil to the next.
    torch.testing.assert_close(maps[1], maps[0].rot90(-1), atol=1e-4, rtol=0)


def test_sensitivities_are_smooth():
    """Neighbouring pixels differ by little, in the corners too."""
    maps = birdcage(8, 64)
    steps = torch.cat([maps.diff(dim=1).flatten(), maps.diff(dim=2).flatten()]).abs()
    assert steps.max() < 0.1
