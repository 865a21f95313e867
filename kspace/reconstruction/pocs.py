"""Projection onto convex sets for k-space measured on one side (Haacke, Lindskog and Lin, J. Magn. Reson. 1991)."""

import torch

from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.lines import centre_phase, combined, keep_lines, measured_rows, mirrored
from seggym.kspace.transforms import ifftc


def pocs(
    hybrid: torch.Tensor, acquired: torch.Tensor, acquisition: Acquisition, *, iterations: int = 10
) -> torch.Tensor:
    """Magnitude (B, C, C) after ``iterations`` projections of each coil's image, alternately

    onto the images that have the phase of the symmetric centre, and onto those that have the measured lines. Lines
    whose conjugate is measured are filled in; those of which nothing is known stay zero, so that a symmetric mask gives
    the zero-filled image. Measured lines are kept as they are.
    """
    rows = measured_rows(hybrid, acquired, acquisition)
    phase = centre_phase(rows, acquired)
    measured = ifftc(rows, (-1,))
    filled = mirrored(acquired) & ~acquired
    image = measured
    for _ in range(iterations):
        image = measured + keep_lines(image.abs() * phase, filled)
    return combined(image, acquisition)
