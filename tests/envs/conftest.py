"""A small made-up scanner: synthetic slices, a stub network, and engines and environments made of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.settings import KSpaceSettings
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


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., KSpaceEngine]:
    """``make_engine(num_envs, dtype=, network=, stack=, **settings)``: an engine on the synthetic slices."""

    def make(
        num_envs: int = 1,
        *,
        dtype: torch.dtype = torch.float64,
        network: Any = None,
        stack: SliceStack | None = None,
        **settings: Any,
    ) -> KSpaceEngine:
        chosen = {"cohort": "acdc", "reward_model": "stub", "acquisition": SMALL_SCAN, "budget": [3, 9], **settings}
        checked = KSpaceSettings(**chosen)
        stack = synthetic_stack(checked.scan) if stack is None else stack
        return KSpaceEngine(stack, checked, num_envs, networks=[network or StubNetwork()], dtype=dtype)

    return make


@pytest.fixture(scope="session")
def make_stack() -> Callable[..., SliceStack]:
    """:func:`synthetic_stack`."""
    return synthetic_stack


@pytest.fixture(scope="session")
def play() -> Callable[..., list[torch.Tensor]]:
    """``play(engine, keys, steps, seed=)``: begin the episodes of ``keys``, then random legal lines; the actions."""

    def run(engine: KSpaceEngine, keys: list[int], steps: int, seed: int = 0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        engine.begin(torch.arange(engine.num_envs), engine.draw(torch.tensor(keys)))
        actions = []
        for _ in range(steps):
            scores = torch.rand(engine.num_envs, engine.num_actions, generator=generator)
            actions.append(torch.where(engine.action_mask(), scores, -1.0).argmax(1))
            engine.step(actions[-1])
        return actions

    return run
