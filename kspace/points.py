"""Points of a Cartesian grid: two phase-encode axes, as in a 3-D scan whose readout is perpendicular to the slice."""

import math

import numpy as np
import torch

from seggym.kspace import simulation
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.transforms import centre_crop, fftc, ifftc


def blocks_per_axis(acquisition: Acquisition) -> int:
    """How many blocks of ``block`` samples a row of the matrix has."""
    return acquisition.matrix // acquisition.block


def block_centres(acquisition: Acquisition) -> np.ndarray:
    """Mean (ky, kx) of the samples of every view relative to DC, float64 (V, 2)."""
    count, block = blocks_per_axis(acquisition), acquisition.block
    middle = (np.arange(count) + 0.5) * block - 0.5 - acquisition.matrix // 2
    return np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).reshape(-1, 2)


class CartesianPoints:
    """The points of an acquisition as a :class:`~seggym.kspace.trajectories.Trajectory`.

    A view is a square of ``block`` x ``block`` samples, a single point by default. View v is the one in row v // n and
    column v % n of the n x n blocks, ky before kx, from the most negative frequencies on; the samples of a view are in
    the same order. Reconstruction is zero-filled.
    """

    def __init__(self, acquisition: Acquisition, dtype: torch.dtype, device: torch.device) -> None:
        self.acquisition = acquisition
        self.num_views, self.num_samples = blocks_per_axis(acquisition) ** 2, acquisition.block**2
        self.initial = acquisition.initial_views
        self.pixels = np.arange(acquisition.matrix**2).reshape(acquisition.matrix, -1)
        count, number = blocks_per_axis(acquisition), np.arange(acquisition.matrix) // acquisition.block
        self.views = number[:, None] * count + number
        # What a unit at frequency k adds along an axis of the crop, complex (blocks, block, C).
        self._waves = simulation.line_phases(acquisition, dtype, device).unflatten(0, (-1, acquisition.block))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Noise-free samples complex (B, V, J, S) of images complex (B, J, G, G)."""
        matrix, block, count = self.acquisition.matrix, self.acquisition.block, blocks_per_axis(self.acquisition)
        kspace = centre_crop(fftc(image, (-2, -1)), matrix, (-2, -1)) * (matrix / self.acquisition.grid)
        views = kspace.view(*image.shape[:2], count, block, count, block).permute(0, 2, 4, 1, 3, 5)
        return views.reshape(len(image), self.num_views, image.shape[1], self.num_samples)

    def noise_numbers(self) -> torch.Tensor:
        """The numbers of the noise draws of every sample, int64 (V, J, S), in this order."""
        shape = self.num_views, self.acquisition.coils, self.num_samples
        return torch.arange(math.prod(shape), device=self._waves.device).view(shape)

    def add(self, planes: torch.Tensor, samples: torch.Tensor, views: torch.Tensor) -> None:
        """Add ``samples`` complex (B, J, S) of ``views`` int64 (B,) to float planes (B, J, 2, C, C), in place."""
        count = blocks_per_axis(self.acquisition)
        down, across = self._waves[views // count], self._waves[views % count]
        square = samples.unflatten(2, (self.acquisition.block, -1))
        for column in range(self.acquisition.block):  # a rank-1 update for each column of the block
            line = (square[..., column, None] * down[:, None]).sum(2)
            simulation.add_lines(planes, *simulation.line_factors(line, across[:, column]))

    def reconstruct(self, samples: torch.Tensor, acquired: torch.Tensor | None) -> torch.Tensor:
        """Complex images (B, J, C, C) of the views in ``acquired`` bool (B, V), None for all."""
        if acquired is not None:
            samples = samples * acquired[:, :, None, None]
        return centre_crop(ifftc(self.kspace(samples), (-2, -1)), self.acquisition.crop, (-2, -1))

    def kspace(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples complex (B, V, J, S) at their places in k-space: (B, J, M, M)."""
        matrix, block, count = self.acquisition.matrix, self.acquisition.block, blocks_per_axis(self.acquisition)
        placed = samples.view(len(samples), count, count, -1, block, block).permute(0, 3, 1, 4, 2, 5)
        return placed.reshape(len(samples), -1, matrix, matrix)

    def scale(self, acquired: torch.Tensor) -> None:
        """The transform keeps intensities."""
