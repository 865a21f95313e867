"""Distorted masks: against scipy where there is a counterpart, and by what each must leave alone."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from seggym.reward_models import distortions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def masks():
    """Four hearts: class 1 within class 2, each somewhere else."""
    y, x = np.indices((32, 40))
    drawn = []
    for number in range(4):
        distance = np.hypot(y - 12 - 2 * number, x - 16 - 2 * number)
        drawn.append(np.where(distance < 5, 1, np.where(distance < 9, 2, 0)))
    return torch.tensor(np.stack(drawn), dtype=torch.uint8)


@pytest.mark.parametrize("seed", range(6))
def test_morphological_is_a_dilation_or_erosion(masks, seed):
    """Of one class by a square; only pixels of that class gain or lose their label."""
    radius = 2
    changed = distortions.morphological(masks, 3, radius, generator(seed))
    square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
    for before, after in zip(masks.numpy(), changed.numpy(), strict=True):
        fits = []
        for label in (1, 2):
            here = before == label
            grown = np.where(ndimage.binary_dilation(here, square), label, before)
            kept = ndimage.binary_erosion(here, square, border_value=1)
            shrunk = ((after == label) == kept).all() and (after[~here] == before[~here]).all()
            fits.append((after == grown).all() or shrunk)
        assert any(fits)
        assert (before != after).any()


def test_elastic_of_one_cell_is_a_shift(masks):
    moved = distortions.elastic(masks, 3.0, 1, generator())
    for before, after in zip(masks.numpy(), moved.numpy(), strict=True):
        shift = np.array(ndimage.center_of_mass(after > 0)) - ndimage.center_of_mass(before > 0)
        expected = ndimage.shift(before, shift.round(), order=0)
        np.testing.assert_array_equal(after, expected)
    assert torch.equal(distortions.elastic(masks, 0.0, 4, generator()), masks)


def test_samples_have_the_probabilities_of_the_temperature():
    logits = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    for temperature in (0.5, 3.0):
        drawn = distortions.sample(logits, temperature, generator())
        shares = torch.bincount(drawn.flatten().long(), minlength=3) / drawn.numel()
        expected = (torch.tensor([2.0, 0.0, -1.0]) / temperature).softmax(0)
        assert torch.allclose(shares, expected, atol=0.01)


def test_patches_cover_their_share_and_missing_leaves_the_rest(masks):
    changed = distortions.patches(masks, 3, 0.1, 6, generator(3))
    assert (changed != masks).flatten(1).float().mean(1).max() <= 0.1 + 1e-3
    assert (changed != masks).any()
    gone = distortions.missing(masks, 3, generator())
    for before, after in zip(masks, gone, strict=True):
        (absent,) = set(before.unique().tolist()) - set(after.unique().tolist())
        assert torch.equal(after, torch.where(before == absent, 0, before))


def test_swaps_are_of_other_patients():
    patients = ["a", "a", "b", "c", "c", "c"]
    for seed in range(20):
        chosen = distortions.partners(patients, generator(seed)).tolist()
        assert all(patients[other] != mine for mine, other in zip(patients, chosen, strict=True))
    assert distortions.partners(["a", "a"], generator()).tolist() == [-1, -1]


def test_perturbed_weights_leave_the_policy_alone():
    network = nn.Conv2d(1, 500, 3)
    before = network.weight.clone()
    other = distortions.perturbed(network, 0.1, generator())
    assert torch.equal(network.weight, before)
    assert float((other.weight - before).detach().std()) == pytest.approx(0.1, rel=0.05)


def test_images_stay_images():
    images = torch.rand(3, 1, 16, 16, generator=generator())
    dull = distortions.contrast(images, 0.5)
    assert torch.allclose(dull.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-6)
    assert torch.allclose(dull.std((1, 2, 3)), images.std((1, 2, 3)) / 2, atol=1e-6)
    noisy = distortions.noisy(images, 0.3, generator())
    assert noisy.min() >= 0
    assert noisy.max() <= 1
