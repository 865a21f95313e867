"""Coil sensitivities for parallel imaging: those of the simulated coils, or estimated from the measured lines."""

import torch

from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.coils import birdcage
from seggym.kspace.reconstruction.lines import centre_window
from seggym.kspace.transforms import centre_crop, fftc, ifftc

SENSITIVITIES = ("estimated", "known")

# Sensitivities are smooth: lines further from DC would add little but noise, which then enters every pixel.
_WIDEST = 10


def coil_maps(kind: str, hybrid: torch.Tensor, acquired: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """Sensitivities of ``kind`` at the rows of the crop, complex (B, J, C, M), of unit root sum of squares.

    "known" are those that the scan was simulated with (:mod:`seggym.kspace.coils`). "estimated" are the images of the
    symmetric centre of k-space, at low resolution along both axes, divided by their root sum of squares; they carry the
    phase of the object, which a magnitude does not need. Where they vanish the first coil is said to see everything.
    """
    if kind == "known":
        maps = centre_crop(birdcage(acquisition.coils, acquisition.matrix), acquisition.crop, (-2,))
        return maps.to(hybrid).expand(len(hybrid), -1, -1, -1)
    if kind != "estimated":
        raise SeggymError(f"sensitivities={kind!r} is unknown, expected {' or '.join(SENSITIVITIES)}")
    window = centre_window(acquired, hybrid.real.dtype, _WIDEST)
    lines = torch.where(acquired[:, None, None, :], hybrid, 0) * window[:, None, None, :]
    # The readout is measured in full; cut to the same window, noise does not enter through it.
    low = ifftc(fftc(lines, (-2,)) * window[:, None, :, None], (-2,))
    low = ifftc(centre_crop(low, acquisition.crop, (-2,)), (-1,))
    total = low.abs().square().sum(1, keepdim=True).sqrt()
    first = torch.zeros_like(low)
    first[:, 0] = 1
    return torch.where(total > 0, low / torch.where(total > 0, total, 1), first)
