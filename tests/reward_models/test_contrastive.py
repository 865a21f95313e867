"""The group-contrastive loss against a loop written by hand, and what the encoder learns from it."""

import math

import numpy as np
import pytest
import torch

from seggym.errors import SeggymError
from seggym.reward_models.contrastive import (
    GroupContrast,
    GroupSampler,
    augmented,
    contrastive_loss,
    group_contrastive_features,
    group_masks,
    pair_masks,
)


def pool(patients=5, volumes=2, slices=4):
    patient, phase, index = (a.ravel() for a in np.mgrid[:patients, :volumes, :slices])
    return patient, patient * volumes + phase, index


@pytest.mark.parametrize("members", [2, 3])
def test_positives_of_a_row_are_its_group(members):
    """Batch 9, groups of 3: 18 views; the masks of the released code make all other 17 positives."""
    positives, negatives = group_masks(3, 3, members)
    for row in range(18):
        image, taking_part = row % 9, row % 9 % 3 < members
        group = {other for other in range(18) if other % 9 // 3 == image // 3}
        mine = {other for other in group if other % 9 % 3 < members} - {row} if taking_part else set()
        assert set(torch.nonzero(positives[row]).ravel().tolist()) == mine
        assert len(mine) == (2 * members - 1 if taking_part else 0)
        rest = set(range(18)) - group if taking_part else set()
        assert set(torch.nonzero(negatives[row]).ravel().tolist()) == rest


@pytest.mark.parametrize("members", [2, 3])
def test_the_group_loss_by_hand(members):
    views = torch.randn(18, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, pairs = 0.0, 0
    for i in range(18):
        for p in range(18):
            same = i % 9 // 3 == p % 9 // 3
            if i == p or not same or i % 9 % 3 >= members or p % 9 % 3 >= members:
                continue

            def similarity(a, b):
                return float(views[a] @ views[b] / (views[a].norm() * views[b].norm())) / 0.5

            others = sum(math.exp(similarity(i, k)) for k in range(18) if k % 9 // 3 != i % 9 // 3)
            positive = math.exp(similarity(i, p))
            total, pairs = total - math.log(positive / (positive + others)), pairs + 1
    assert pairs == 3 * 2 * members * (2 * members - 1)
    loss = contrastive_loss(views, *group_masks(3, 3, members), 0.5)
    assert loss.item() == pytest.approx(total / pairs, rel=1e-9)


def test_nt_xent_is_cross_entropy_with_the_other_view_as_class():
    views = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = torch.nn.functional.normalize(views, dim=1)
    logits = (unit @ unit.T / 0.3).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(8).roll(4))
    assert contrastive_loss(views, *pair_masks(4), 0.3).item() == pytest.approx(expected.item(), rel=1e-9)


def test_without_negatives_the_loss_is_zero_and_has_a_gradient():
    views = torch.randn(6, 4, requires_grad=True)
    loss = contrastive_loss(views, *group_masks(1, 3, 3), 0.5)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(views.grad).all()


def test_groups_hold_a_neighbour_a_slice_of_the_volume_and_one_of_the_patient():
    patient, volume, index = pool()
    order = np.random.default_rng(0).permutation(len(patient))  # a pool need not be sorted
    patient, volume, index = patient[order], volume[order], index[order]
    sampler, generator = GroupSampler(patient, volume, index), torch.Generator().manual_seed(0)
    neighbours = set()
    for _ in range(60):
        anchor, near, mate, kin = sampler.draw(4, ("slice", "volume", "patient"), generator).numpy().T
        assert len(set(patient[anchor])) == 4
        assert (volume[near] == volume[anchor]).all()
        assert (np.abs(index[near] - index[anchor]) == 1).all()
        assert (volume[mate] == volume[anchor]).all()
        assert (patient[kin] == patient[anchor]).all()
        assert (mate != anchor).all()
        assert (kin != anchor).all()
        neighbours |= set(zip(index[anchor].tolist(), index[near].tolist(), strict=True))
    assert neighbours == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}


def test_a_slice_that_is_alone_is_its_own_partner():
    sampler = GroupSampler(np.asarray([4, 9]), np.asarray([1, 2]), np.asarray([0, 0]))
    drawn = sampler.draw(2, ("slice", "volume", "patient"), torch.Generator().manual_seed(0))
    assert sorted(drawn.tolist()) == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_views_keep_the_range_of_an_image_and_differ():
    images = torch.rand(6, 2, 20, 24, generator=torch.Generator().manual_seed(0))
    views = augmented(images, torch.Generator().manual_seed(0))
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1
    assert (views - images).abs().mean((1, 2, 3)).min() > 0.01
    assert torch.equal(views, augmented(images, torch.Generator().manual_seed(0)))


def test_features_are_repeatable_and_group_patients():
    """Patients differ in texture: their slices come closer together than they are without training."""
    patient, volume, index = pool(patients=4, volumes=1, slices=6)
    generator = torch.Generator().manual_seed(3)
    texture = torch.rand(4, 1, 16, 16, generator=generator)
    images = texture[patient] + 0.5 * torch.rand(24, 1, 16, 16, generator=generator)

    def spread(settings):
        features = group_contrastive_features(images, patient, volume, index, settings)
        distances = torch.cdist(features, features)
        same = torch.from_numpy(patient[:, None] == patient)
        return (distances[same].mean() / distances[~same].mean()).item(), features

    quick = {"size": 16, "features": 16, "groups_per_batch": 4}
    untrained, _ = spread(GroupContrast(steps=0, **quick))
    before = torch.random.get_rng_state()
    trained, features = spread(GroupContrast(steps=40, weights=(1.0, 1.0, 1.0), **quick))
    again = spread(GroupContrast(steps=40, weights=(1.0, 1.0, 1.0), **quick))[1]
    assert torch.equal(features, again)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(features, spread(GroupContrast(steps=40, seed=1, **quick))[1])
    assert trained < 0.8 * untrained


def test_settings_that_make_no_sense_are_refused():
    for values in ({"groups": ("slice", "slice"), "weights": (1.0, 1.0)}, {"weights": (1.0,)}, {"size": 2}):
        with pytest.raises(SeggymError, match=r"expected|must be"):
            GroupContrast(**values)
