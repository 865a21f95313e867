"""A made-up scanner: synthetic slices, and a stub in place of a network."""

import numpy as np
import torch

from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.reward_models.frozen import Prediction

SMALL_SCAN = {"matrix": 48, "crop": 32}


class StubNetwork:
    """Four classes by intensity relative to the image's maximum; a function of the image alone, in its precision."""

    num_outputs = 4
    num_features = 2

    def __call__(self, magnitude: torch.Tensor) -> Prediction:
        relative = magnitude / magnitude.amax((1, 2), keepdim=True)
        centres = torch.tensor([0.0, 0.35, 0.65, 1.0], dtype=magnitude.dtype)[None, :, None, None]
        probabilities = (-25 * (relative[:, None] - centres) ** 2).softmax(1)
        features = torch.stack([magnitude.amax((1, 2)), magnitude[:, 0, 0]], 1)
        return Prediction(probabilities, features)


def synthetic_stack(acquisition: Acquisition, count: int = 7, seed: int = 0) -> SliceStack:
    """Bright discs and bars on a noisy body, the labels drawn from the same shapes; the last slice has no label."""
    rng = np.random.default_rng(seed)
    grid, crop, matrix = acquisition.grid, acquisition.crop, acquisition.matrix

    def draw(size: int, field: float, shapes: np.ndarray) -> np.ndarray:
        y, x = (np.indices((size, size)) - size // 2) / field
        labels = np.zeros((size, size), np.uint8)
        for label, (centre_y, centre_x, radius) in enumerate(shapes, start=1):
            labels[np.hypot(y - centre_y, x - centre_x) < radius] = label
        return labels

    images, labels = [], []
    for index in range(count):
        shapes = np.column_stack([rng.uniform(-0.2, 0.2, (3, 2)), rng.uniform(0.06, 0.14, 3)])
        if index == count - 1:
            shapes = shapes[:0]
        brightness = np.array([0.15, 0.4, 0.7, 1.0])[draw(grid, grid, shapes)]
        images.append(brightness + 0.05 * rng.random((grid, grid)))
        labels.append(draw(crop, matrix, shapes))
    stacked = torch.tensor(np.stack(images), dtype=torch.float32)
    return SliceStack(
        images=stacked,
        labels=torch.tensor(np.stack(labels)),
        signal=torch.full((count,), 0.3),
        data_range=torch.full((count,), 1.05),
        phase_amplitude=torch.tensor(rng.uniform(0.5, 3.0, count), dtype=torch.float32),
        echo_shift=torch.tensor(rng.uniform(-4, 4, count), dtype=torch.float32),
        spacing=torch.ones(count, 3),
        patients=tuple(f"patient{index:03d}" for index in range(count)),
        volumes=tuple(f"patient{index:03d}_frame01" for index in range(count)),
        positions=(0,) * count,
        num_classes=4,
    )
