"""What one measurement of a scan is: the interface of every trajectory, Cartesian phase-encode lines, and the choice.

A scan consists of V *views* (lines, spokes, points); an action measures one of them. A view has S complex samples per
receive coil, kept in a form in which white noise stays white, and adds a term to each coil's image that is linear in
its samples.
"""

import functools
from typing import Protocol

import numpy as np
import torch

from seggym.kspace import simulation
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.keyed_random import complex_normal
from seggym.kspace.points import CartesianPoints
from seggym.kspace.radial import RadialSpokes
from seggym.kspace.transforms import fftc

NOUNS = {"lines": "lines", "radial": "spokes", "points": "points"}
"""What an action measures, by trajectory, for people."""


class Trajectory(Protocol):
    """The views of an acquisition; B scans, J coils, V views of S samples, images of C x C pixels on a grid G."""

    num_views: int
    num_samples: int
    initial: np.ndarray
    """Indices of the views that are measured before the first action."""
    views: np.ndarray
    """The view of every element of :meth:`kspace`, int64 (rows, columns)."""
    pixels: np.ndarray
    """Where it is drawn: flat indices into a picture (M, M) of k-space, ky before kx, int64 (rows, columns)."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Noise-free samples complex (B, V, J, S) of images complex (B, J, G, G)."""
        ...

    def noise_numbers(self) -> torch.Tensor:
        """The numbers of the noise draws of every sample, int64 (V, J, S): each of 0..V*J*S-1 once."""
        ...

    def add(self, planes: torch.Tensor, samples: torch.Tensor, views: torch.Tensor) -> None:
        """Add ``samples`` complex (B, J, S) of ``views`` int64 (B,) to float planes (B, J, 2, C, C), in place."""
        ...

    def reconstruct(self, samples: torch.Tensor, acquired: torch.Tensor | None) -> torch.Tensor:
        """Complex images (B, J, C, C) of the views in ``acquired`` bool (B, V), None for all: the direct transform."""
        ...

    def kspace(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples complex (B, V, J, S) as a picture of k-space: (B, J, rows, columns)."""
        ...

    def scale(self, acquired: torch.Tensor) -> torch.Tensor | None:
        """What the magnitude is multiplied by where ``acquired`` bool (B, V) is measured, (B,); None for 1."""
        ...


@functools.lru_cache(maxsize=4)
def make_trajectory(acquisition: Acquisition, dtype: torch.dtype, device: torch.device) -> Trajectory:
    """The trajectory of ``acquisition``: tables for images of ``dtype`` on ``device``, which nobody may write to."""
    if acquisition.trajectory == "radial":
        return RadialSpokes(acquisition, dtype, device)
    if acquisition.trajectory == "points":
        return CartesianPoints(acquisition, dtype, device)
    return CartesianLines(acquisition, dtype, device)


def first_measurements(
    stack: SliceStack, indices: torch.Tensor, keys: torch.Tensor, acquisition: Acquisition
) -> torch.Tensor:
    """Noisy samples complex64 (B, V, J, S) of all views of slices ``indices`` with the ``keys``, int64 (B,)."""
    trajectory = make_trajectory(acquisition, torch.float32, keys.device)
    if acquisition.trajectory == "lines":  # which may have been measured instead
        clean = simulation.encode(stack, indices, keys, acquisition, torch.float32).permute(0, 3, 1, 2)
    else:
        upright = torch.zeros_like(keys, dtype=torch.bool)
        image = simulation.objects(stack, indices, keys, acquisition, torch.float32, upright)
        clean = trajectory.encode(image)
    if acquisition.snr is None:
        return clean
    noise = complex_normal(keys, simulation.NOISE_STREAM, trajectory.noise_numbers().flatten())
    sigma = stack.signal[indices] / acquisition.snr
    return clean + noise.view(clean.shape) * sigma[:, None, None, None]


def zero_filled(samples: torch.Tensor, acquired: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """Magnitude float32 (B, C, C) of ``samples`` complex64 (B, V, J, S), of the views in ``acquired`` bool (B, V).

    A single scan may be given for many ``acquired``. Images are as the scanner sees them, see
    :func:`seggym.kspace.simulation.upright`.
    """
    trajectory = make_trajectory(acquisition, torch.float32, samples.device)
    magnitude = simulation.root_sum_of_squares(simulation.to_planes(trajectory.reconstruct(samples, acquired)))
    scale = trajectory.scale(acquired)
    return magnitude if scale is None else magnitude * scale[:, None, None]


class CartesianLines:
    """Phase-encode lines in *hybrid space*: readouts are already transformed to the image domain.

    View v is line v of the acquisition matrix, its samples are the M positions along the readout. One more line is a
    rank-1 update of each coil's image, and the central crop needs only the rows of the crop.
    """

    def __init__(self, acquisition: Acquisition, dtype: torch.dtype, device: torch.device) -> None:
        self.acquisition = acquisition
        self.num_views = self.num_samples = acquisition.matrix
        self.initial = acquisition.initial_views
        self.pixels = np.arange(acquisition.matrix**2).reshape(acquisition.matrix, -1)
        self.views = self.pixels % acquisition.matrix
        self._phases = simulation.line_phases(acquisition, dtype, device)
        first = acquisition.matrix // 2 - acquisition.crop // 2
        self._rows = slice(first, first + acquisition.crop)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Noise-free samples complex (B, V, J, S)."""
        return simulation.hybrid_space(image, self.acquisition).permute(0, 3, 1, 2)

    def noise_numbers(self) -> torch.Tensor:
        """Numbers of the noise draws, int64 (V, J, S): those of hybrid space (J, readout, line) in its own order."""
        matrix = self.acquisition.matrix
        numbers = torch.arange(self.acquisition.coils * matrix * matrix, device=self._phases.device)
        return numbers.view(-1, matrix, matrix).permute(2, 0, 1)

    def add(self, planes: torch.Tensor, samples: torch.Tensor, views: torch.Tensor) -> None:
        """Rank-1 updates of the planes, in place."""
        left, right = simulation.line_factors(samples[..., self._rows], self._phases[views])
        simulation.add_lines(planes, left, right)

    def reconstruct(self, samples: torch.Tensor, acquired: torch.Tensor | None) -> torch.Tensor:
        """Complex images (B, J, C, C)."""
        return simulation.reconstruct(samples.permute(0, 2, 3, 1), acquired, self.acquisition)

    def kspace(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples complex (B, V, J, S) with a column for each line: (B, J, M, M)."""
        return fftc(samples.permute(0, 2, 3, 1), (-2,))

    def scale(self, acquired: torch.Tensor) -> None:
        """The transform keeps intensities."""
