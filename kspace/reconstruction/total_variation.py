"""Compressed sensing with total variation (Lustig, Donoho and Pauly, MRM 2007)."""

import torch

from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.lines import (
    centre_phase,
    combined,
    conjugate_gradient,
    keep_lines,
    measured_rows,
)
from seggym.kspace.transforms import ifftc


def total_variation(
    hybrid: torch.Tensor,
    acquired: torch.Tensor,
    acquisition: Acquisition,
    *,
    strength: float = 0.02,
    iterations: int = 10,
    conjugate_steps: int = 5,
    smoothing: float = 0.05,
) -> torch.Tensor:
    """Magnitude (B, C, C) of the images that minimise :func:`objective`: few edges, and the measured lines nearly kept.

    ``strength`` weighs the total variation and ``smoothing`` rounds its corner, both in units of the mean magnitude of
    the zero-filled image. The phase of the symmetric centre is taken off first, as a smooth phase is no edge.

    Solved by iteratively reweighted least squares: each of the ``iterations`` replaces the total variation by a
    quadratic that touches it at the current image and lies above it (Hunter and Lange, The American Statistician
    2004), and takes ``conjugate_steps`` conjugate gradient steps on that. Every such step lowers the quadratic and so
    the objective, in float32 as well: there is no step size to choose. FISTA needs an inner solver for the proximal map
    of the total variation, and primal-dual methods lower no objective on their way, so that it matters where they stop.
    """
    rows = measured_rows(hybrid, acquired, acquisition)
    phase = centre_phase(rows, acquired)
    image = ifftc(rows, (-1,)) * phase.conj()
    scale = image.abs().square().sum(1, keepdim=True).sqrt().mean((2, 3), keepdim=True)
    # In units of the scale; a scan of zeros stays what it is.
    image = image / torch.where(scale > 0, scale, 1)
    solved = minimise(image, phase, acquired, strength, smoothing, iterations, conjugate_steps)
    return combined(solved * scale, acquisition)


def minimise(
    data: torch.Tensor,
    phase: torch.Tensor,
    acquired: torch.Tensor,
    strength: float,
    smoothing: float,
    iterations: int,
    conjugate_steps: int,
) -> torch.Tensor:
    """The image (B, J, C, M) after ``iterations`` from ``data``, the zero-filled one; both without ``phase``."""

    def normal(image: torch.Tensor) -> torch.Tensor:
        return keep_lines(image * phase, acquired) * phase.conj()

    image = data
    for _ in range(iterations):
        weight = strength / _edges(*_gradient(image), smoothing)

        def majorised(x: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
            down, right = _gradient(x)
            return normal(x) + _gradient_adjoint(weight * down, weight * right)

        image = conjugate_gradient(majorised, data, image, conjugate_steps)
    return image


def objective(
    image: torch.Tensor,
    data: torch.Tensor,
    phase: torch.Tensor,
    acquired: torch.Tensor,
    strength: float,
    smoothing: float,
) -> torch.Tensor:
    """What :func:`minimise` lowers, (B,): half the squared error of the measured lines, and ``strength`` times the
    total variation, the sum over pixels of sqrt(|gradient|^2 + smoothing^2), the gradient that of all coils together.
    """
    error = keep_lines(image * phase, acquired) - data * phase
    variation = _edges(*_gradient(image), smoothing).sum((1, 2, 3))
    return error.abs().square().sum((1, 2, 3)) / 2 + strength * variation


def _edges(down: torch.Tensor, right: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Length of the gradient of all coils at each pixel, at least ``smoothing``: float (B, 1, C, M)."""
    squared = torch.view_as_real(down).square().sum((1, -1)) + torch.view_as_real(right).square().sum((1, -1))
    return squared.add(smoothing**2).sqrt().unsqueeze(1)


def _gradient(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward differences along rows and columns; zero at the lower edge of the crop, where rows end.

    Columns are periodic, as what a discrete transform describes is.
    """
    return image.diff(dim=-2, append=image[..., -1:, :]), image.roll(-1, -1) - image


def _gradient_adjoint(down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The adjoint of :func:`_gradient`; the last row of ``down`` is zero."""
    image = right.roll(1, -1).sub_(right).sub_(down)
    image[..., 1:, :] += down[..., :-1, :]
    return image
