"""Parallel imaging with coil sensitivities (SENSE; Pruessmann et al., MRM 1999 and 2001)."""

import torch

from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.lines import conjugate_gradient, keep_lines, measured_rows
from seggym.kspace.reconstruction.sensitivities import coil_maps
from seggym.kspace.transforms import centre_crop, ifftc


def sense(
    hybrid: torch.Tensor,
    acquired: torch.Tensor,
    acquisition: Acquisition,
    *,
    sensitivities: str = "estimated",
    regularisation: float = 0.03,
    iterations: int = 10,
) -> torch.Tensor:
    """Magnitude (B, C, C) of the one image that, seen by every coil, has the measured lines.

    Conjugate gradients on the normal equations of min |E x - y|^2 + ``regularisation`` |x - x0|^2, where x0 is the
    zero-filled images of the coils combined by their sensitivities (Lin et al., MRM 2004, regularise towards a prior
    image): what the coils cannot tell stays zero-filled, and with every line measured the result is x0.
    ``sensitivities`` as in :func:`~seggym.kspace.reconstruction.sensitivities.coil_maps`.
    """
    maps = coil_maps(sensitivities, hybrid, acquired, acquisition)

    def combine(images: torch.Tensor) -> torch.Tensor:
        return (maps.conj() * images).sum(1, keepdim=True)

    def normal(x: torch.Tensor) -> torch.Tensor:
        return combine(keep_lines(maps * x, acquired)) + regularisation * x

    measured = ifftc(measured_rows(hybrid, acquired, acquisition), (-1,))
    prior = combine(measured)
    error = combine(measured - keep_lines(maps * prior, acquired))
    image = prior + conjugate_gradient(normal, error, torch.zeros_like(error), iterations)
    return centre_crop(image[:, 0], acquisition.crop, (-1,)).abs()
