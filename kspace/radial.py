"""Radial sampling: spokes through the centre of k-space, by the direct non-uniform Fourier transform.

A spoke at the angle t holds M samples at k = -M // 2, .., in cycles per field of view along (cos t, sin t). The wave of
one sample is a product, exp(2 pi i k (x cos t + y sin t)) = exp(2 pi i k x cos t) * exp(2 pi i k y sin t), so a spoke
is measured by a product of matrices and a sum over rows, and its term of the image is a product of matrices: nothing is
interpolated onto a grid.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from seggym.kspace.acquisition import Acquisition

# Half a turn divided by the golden ratio, 111.246 degrees: any number of consecutive spokes is spread almost evenly
# (Winkelmann et al., IEEE TMI 2007).
GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2


def spoke_angles(acquisition: Acquisition) -> np.ndarray:
    """The angle of every candidate spoke in rad, float64 (V,) below pi: equidistant, or multiples of the golden one."""
    step = math.pi / acquisition.spokes if acquisition.angles == "uniform" else GOLDEN_ANGLE
    return np.arange(acquisition.spokes) * step % math.pi


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of matrices in all of the digits of their factors, even where the user allowed TF32 or bf16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class RadialSpokes:
    """The spokes of an acquisition as a :class:`~seggym.kspace.trajectories.Trajectory`; view v is candidate spoke v.

    Samples have the scale and the noise of Cartesian ones. Density compensation: a sample at distance k stands for the
    area pi k / n of k-space that is nearest to it among n equidistant spokes (the centre for pi / 4 / n). The factor
    1 / n is common to all samples and belongs to the magnitude (:meth:`scale`), so that the image of all spokes has the
    intensities of the object and that of a few of them has the right mean.
    """

    def __init__(self, acquisition: Acquisition, dtype: torch.dtype, device: torch.device) -> None:
        self.acquisition = acquisition
        matrix, grid, crop = acquisition.matrix, acquisition.grid, acquisition.crop
        self.num_views, self.num_samples = acquisition.spokes, matrix
        self.initial = acquisition.initial_views
        # What all spokes of more scans take leaves the cache of a processor, which then needs twice as long for each.
        self._at_a_time = 1 if device.type == "cpu" else 16
        angle = torch.from_numpy(spoke_angles(acquisition))
        direction = angle.cos(), angle.sin()

        def turns(positive: torch.Tensor, position: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
            return 2 * torch.pi * along[:, None, None] * positive[:, None] * position

        # Image to k-space: half of the frequencies and half of the positions do, as both transforms are separated into
        # cosines of even and sines of odd parts.
        half = torch.arange(matrix // 2 + 1, dtype=torch.float64)
        position = torch.arange(grid // 2 + 1, dtype=torch.float64) / grid
        across, down = (turns(half, position, along).flatten(0, 1) for along in direction)
        self._cosine_x, self._sine_x, self._cosine_y, self._sine_y = (
            wave.to(device, dtype) for wave in (across.cos(), across.sin(), down.cos(), down.sin())
        )
        # k-space to the pixels of the crop.
        frequency = torch.arange(matrix, dtype=torch.float64) - matrix // 2
        pixel = (torch.arange(crop, dtype=torch.float64) - crop // 2) / matrix
        waves = [torch.polar(torch.ones(()).double(), turns(frequency, pixel, along)) for along in direction]
        complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        self._waves_x, self._waves_y = (wave.to(device, complex_dtype) for wave in waves)
        radius = np.arange(matrix)[:, None] - matrix // 2
        ends = [np.rint(radius * wave.numpy()).astype(np.int64) + matrix // 2 for wave in direction]
        across_pixel, down_pixel = (end.clip(0, matrix - 1) for end in ends)
        self.pixels = down_pixel * matrix + across_pixel
        self.views = np.broadcast_to(np.arange(self.num_views), self.pixels.shape)
        self._density = (torch.pi / matrix * frequency.abs().clamp_min(0.25)).to(device, dtype)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Noise-free samples complex (B, V, J, S) of images complex (B, J, G, G)."""
        return torch.cat([self._encode(few) for few in image.split(self._at_a_time)])

    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        even, odd = (_parts(part.mT) for part in _parts(image.flatten(0, 1)))
        with full_precision():
            # (B J, V K, H): K frequencies from 0 up, H rows from the centre on.
            even_even, even_odd = (_times(self._cosine_x, part) for part in even)
            odd_even, odd_odd = (_times(self._sine_x, part) for part in odd)
        same = _dot(even_even, self._cosine_y) - _dot(odd_odd, self._sine_y)
        turned = 1j * (_dot(even_odd, self._sine_y) + _dot(odd_even, self._cosine_y))
        shape = (*image.shape[:2], self.num_views, -1)
        plus, minus = (same - turned).view(shape), (same + turned).view(shape)
        half = self.num_samples // 2
        samples = torch.cat([minus[..., 1:].flip(-1), plus[..., : self.num_samples - half]], -1)
        return samples.transpose(1, 2).mul_(self.num_samples / self.acquisition.grid**2)

    def noise_numbers(self) -> torch.Tensor:
        """The numbers of the noise draws of every sample, int64 (V, J, S), in this order."""
        shape = self.num_views, self.acquisition.coils, self.num_samples
        return torch.arange(math.prod(shape), device=self._density.device).view(shape)

    def add(self, planes: torch.Tensor, samples: torch.Tensor, views: torch.Tensor) -> None:
        """Add ``samples`` complex (B, J, S) of ``views`` int64 (B,) to float planes (B, J, 2, C, C), in place."""
        weighted = (samples * self._density)[..., None] * self._waves_x[views][:, None]
        down = self._waves_y[views].mT[:, None].expand(-1, samples.shape[1], -1, -1)
        with full_precision():
            term = torch.bmm(down.flatten(0, 1), weighted.flatten(0, 1)).view(*samples.shape[:2], *planes.shape[-2:])
        planes[:, :, 0] += term.real
        planes[:, :, 1] += term.imag

    def reconstruct(self, samples: torch.Tensor, acquired: torch.Tensor | None) -> torch.Tensor:
        """Complex images (B, J, C, C) of the views in ``acquired`` bool (B, V), None for all, before :meth:`scale`."""
        if acquired is None:
            return torch.cat([self._reconstruct(few, None) for few in samples.split(self._at_a_time)])
        samples = samples.expand(len(acquired), -1, -1, -1)
        parts = zip(samples.split(self._at_a_time), acquired.split(self._at_a_time), strict=True)
        return torch.cat([self._reconstruct(few, views) for few, views in parts])

    def _reconstruct(self, samples: torch.Tensor, acquired: torch.Tensor | None) -> torch.Tensor:
        across, down = self._waves_x, self._waves_y
        if acquired is not None:
            views = acquired.any(0).nonzero()[:, 0]  # a few, when an episode begins
            samples = samples[:, views] * acquired[:, views, None, None]
            across, down = across[views], down[views]
        # A single product over the samples of all these spokes.
        weighted = (samples * self._density).transpose(1, 2).flatten(0, 1).flatten(1)[..., None]
        across, down = across.flatten(0, 1), down.flatten(0, 1)
        with full_precision():
            images = torch.bmm(down.mT.expand(len(weighted), -1, -1), weighted * across)
        return images.view(-1, samples.shape[2], *images.shape[-2:])

    def kspace(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples complex (B, V, J, S) with a column for each spoke: (B, J, S, V)."""
        return samples.permute(0, 2, 3, 1)

    def scale(self, acquired: torch.Tensor) -> torch.Tensor:
        """The factor of the magnitude, float (B,), with the views in ``acquired`` bool (B, V): 1 / their number."""
        return 1 / acquired.sum(1).clamp_min(1).to(self._density.dtype)


def _parts(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Even and odd part of ``x`` (.., G) about position G // 2, at 0..G // 2: what cosines and sines see of it.

    For even G the outermost position has no counterpart.
    """
    centre = x.shape[-1] // 2
    left, right = x[..., : centre + 1].flip(-1), x[..., centre:]
    if x.shape[-1] % 2 == 0:
        right = torch.nn.functional.pad(right, (0, 1))
    even, odd = right + left, right - left
    even[..., 0] /= 2
    return even, odd


def _times(waves: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Real ``waves`` (R, H) times complex ``x`` (N, H, H'): complex (N, R, H')."""
    columns = torch.view_as_real(x.contiguous()).flatten(2)
    # One product per image: what it is rounded to does not depend on how many there are.
    product = torch.bmm(waves.expand(len(x), -1, -1), columns)
    return torch.view_as_complex(product.unflatten(2, (-1, 2)))


def _dot(x: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
    """Sum over the last axis of complex ``x`` (N, R, H) times real ``waves`` (R, H): complex (N, R)."""
    return torch.view_as_complex((torch.view_as_real(x) * waves[..., None]).sum(-2))
