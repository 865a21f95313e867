"""What the methods share: measured rows, images with some of their lines, the symmetric centre and its phase."""

from collections.abc import Callable

import torch

from seggym.kspace import simulation
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.transforms import centre_crop, ifftc

Operator = Callable[[torch.Tensor], torch.Tensor]


def measured_rows(hybrid: torch.Tensor, acquired: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """The measured lines at the rows of the crop, complex (B, J, C, M); zero where nothing is measured.

    Every row of hybrid space is a one-dimensional problem of its own, and the others are not shown.
    """
    rows = centre_crop(hybrid, acquisition.crop, (-2,))
    # Not a product: an unmeasured sample that is not finite would survive it.
    return torch.where(acquired[:, None, None, :], rows, 0)


def combined(images: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """Magnitude (B, C, C) of coil images (B, J, C, M): the root of the sum of squares over the coils."""
    cropped = centre_crop(images, acquisition.crop, (-1,))
    return simulation.root_sum_of_squares(simulation.to_planes(cropped))


def keep_lines(images: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """Images (B, J, C, M) reduced to ``lines`` (B, M) of their k-space, bool or weights.

    The operator is a circulant along the columns, which commutes with the shifts of the centred transforms: only the
    mask is shifted.
    """
    weights = torch.fft.ifftshift(lines, dim=-1)[:, None, None, :]
    return torch.fft.ifft(torch.fft.fft(images, dim=-1) * weights, dim=-1)


def mirrored(acquired: torch.Tensor) -> torch.Tensor:
    """Whether the conjugate of each line, the one at the same distance on the other side of DC, is measured: (B, M).

    The outermost line of an even matrix is its own conjugate, as is DC.
    """
    matrix = acquired.shape[-1]
    line = torch.arange(matrix, device=acquired.device)
    return acquired[:, (2 * (matrix // 2) - line) % matrix]


def symmetric_half_width(acquired: torch.Tensor) -> torch.Tensor:
    """Largest h, int64 (B,), for which all lines from DC - h to DC + h are measured; -1 where DC is not."""
    dc = acquired.shape[-1] // 2
    both = (acquired & mirrored(acquired))[:, dc:]
    return both.long().cumprod(1).sum(1) - 1


def centre_window(acquired: torch.Tensor, dtype: torch.dtype, widest: int | None = None) -> torch.Tensor:
    """Hann window (B, M) over the symmetric centre of each mask, 1 at DC, 0 beyond it and ``widest`` lines off DC."""
    matrix = acquired.shape[-1]
    distance = (torch.arange(matrix, device=acquired.device) - matrix // 2).abs()
    extent = (symmetric_half_width(acquired)[:, None] + 1).clamp(max=matrix if widest is None else widest)
    angle = (torch.pi / 2) * distance.to(dtype) / extent.clamp_min(1)
    return torch.where(distance < extent, angle.cos().square(), 0)


def centre_phase(rows: torch.Tensor, acquired: torch.Tensor) -> torch.Tensor:
    """Phase factors exp(i phi), complex (B, J, C, M), of the low-resolution images of the symmetric centre."""
    window = centre_window(acquired, rows.real.dtype)
    low = ifftc(rows * window[:, None, None, :], (-1,))
    unit = torch.sgn(low)
    return torch.where(unit == 0, 1, unit)


def conjugate_gradient(operator: Operator, target: torch.Tensor, start: torch.Tensor, steps: int) -> torch.Tensor:
    """``steps`` steps towards the solution x of operator(x) = target from ``start``, each (B, ...), complex.

    The operator is Hermitian and positive definite, one for every entry of the batch: each has its own step sizes, and
    one that has arrived stays where it is. Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 1952.
    """
    solution = start
    residual = target - operator(solution)
    direction, energy = residual, _inner(residual, residual)
    # What rounding leaves of a residual: further steps would only follow the noise of the arithmetic.
    floor = torch.finfo(energy.dtype).eps ** 2 * _inner(target, target)
    for _ in range(steps):
        along = operator(direction)
        curvature = _inner(direction, along)
        arrived = (energy <= floor) | (curvature <= 0)
        step = torch.where(arrived, 0, energy / torch.where(arrived, 1, curvature))
        solution = solution + step * direction
        residual = residual - step * along
        before, energy = energy, _inner(residual, residual)
        direction = residual + torch.where(arrived, 0, energy / torch.where(arrived, 1, before)) * direction
    return solution


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Real part of the scalar product per entry of the batch, (B, 1, .., 1)."""
    product = torch.view_as_real(a) * torch.view_as_real(b)
    return product.flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))
