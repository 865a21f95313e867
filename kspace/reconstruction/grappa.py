"""Parallel imaging without sensitivities: GRAPPA (Griswold et al., MRM 2002), for any set of measured lines."""

import functools

import torch

from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.lines import combined, symmetric_half_width
from seggym.kspace.transforms import centre_crop, fftc, ifftc

# Lines of the centre that kernels are calibrated on, at most (odd): more cost time and tell little.
_CALIBRATION = 25
# Scans: the normal equations of all their lines take 75 MiB for each with 8 coils.
_AT_A_TIME = 8


def grappa(
    hybrid: torch.Tensor,
    acquired: torch.Tensor,
    acquisition: Acquisition,
    *,
    neighbours: int = 4,
    readout: int = 3,
    regularisation: float = 1e-2,
) -> torch.Tensor:
    """Magnitude (B, C, C): each missing line is predicted from the measured ones next to it, in all coils together.

    A kernel takes the ``neighbours`` nearest measured lines and ``readout`` (odd) samples along the readout. As masks
    are irregular, each missing line has its own, fitted where the same pattern lies within the symmetric centre of
    k-space, which is measured without gaps; ``regularisation`` is relative to the mean energy of the samples. Lines are
    used up to a distance of a third of the centre's width, so that the pattern fits in several places. Nothing is
    extrapolated: a line without a neighbour in reach on either side stays zero, and with less than three central lines
    all of them do.
    """
    if len(hybrid) > _AT_A_TIME:
        parts = zip(hybrid.split(_AT_A_TIME), acquired.split(_AT_A_TIME), strict=True)
        few = functools.partial(grappa, neighbours=neighbours, readout=readout, regularisation=regularisation)
        return torch.cat([few(*part, acquisition) for part in parts])
    lines = torch.where(acquired[:, None, None, :], hybrid, 0)
    # In double precision, as normal equations square the condition number.
    samples = fftc(lines, (-2,)).to(torch.complex128).permute(0, 3, 2, 1)
    windows = _readout_windows(samples, readout)
    width = (2 * symmetric_half_width(acquired) + 1).clamp(0, _CALIBRATION)
    source, usable = _nearest(acquired, neighbours, width // 3)
    kernel = _fit(samples, windows, source, usable, width, regularisation)
    predicted = torch.einsum("blnsf,blnfj->blsj", _taken(windows, source), kernel)
    filled = torch.where(acquired[:, :, None, None], samples, predicted).permute(0, 3, 2, 1)
    images = ifftc(centre_crop(ifftc(filled, (-2,)), acquisition.crop, (-2,)), (-1,))
    return combined(images.to(hybrid.dtype), acquisition)


def _readout_windows(samples: torch.Tensor, readout: int) -> torch.Tensor:
    """The ``readout`` neighbouring samples of all coils at each sample: (B, L, S, F) of (B, L, S, J)."""
    half = readout // 2
    return torch.cat([samples.roll(shift, 2) for shift in range(-half, half + 1)], -1)


def _nearest(acquired: torch.Tensor, count: int, reach: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest measured lines of each line, int64 (B, L, n), the lower one first at equal distance.

    And which of them are to be used, bool: those within ``reach`` int64 (B,) of a line that is missing and has such
    neighbours on both sides.
    """
    matrix = acquired.shape[1]
    line = torch.arange(matrix, device=acquired.device)
    offset = line - line[:, None]
    rank = 2 * offset.abs() + (offset > 0)
    rank = torch.where(acquired[:, None, :], rank, 4 * matrix)
    nearest, source = rank.topk(min(count, matrix), dim=-1, largest=False)
    near = (nearest // 2 <= reach[:, None, None]) & ~acquired[:, :, None]
    above, below = source > line[:, None], source < line[:, None]
    return source, near & (near & above).any(-1, True) & (near & below).any(-1, True)


def _fit(
    samples: torch.Tensor,
    windows: torch.Tensor,
    source: torch.Tensor,
    usable: torch.Tensor,
    width: torch.Tensor,
    regularisation: float,
) -> torch.Tensor:
    """Kernels complex (B, L, n, F, J) by regularised least squares over all places of the pattern in the centre.

    The products of any two lines of the centre are computed once; the normal equations of a pattern are sums of them.
    """
    batch, matrix, _, coils = samples.shape
    count, features = source.shape[-1], windows.shape[-1]
    block = min(_CALIBRATION, matrix - 1 + matrix % 2)
    first = matrix // 2 - block // 2
    centre = windows[:, first : first + block].permute(0, 1, 3, 2).flatten(1, 2)  # (B, W F, S)
    targets = samples[:, first : first + block].permute(0, 2, 1, 3).flatten(2)  # (B, S, W J)
    products = (centre.conj() @ centre.mT).view(batch, block, features, block, features).transpose(2, 3)
    answers = (centre.conj() @ targets).view(batch, block, features, block, coils).transpose(2, 3)
    offset = source - torch.arange(matrix, device=source.device)[:, None]
    low, high = (block // 2 - width // 2)[:, None], (block // 2 + width // 2)[:, None]
    scan = torch.arange(batch, device=source.device)[:, None, None]
    square = samples.new_zeros(batch, matrix, count, count, features, features)
    right = samples.new_zeros(batch, matrix, count, features, coils)
    for place in range(block):
        at = place + offset
        inside = ((at >= low[..., None]) & (at <= high[..., None])) | ~usable
        fits = inside.all(-1) & (low <= place) & (high >= place)
        chosen = at.clamp(0, block - 1)
        weight = (usable & fits[..., None]).to(samples.dtype)
        pairs = products[scan[..., None], chosen[..., :, None], chosen[..., None, :]]
        square += pairs * (weight[..., :, None] * weight[..., None, :])[..., None, None]
        right += answers[scan, chosen, place] * weight[..., None, None]
    size = count * features
    square = square.transpose(3, 4).reshape(batch, matrix, size, size)
    energy = square.diagonal(dim1=-2, dim2=-1).real.sum(-1) / (usable.sum(-1) * features).clamp_min(1)
    ridge = torch.where(energy > 0, regularisation * energy, 1)
    square += torch.diag_embed(ridge[..., None].expand(-1, -1, size)).to(square.dtype)
    factor = torch.linalg.cholesky_ex(square).L
    return torch.cholesky_solve(right.flatten(2, 3), factor).view(batch, matrix, count, features, coils)


def _taken(windows: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The lines ``source`` int64 (B, L, n) of (B, L, S, F): (B, L, n, S, F)."""
    return windows[torch.arange(len(windows), device=source.device)[:, None, None], source]
