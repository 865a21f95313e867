"""Measured k-space on the acquisition matrix: hybrid space, the lines that there are, virtual coils and labels.

Lines stay what was measured: along the phase-encode axis k-space is cropped or zero-padded to the matrix. The readout
is known in full, so that its resolution and its field of view may be chosen: the resolution is that of the lines, which
makes pixels square, and the field of view is cut or padded to M pixels in the image domain.
"""

import numpy as np
import torch

from seggym.kspace.transforms import centre_crop, fftc, ifftc


def readout_samples(shape: tuple[int, ...], spacing: tuple[float, float, float], matrix: int) -> int:
    """Samples of the readout that give it the pixel size of ``matrix`` lines.

    shape (..., R, L) of the data; spacing (z, readout, line) in mm of a pixel of its full image.
    """
    return max(1, round(matrix * (spacing[1] * shape[-2]) / (spacing[2] * shape[-1])))


def hybrid_space(kspace: torch.Tensor, samples: int, matrix: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hybrid space complex64 (Z, J, M, M) of k-space (Z, J, R, L), and the lines that were measured, bool (Z, M).

    ``samples`` of the readout are kept (:func:`readout_samples`). A line that is zero in all coils was not measured.
    """
    lines = centre_crop(kspace.to(torch.complex64), matrix, (-1,))
    hybrid = centre_crop(ifftc(centre_crop(lines, samples, (-2,)), (-2,)), matrix, (-2,))
    return hybrid, (lines != 0).any(2).any(1)


def virtual_coils(hybrid: torch.Tensor, coils: int, lines: np.ndarray) -> torch.Tensor:
    """``hybrid`` (Z, J, M, M) compressed to ``coils`` virtual coils: those that hold most of the signal of ``lines``.

    The singular value decomposition over coils (Buehrer et al., MRM 57:1131, 2007) of each slice. It sees ``lines``
    alone, which every episode measures first: what virtual coils observe is a function of measured samples.
    """
    if hybrid.shape[1] == coils:
        return hybrid
    block = hybrid[..., torch.from_numpy(lines)].flatten(2)
    left, _, _ = torch.linalg.svd(block, full_matrices=False)
    return torch.einsum("zjc,zjrl->zcrl", left[..., :coils].conj(), hybrid)


def labels_at(label: np.ndarray, samples: int, matrix: int, crop: int) -> np.ndarray:
    """Labels (Z, R, L) of the full image at the pixels of the crop, by nearest neighbour: uint8 (Z, C, C)."""
    offsets = np.arange(crop) - crop // 2
    picked = np.zeros((len(label), crop, crop), np.uint8)
    inside, positions = [], []
    for length, pixels in zip(label.shape[1:], (samples, matrix), strict=True):
        nearest = np.floor(offsets * (length / pixels) + 0.5).astype(int) + length // 2
        inside.append((nearest >= 0) & (nearest < length))
        positions.append(nearest[inside[-1]])
    picked[np.ix_(np.arange(len(label)), *inside)] = label[:, positions[0]][:, :, positions[1]]
    return picked


def full_image(hybrid: torch.Tensor) -> torch.Tensor:
    """Root sum of squares of all lines, float32 (Z, M, M)."""
    return ifftc(hybrid, (-1,)).abs().square().sum(1).sqrt()


def warped(hybrid: torch.Tensor, available: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """``hybrid`` (B, J, M, M) of the coil images sampled at ``grid`` float (B, M, M, 2), for augmentation.

    ``grid`` as ``torch.nn.functional.grid_sample`` takes it. Lines that are not ``available`` bool (B, M) stay zeros.
    """
    images = torch.view_as_real(ifftc(hybrid, (-1,))).movedim(-1, 2).flatten(1, 2)
    moved = torch.nn.functional.grid_sample(images, grid, mode="bilinear", align_corners=False)
    parts = moved.unflatten(1, (-1, 2)).movedim(2, -1).contiguous()
    return fftc(torch.view_as_complex(parts), (-1,)) * available[:, None, None, :]
