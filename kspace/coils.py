"""Simulated receive coils: smooth complex sensitivities around the object."""

import functools
import math

import torch

# Distance of the coils from the centre, in halves of the field of view, whose corners are 1.41 away: outside of the
# object, near enough to differ.
_RADIUS = 2.0


@functools.lru_cache(maxsize=8)
def birdcage(coils: int, size: int) -> torch.Tensor:
    """Sensitivities of ``coils`` elements on a circle around the field of view: complex64 (J, size, size).

    The sensitivity of an element falls with the inverse of the distance and turns in phase around it. The root of the
    sum of squares over the elements is 1 everywhere, so that the combined image of a scan without noise is the object.
    A single element is uniform. The result is cached and not to be written to.
    """
    if coils == 1:
        return torch.ones(1, size, size, dtype=torch.complex64)
    position = (torch.arange(size, dtype=torch.float64) - size // 2) / (size / 2)
    y, x = torch.meshgrid(position, position, indexing="ij")
    turn = 2 * math.pi * torch.arange(coils, dtype=torch.float64)[:, None, None] / coils
    to_x, to_y = x - _RADIUS * turn.cos(), y - _RADIUS * turn.sin()
    maps = torch.polar(1 / torch.hypot(to_x, to_y), torch.atan2(to_x, -to_y) - turn)
    return (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64)
