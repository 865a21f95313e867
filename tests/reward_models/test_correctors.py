"""Correctors and the shape prior: what is broken is mended, what is sound stays, and priors come back from disk."""

import itertools
import json

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from skimage import measure

from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.validity.rules import load_rules
from seggym.errors import SeggymError
from seggym.reward_models.correctors import MorphologyCorrector, ShapePriorCorrector, agreement, tidied
from seggym.reward_models.shape_prior import PriorSettings, load_shape_prior, train_shape_prior

SIZE = 32
SETTINGS = PriorSettings(latent=16, widths=(12, 24, 48), iterations=220, batch=16)


@pytest.fixture(scope="module")
def truths():
    """Sound masks (n, 32, 32); so coarse a grid makes a few phantoms invalid."""
    masks = np.concatenate([volume.label for volume in open_cohort("echo", patients=11, size=SIZE).volumes()])
    return masks[load_rules("camus").valid(masks)]


@pytest.fixture(scope="module")
def rules():
    return load_rules("camus")


@pytest.fixture(scope="module")
def prior(truths):
    return train_shape_prior(truths, 4, SETTINGS)


def spoilt(masks, seed=0):
    """``masks`` with blobs of other labels, all of them invalid."""
    rng, rules, found = np.random.default_rng(seed), load_rules("camus"), []
    rows, columns = np.ogrid[:SIZE, :SIZE]
    for mask in masks:
        broken = mask.copy()
        while rules.valid(broken[None])[0]:
            centre, radius = rng.integers(5, SIZE - 5, 2), rng.integers(1, 4)
            broken[np.hypot(rows - centre[0], columns - centre[1]) < radius] = rng.integers(0, 4)
        found.append(broken)
    return np.stack(found)


def dice(one, other):
    maps = [
        torch.nn.functional.one_hot(torch.from_numpy(mask).long(), 4).permute(2, 0, 1)[None] for mask in (one, other)
    ]
    return float(DiceMetric(include_background=False)(*maps).mean())


def test_agreement_is_dice(truths):
    """MONAI's over the labels that both have; a label of one alone counts as 0."""
    for one, other in itertools.pairwise(truths):
        assert agreement(one, other) == pytest.approx(dice(one, other))
    without = np.where(truths[0] == 3, 0, truths[0])
    assert agreement(truths[0], without) == pytest.approx(2 / 3)
    assert agreement(without, truths[0]) == pytest.approx(2 / 3)
    assert agreement(0 * without, without) == 0
    assert agreement(0 * without, 0 * without) == 1


def test_tidied_masks_have_one_region_of_each_label():
    mask = np.zeros((20, 20), np.uint8)
    mask[4:16, 4:16] = 2
    mask[7:13, 7:13] = 1
    sound = mask.copy()
    mask[1, 1] = 1  # an island in the background becomes background
    mask[5, 5] = 1  # one in the muscle becomes muscle
    mask[9, 9] = 0  # a hole is filled
    mask[10, 11] = 2
    np.testing.assert_array_equal(tidied(mask), sound)
    np.testing.assert_array_equal(tidied(sound), sound)
    assert not tidied(np.zeros((8, 8), int)).any()


def test_morphology_keeps_what_is_valid_and_mends_what_is_not(truths, rules):
    corrector = MorphologyCorrector(rules)
    for mask in truths[:10]:
        correction = corrector.correct(mask)
        assert correction.valid
        assert correction.agreement == 1
        np.testing.assert_array_equal(correction.mask, mask)
    broken = spoilt(truths)
    corrections = [corrector.correct(mask) for mask in broken]
    mended = np.array([correction.valid for correction in corrections])
    assert mended.mean() > 0.6
    np.testing.assert_array_equal(mended, rules.valid(np.stack([correction.mask for correction in corrections])))
    before, after = (
        np.mean([dice(mask, truth) for mask, truth in zip(masks[mended], truths[mended], strict=True)])
        for masks in (broken, np.stack([correction.mask for correction in corrections]))
    )
    assert after > before


def test_morphology_says_what_it_cannot_mend(rules):
    correction = MorphologyCorrector(rules).correct(np.zeros((SIZE, SIZE), np.int64))
    assert not correction.valid
    assert correction.mask.dtype == np.int64


def test_the_prior_mends_everything(truths, rules, prior):
    corrector = ShapePriorCorrector(rules, prior)
    for broken, truth in zip(spoilt(truths[:12], seed=1), truths[:12], strict=True):
        correction = corrector.correct(broken)
        assert correction.valid
        assert rules.check(correction.mask).valid
        assert correction.mask.dtype == broken.dtype
        assert correction.agreement == pytest.approx(agreement(broken, correction.mask))
        assert dice(correction.mask, truth) > 0.6


@pytest.mark.parametrize("label", range(4))
def test_the_prior_mends_a_mask_of_one_label(rules, prior, label):
    """An all-background policy, for one."""
    correction = ShapePriorCorrector(rules, prior).correct(np.full((SIZE, SIZE), label, np.uint8))
    assert correction.valid
    assert correction.agreement < 0.5


