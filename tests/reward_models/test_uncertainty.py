"""Confidence from several sources: by hand where there is a closed form, and on one footing."""

import pytest
import torch
from drawn_hearts import hearts, taught_policy

from seggym.errors import SeggymError
from seggym.reward_models.calibration import ece
from seggym.reward_models.reward_pairs import policy_logits
from seggym.reward_models.uncertainty import (
    Confidence,
    augmented,
    dropping,
    ensemble,
    evaluate_uncertainty,
    mc_dropout,
    of_probabilities,
    of_reward,
    scaled,
    softmax,
    temperature_of,
)


@pytest.fixture(scope="module")
def policy():
    return taught_policy(*hearts(16))


@pytest.fixture(scope="module")
def images():
    return hearts(5, seed=3)[0]


def test_confidence_of_probabilities():
    probabilities = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    found = of_probabilities(probabilities)
    assert found.masks.tolist() == [[[1, 1], [1, 1]]]
    assert torch.allclose(found.values, torch.tensor(0.5))
    given = of_probabilities(probabilities, torch.tensor([[[0, 1], [2, 2]]]))
    assert torch.allclose(given.values, torch.tensor([[[0.2, 0.5], [0.3, 0.3]]]))


def test_an_ensemble_is_a_mean(policy, images):
    other = taught_policy(*hearts(16), iterations=10, seed=1)
    expected = (policy(images)[0].softmax(1) + other(images)[0].softmax(1)) / 2
    assert torch.allclose(ensemble([policy, other], images), expected, atol=1e-6)
    assert torch.allclose(ensemble([policy], images), softmax(policy, images))


def test_dropout_is_gone_afterwards_and_follows_from_its_seed(policy, images):
    before, state = softmax(policy, images), torch.random.get_rng_state()
    first = mc_dropout(policy, images, passes=3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, mc_dropout(policy, images, passes=3, seed=1))
    assert not torch.equal(first, mc_dropout(policy, images, passes=3, seed=2))
    assert torch.equal(softmax(policy, images), before)
    assert torch.allclose(mc_dropout(policy, images, passes=2, rate=0.0), before, atol=1e-6)
    with pytest.raises(SeggymError, match="dropout rate is 1"), dropping(policy, 1.0):
        pass


def test_dropout_lasts_while_training(policy, images):
    with dropping(policy, 0.5):
        policy.train()
        loss = policy(images)[0].sum()
        loss.backward()
        assert not torch.equal(policy(images)[0], policy(images)[0])
    policy.zero_grad()
    policy.eval()
    assert torch.equal(policy(images)[0], policy(images)[0])


def test_shifts_of_test_time_augmentation_are_undone(images):
    """A policy that looks at single pixels and at no contrast says the same in every view, away from the border."""

    class PerPixel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(4.0))

        def forward(self, x):
            sign = (x[:, :1] - x.mean((1, 2, 3), keepdim=True)).sign() * self.scale
            return torch.cat([sign, -sign], 1), x

    middle = images.new_zeros(2, 1, 32, 32)
    middle[:, :, 12:20, 12:20] = 0.6
    found = augmented(PerPixel(), middle)
    assert torch.allclose(found, softmax(PerPixel(), middle), atol=1e-5)


def test_the_reward_map_scores_what_the_policy_draws(policy, images):
    found = of_reward(lambda x, masks: torch.full(masks.shape, 0.25) + 0.5 * (masks > 0), policy, images)
    expected = policy_logits(policy, images).argmax(1)
    assert torch.equal(found.masks.long(), expected)
    assert torch.equal(found.values > 0.5, expected > 0)


def test_one_temperature_calibrates_an_overconfident_source():
    """Labels are right with probability sigmoid(z / 3), the source claims sigmoid(z)."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        logits = 4 * torch.randn(4, 64, 64, generator=generator)
        truths = torch.ones(4, 64, 64, dtype=torch.uint8)
        right = torch.rand(4, 64, 64, generator=generator) < (logits / 3).sigmoid()
        parts += [Confidence(torch.where(right, 1, 2).to(torch.uint8), logits.sigmoid()), truths]
    val, val_truths, test, test_truths = parts
    assert temperature_of(val, val_truths) == pytest.approx(3, rel=0.05)
    found = evaluate_uncertainty(val, val_truths, test, test_truths)
    assert found["temperature"] == temperature_of(val, val_truths)
    assert found["ece"] < 0.02
    assert ece(test.values.flatten(), (test.masks == test_truths).flatten()) > 0.1
    assert torch.equal(scaled(test, 1.0).masks, test.masks)
    assert torch.allclose(scaled(test, 1.0).values, test.values, atol=1e-5)
