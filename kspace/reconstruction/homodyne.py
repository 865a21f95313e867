"""Homodyne detection for k-space measured on one side (Noll, Nishimura and Macovski, IEEE TMI 1991)."""

import torch

from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.lines import centre_phase, combined, measured_rows, mirrored
from seggym.kspace.transforms import ifftc


def homodyne(hybrid: torch.Tensor, acquired: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """Magnitude (B, C, C): an object without phase has a conjugate-symmetric k-space, so one side tells the other.

    A line whose conjugate is missing counts twice; the phase of the symmetric centre is taken off each coil's image,
    and of what remains the real part is the object (it may be of either sign, the magnitude is returned). A scan
    without such a line gives the zero-filled image.
    """
    rows = measured_rows(hybrid, acquired, acquisition)
    alone = acquired & ~mirrored(acquired)
    image = ifftc(torch.where(alone[:, None, None, :], 2 * rows, rows), (-1,))
    real = (image * centre_phase(rows, acquired).conj()).real
    one_sided = alone.any(1)[:, None, None, None]
    return combined(torch.where(one_sided, torch.complex(real, torch.zeros_like(real)), image), acquisition)
