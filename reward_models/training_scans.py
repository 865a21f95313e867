"""Random scans to learn from: slices, phase, noise, masks and augmentation."""

from typing import Any

import numpy as np
import torch
from torch import nn

from seggym.kspace import measured, simulation, trajectories
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.keyed_random import random_bits, uniform
from seggym.kspace.masks import random_acquired
from seggym.kspace.reconstruction.methods import Reconstruction
from seggym.reward_models.frozen import normalise

# Streams of a training scan's key, beside those of seggym.kspace.simulation.
_MENDED_STREAM = 20


class Simulator:
    """Random training batches: slices, phase, noise, masks and augmentation from one generator.

    ``reconstruction`` makes the images of :meth:`batch`; None is zero-filled.
    """

    def __init__(
        self,
        stack: SliceStack,
        acquisition: Acquisition,
        device: torch.device,
        seed: int,
        reconstruction: Reconstruction | None = None,
    ) -> None:
        self.stack, self.acquisition, self.device = stack.to(device), acquisition, device
        self.reconstruction = reconstruction
        self.rng = np.random.default_rng(seed)

    def scans(self, size: int, augment: bool) -> tuple[SliceStack, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random scans: a stack, the slices in it and their keys, int64 (B,), and measured views, bool (B, V)."""
        indices = torch.from_numpy(self.rng.integers(len(self.stack), size=size)).to(self.device)
        keys = torch.from_numpy(self.rng.integers(2**63, size=size)).to(self.device)
        acquired = torch.from_numpy(random_acquired(self.acquisition, size, self.rng)).to(self.device)
        stack = _moved(self.stack, indices, self.acquisition, self.rng) if augment else self.stack
        return stack, torch.arange(size, device=self.device) if augment else indices, keys, acquired

    def plain(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Magnitude images float32 (B, C, C), not augmented, labels uint8 (B, C, C), and the slices int64 (B,)."""
        stack, chosen, keys, acquired = self.scans(size, augment=False)
        magnitude = simulate(stack, chosen, keys, acquired, self.acquisition, self.reconstruction)
        return magnitude, stack.labels[chosen], chosen

    def batch(self, size: int, augment: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images float32 (B, 1, C, C) and labels int64 (B, 1, C, C)."""
        stack, chosen, keys, acquired = self.scans(size, augment)
        magnitude = simulate(stack, chosen, keys, acquired, self.acquisition, self.reconstruction)
        if augment:
            # Contrast: a random power of the magnitude, which is all that the normalisation leaves to vary.
            power = torch.from_numpy(np.exp(self.rng.uniform(-0.35, 0.35, size))).float().to(self.device)
            magnitude = magnitude ** power[:, None, None]
        return normalise(magnitude), stack.labels[chosen].long().unsqueeze(1)


def simulate(
    stack: SliceStack,
    indices: torch.Tensor,
    keys: torch.Tensor,
    acquired: torch.Tensor,
    acquisition: Acquisition,
    reconstruction: Reconstruction | None = None,
) -> torch.Tensor:
    """Magnitude (B, C, C) of slices ``indices``, measured with phase and noise of ``keys``.

    What ``reconstruction`` makes of the ``acquired`` views, bool (B, V); None is zero-filled.
    """
    samples = measure(stack, indices, keys, acquisition)
    if reconstruction is None:
        magnitude = trajectories.zero_filled(samples, acquired, acquisition)
    else:
        magnitude = reconstruction(samples.permute(0, 2, 3, 1), acquired, acquisition)
    return simulation.upright(magnitude, simulation.rows_encoded(keys, acquisition))


def measure(stack: SliceStack, indices: torch.Tensor, keys: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """All views of slices ``indices`` with phase and noise of ``keys``, int64 (B,): samples complex64 (B, V, J, S).

    Where the scan corrupts lines, a scan of a policy that measures them again has fewer of them than one that does not:
    the share that stays corrupted is drawn per scan, from none to all.
    """
    samples = trajectories.first_measurements(stack, indices, keys, acquisition)
    if acquisition.corruption:
        views = torch.arange(acquisition.num_views, device=keys.device)
        _, factor = simulation.corruption(keys, views, acquisition)
        mended = uniform(keys, _MENDED_STREAM, 1) > uniform(keys, _MENDED_STREAM + 1, acquisition.num_views)
        samples *= torch.where(mended, 1, factor)[:, :, None, None]
    return samples


def _moved(stack: SliceStack, indices: torch.Tensor, scan: Acquisition, rng: np.random.Generator) -> SliceStack:
    """The slices ``indices``, each turned, mirrored, scaled and moved before it is scanned, labels alike."""
    size = len(indices)
    angle = rng.uniform(-np.pi / 4, np.pi / 4, size)
    scale = np.exp(rng.uniform(-0.2, 0.2, size))
    mirror = rng.choice((-1.0, 1.0), size)
    rotation = np.stack([[np.cos(angle) * mirror, -np.sin(angle)], [np.sin(angle) * mirror, np.cos(angle)]])
    matrix = torch.from_numpy(rotation / scale).permute(2, 0, 1).float().to(indices.device)
    # In units of half a field of view; the label covers only the crop, in whose units the same move is larger.
    offset = torch.from_numpy(rng.uniform(-0.12, 0.12, (size, 2, 1))).float().to(indices.device)
    if stack.hybrid is not None:
        return _moved_scans(stack, indices, scan, matrix, offset)
    image = _warp(stack.images[indices], matrix, offset, "bilinear")
    label = _warp(stack.labels[indices].float(), matrix, offset * (scan.matrix / scan.crop), "nearest")
    picked: dict[str, Any] = {k: value[indices] for k, value in vars(stack).items() if isinstance(value, torch.Tensor)}
    return SliceStack(**{**vars(stack), **picked, "images": image, "labels": label.to(torch.uint8)})


def _moved_scans(
    stack: SliceStack, indices: torch.Tensor, scan: Acquisition, matrix: torch.Tensor, offset: torch.Tensor
) -> SliceStack:
    """:func:`_moved` of measured k-space: coils turn with the patient, and noise with both."""
    assert stack.hybrid is not None
    assert stack.available is not None
    available = stack.available[indices]
    hybrid = torch.view_as_complex(stack.hybrid[indices])
    grid = nn.functional.affine_grid(torch.cat([matrix, offset], 2), [len(indices), 1, *hybrid.shape[2:]], False)
    moved = torch.view_as_real(measured.warped(hybrid, available, grid))
    label = _warp(stack.labels[indices].float(), matrix, offset * (scan.matrix / scan.crop), "nearest")
    picked: dict[str, Any] = {k: value[indices] for k, value in vars(stack).items() if isinstance(value, torch.Tensor)}
    return SliceStack(**{**vars(stack), **picked, "hybrid": moved, "labels": label.to(torch.uint8)})


def _warp(images: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor, mode: str) -> torch.Tensor:
    grid = nn.functional.affine_grid(torch.cat([matrix, offset], 2), [len(images), 1, *images.shape[1:]], False)
    return nn.functional.grid_sample(images[:, None], grid, mode=mode, align_corners=False)[:, 0]


def fixed_scans(
    stack: SliceStack, acquisition: Acquisition, device: torch.device, reconstruction: Reconstruction | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every slice scanned once with a fixed random mask: normalised images (n, 1, C, C), labels uint8 (n, C, C)."""
    stack = stack.to(device)
    acquired = torch.from_numpy(random_acquired(acquisition, len(stack), np.random.default_rng(0))).to(device)
    keys = random_bits(torch.zeros(1, dtype=torch.int64, device=device), 0, len(stack))[0]
    indices = torch.arange(len(stack), device=device)
    images = [
        simulate(stack, part, keys[part], acquired[part], acquisition, reconstruction) for part in indices.split(32)
    ]
    return normalise(torch.cat(images)), stack.labels
