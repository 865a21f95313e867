"""Calibration measures against torchmetrics and scikit-learn, and a temperature that is known."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import brier_score_loss, normalized_mutual_info_score, roc_auc_score

from seggym.errors import SeggymError
from seggym.reward_models.calibration import (
    ace,
    auroc,
    boundary_band,
    brier,
    correlation,
    ece,
    fit_temperature,
    mce,
    nmi,
    reliability,
    score_pixels,
)


@pytest.fixture
def pixels():
    """Overconfident confidences and correctness of 3,000 pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3000, generator=generator)
    return logits.sigmoid(), torch.rand(3000, generator=generator) < (logits / 2).sigmoid()


@pytest.mark.parametrize(("measure", "norm"), [(ece, "l1"), (mce, "max")])
def test_calibration_errors_are_those_of_torchmetrics(pixels, measure, norm):
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is a test dependency")
    confidence, correct = pixels
    reference = torchmetrics.classification.BinaryCalibrationError(n_bins=15, norm=norm)
    assert measure(confidence, correct, bins=15) == pytest.approx(
        float(reference(confidence, correct.long())), abs=1e-6
    )


def test_discrimination_is_that_of_scikit_learn(pixels):
    confidence, correct = pixels
    errors, uncertainty = (~correct).numpy(), (1 - confidence).numpy()
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(errors, uncertainty))
    assert brier(confidence, correct) == pytest.approx(brier_score_loss(correct.numpy(), confidence.numpy()))
    binned = np.digitize(confidence.numpy(), np.linspace(0, 1, 11)[1:-1])
    assert nmi(confidence, correct) == pytest.approx(normalized_mutual_info_score(correct.numpy(), binned))


def test_equal_mass_bins_by_hand():
    """Two bins of two pixels: confidences .1, .2 | .6, .9 with accuracies .5 and 1: (.35 + .25) / 2."""
    confidence, correct = torch.tensor([0.9, 0.1, 0.6, 0.2]), torch.tensor([True, False, True, True])
    assert ace(confidence, correct, bins=2) == pytest.approx((abs(0.5 - 0.15) + abs(1 - 0.75)) / 2)
    diagram = reliability(confidence, correct, bins=2, equal_mass=True)
    assert diagram.pixels.tolist() == [2, 2]
    assert diagram.accuracy.tolist() == [0.5, 1.0]


def test_extreme_confidences_belong_to_the_outer_bins():
    """RL4Seg's bins are open at both ends and lose them."""
    diagram = reliability(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([False, True, True]), bins=4)
    assert diagram.pixels.tolist() == [1, 0, 0, 2]
    assert ece(torch.tensor([0.0, 1.0]), torch.tensor([True, False])) == 1


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0, 4.0])
def test_a_known_temperature_is_recovered_within_five_percent(true):
    """Pixels that are correct with probability sigmoid(z / T); the published fit finds 4.04 for T = 2."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(40_000, generator=generator)
    correct = torch.rand(40_000, generator=generator) < (logits / true).sigmoid()
    found = fit_temperature(logits, correct)
    assert found == pytest.approx(true, rel=0.05)
    assert ece((logits / found).sigmoid(), correct) < 0.015


def test_a_temperature_stays_finite():
    assert math.isfinite(fit_temperature(torch.full((50,), 2.0), torch.ones(50, dtype=torch.bool)))
    assert math.isfinite(fit_temperature(torch.tensor([3.0, -3.0]), torch.tensor([True, False])))
    with torch.inference_mode():
        assert fit_temperature(torch.tensor([1.0, -1.0]), torch.tensor([False, True])) == pytest.approx(20)
    with pytest.raises(SeggymError, match="no pixels"):
        fit_temperature(torch.zeros(0), torch.zeros(0, dtype=torch.bool))


def test_boundary_band_is_a_distance():
    """Against scipy's chessboard distance to the pixels that touch another label."""
    rng = np.random.default_rng(0)
    mask = (ndimage.gaussian_filter(rng.standard_normal((40, 32)), 5) > 0).astype(np.uint8)
    padded = np.pad(mask, 1, mode="edge")
    neighbours = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    edge = np.any([mask != other for other in neighbours], axis=0)
    distance = ndimage.distance_transform_cdt(~edge, metric="chessboard") + 1
    for width in (1, 3, 5):
        np.testing.assert_array_equal(boundary_band(torch.tensor(mask)[None], width)[0].numpy(), distance <= width)
    assert not boundary_band(torch.zeros(1, 8, 8, dtype=torch.uint8)).any()


def test_pearson_of_uncertainty_and_dice():
    dice = torch.tensor([0.9, 0.5, 0.7, torch.nan])
    assert correlation(1 - dice, dice) == pytest.approx(-1)
    assert math.isnan(correlation(torch.ones(4), dice))
    assert math.isnan(correlation(torch.tensor([1.0, torch.nan, 2.0]), torch.arange(3.0)))


def test_scores_of_an_oracle_and_of_its_opposite():
    truths = torch.zeros(3, 24, 24, dtype=torch.uint8)
    truths[:, 6:18, 6:18] = 1
    predictions = truths.roll((1, 2, 3), (0, 1, 2))
    for number in range(3):
        predictions[number] = truths[number].roll(number + 1, 1)
    correct = predictions == truths
    oracle = score_pixels(correct.float(), predictions, truths)
    assert (oracle["auroc"], oracle["brier"], oracle["ece"]) == (1, 0, 0)
    assert oracle["pearson_dice"] < -0.99
    opposite = score_pixels((~correct).float(), predictions, truths)
    assert (opposite["auroc"], opposite["brier"], opposite["band_auroc"]) == (0, 1, 0)


def test_empty_masks_have_no_region():
    empty = torch.zeros(2, 16, 16, dtype=torch.uint8)
    scores = score_pixels(torch.full((2, 16, 16), 0.7), empty, empty)
    assert math.isnan(scores["ece"])
    assert math.isnan(scores["band_brier"])
    assert scores["image_brier"] == pytest.approx(0.09)


def test_what_is_no_probability_is_refused():
    with pytest.raises(SeggymError, match="expected probabilities"):
        ece(torch.tensor([0.2, float("nan")]), torch.tensor([True, False]))
    with pytest.raises(SeggymError, match="flat"):
        brier(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