def test_the_prior_keeps_a_valid_mask_and_says_how_plausible_it_is(truths, rules, prior):
    corrector = ShapePriorCorrector(rules, prior)
    known = []
    for mask in truths[:12]:
        correction = corrector.correct(mask)
        np.testing.assert_array_equal(correction.mask, mask)
        assert correction.valid
        known.append(correction.agreement)
    assert 0.75 < np.mean(known) < 1
    # Upside down it keeps every rule and is like nothing that the prior has seen.
    turned = [mask[::-1].copy() for mask in truths[:12]]
    turned = [mask for mask in turned if rules.valid(mask[None])[0]]
    assert turned
    assert np.mean([corrector.correct(mask).agreement for mask in turned]) < np.mean(known) - 0.2


def test_without_a_plausible_decoding_a_known_shape_is_taken(truths, rules):
    """An untrained network decodes to nothing valid; invalid shapes of the bank are passed over."""
    shapes = np.concatenate([np.zeros_like(truths[:3]), truths[:4]])
    prior = train_shape_prior(shapes, 4, PriorSettings(latent=4, widths=(4, 4), iterations=2, batch=2))
    correction = ShapePriorCorrector(rules, prior).correct(spoilt(truths[:1])[0])
    assert correction.valid
    assert any(np.array_equal(correction.mask, truth) for truth in truths[:4])
    hopeless = train_shape_prior(shapes[:3], 4, PriorSettings(latent=4, widths=(4, 4), iterations=2, batch=2))
    assert not ShapePriorCorrector(rules, hopeless).correct(spoilt(truths[:1])[0]).valid


def test_one_seed_one_prior_and_no_other_random_number(truths):
    settings = PriorSettings(latent=4, widths=(4, 4), iterations=3, batch=4, seed=7)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    losses = []
    first = train_shape_prior(torch.from_numpy(truths), 4, settings, lambda iteration, loss: losses.append(loss))
    torch.testing.assert_close(torch.rand(3), expected)
    second = train_shape_prior(truths, 4, settings)
    assert len(losses) == 3
    torch.testing.assert_close(first.latents, second.latents, rtol=0, atol=0)


def test_a_prior_comes_back_from_disk(tmp_path, truths, prior):
    prior.save(tmp_path / "prior")
    loaded = load_shape_prior(tmp_path / "prior")
    assert (loaded.settings, loaded.num_classes, loaded.size) == (SETTINGS, 4, (SIZE, SIZE))
    np.testing.assert_array_equal(loaded.shapes, truths)
    torch.testing.assert_close(loaded.encode(truths), prior.encode(truths), rtol=0, atol=0)
    np.testing.assert_array_equal(loaded.decode(loaded.latents), prior.decode(prior.latents))


def test_damaged_priors(tmp_path, prior):
    folder = tmp_path / "prior"
    with pytest.raises(SeggymError, match="card of a shape prior"):
        load_shape_prior(folder)
    prior.save(folder)
    weights, card = folder / "model.safetensors", folder / "model.json"
    content, text = weights.read_bytes(), card.read_text()
    weights.write_bytes(content[:-100])
    with pytest.raises(SeggymError, match=r"model\.safetensors is not the shape prior"):
        load_shape_prior(folder)
    weights.write_bytes(content)
    for change, sentence in (
        ({"kind": "unet"}, "is no card of a shape prior"),
        ({"settings": {"depth": 3}}, "settings.depth is unknown"),
        ({"settings": {"latent": 8}}, "is not the shape prior"),
    ):
        card.write_text(json.dumps({**json.loads(text), **change}))
        with pytest.raises(SeggymError, match=sentence):
            load_shape_prior(folder)


def test_wrong_masks(truths, prior, rules):
    corrector = ShapePriorCorrector(rules, prior)
    with pytest.raises(SeggymError, match=r"a mask of \(16, 32\) pixels does not suit a shape prior of \(32, 32\)"):
        corrector.correct(truths[0][:16])
    with pytest.raises(SeggymError, match="a mask holds label 4, but the shape prior knows 0 to 3"):
        corrector.correct(truths[0] + 1)
    with pytest.raises(SeggymError, match="multiples of 8"):
        train_shape_prior(truths[:, :30], 4, SETTINGS)
    with pytest.raises(SeggymError, match="masks hold label 3, expected 0 to 2"):
        train_shape_prior(truths, 3, SETTINGS)


def test_regions_of_corrections(truths, rules, prior):
    """Whatever is corrected is in one piece, by another library."""
    for corrector in (MorphologyCorrector(rules), ShapePriorCorrector(rules, prior)):
        for mask in spoilt(truths[20:26], seed=2):
            correction = corrector.correct(mask)
            if correction.valid:
                for label in range(1, 4):
                    assert measure.label(correction.mask == label, return_num=True, connectivity=2)[1] <= 1
