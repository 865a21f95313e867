"""Parts of the observation against values computed another way."""

import numpy as np
import pytest
import torch

from seggym.envs.kspace.segmentation import GRID

PARTS = ["energy", "probability_grid", "probabilities", "acquired"]


@pytest.fixture
def engine(make_engine, play):
    engine = make_engine(num_envs=4, observation=PARTS)
    engine.begin(torch.arange(4), engine.draw(torch.tensor([3, 5, 7, 9])))
    for line in (0, 4, 20):
        engine.step(torch.full((4,), line))
    return engine


def test_energy_is_that_of_the_measured_lines(engine):
    seen = engine.observe()
    energy = seen["energy"].numpy()
    acquired = seen["acquired"].numpy().astype(bool)
    for scan in range(4):
        lines = np.abs(engine.scanner.signal[scan, :, 0].numpy()) ** 2
        expected = lines.sum(1)[acquired[scan]]
        expected = np.clip(1 + np.log10(expected / expected.max()) / 6, 0, 1)
        assert energy[scan][acquired[scan]] == pytest.approx(expected, abs=1e-5)
        assert (energy[scan][~acquired[scan]] == 0).all()
    assert energy.max() == pytest.approx(1)


def test_probability_grid_is_the_block_mean(engine):
    seen = engine.observe()
    probabilities = engine.networks[0](engine.magnitude).probabilities.numpy()
    side = probabilities.shape[-1] // GRID
    assert probabilities.shape[-1] == side * GRID
    blocks = probabilities.reshape(4, -1, GRID, side, GRID, side).mean((3, 5))
    grid = seen["probability_grid"].numpy().reshape(blocks.shape)
    assert grid == pytest.approx(blocks, abs=1e-6)
    assert grid.sum(1) == pytest.approx(np.ones((4, GRID, GRID)), abs=1e-5)
