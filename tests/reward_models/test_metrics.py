"""Segmentation metrics against MONAI, numbers worked out by hand, and the pinned empty cases."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses.dice import DiceLoss
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import DiceMetric, compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.surface_distance import compute_average_surface_distance

from seggym.errors import SeggymError
from seggym.reward_models.metrics import (
    dice_per_class,
    encode_truth,
    hard_quality,
    hard_scores,
    mean_iou,
    most_probable,
    soft_quality,
    surface_distances,
    volume_dice,
)

CLASSES = 4


def random_case(seed, batch=5, size=24, classes=CLASSES):
    """Blocky label maps, some without some classes, and softmax probabilities that lean towards them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, classes, (batch, size // 4, size // 4), generator=generator, dtype=torch.uint8)
    coarse[0] = 0
    coarse[1][coarse[1] == 2] = 0
    labels = coarse.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    logits = torch.randn(batch, classes, size, size, generator=generator, dtype=torch.float64)
    logits += 2 * to_onehot(labels, classes)
    return logits.softmax(dim=1), labels


def to_onehot(labels, classes=CLASSES):
    return torch.nn.functional.one_hot(labels.long(), classes).movedim(-1, 1).double()


def quality_of(scores, areas, labels, weight, classes=CLASSES):
    """The rule of contract 14 spelled out with loops over cases and classes."""
    values = []
    for case in range(len(labels)):
        present = [c for c in range(1, classes) if (labels[case] == c).any()]
        absent = [c for c in range(1, classes) if c not in present]
        mean = sum(float(scores[case, c - 1]) for c in present) / len(present) if present else 0.0
        penalty = sum(float(areas[case, c - 1]) for c in absent) / labels[case].numel()
        values.append(mean - weight * penalty)
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), weight=st.floats(0, 5))
def test_soft_quality_is_monais_smoothed_dice_over_present_classes(seed, weight):
    probabilities, labels = random_case(seed)
    loss = DiceLoss(include_background=False, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
    scores = 1 - loss(probabilities, to_onehot(labels)).flatten(1)
    expected = quality_of(scores, probabilities[:, 1:].sum(dim=(2, 3)), labels, weight)
    torch.testing.assert_close(soft_quality(probabilities, encode_truth(labels, CLASSES), weight), expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_hard_quality_is_soft_quality_of_the_decision(seed):
    probabilities, labels = random_case(seed)
    truth = encode_truth(labels, CLASSES)
    decided = to_onehot(probabilities.argmax(dim=1))
    torch.testing.assert_close(hard_quality(probabilities, truth, 2.0).double(), soft_quality(decided, truth, 2.0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_mean_iou_agrees_with_monai_up_to_the_smoothing(seed):
    probabilities, labels = random_case(seed)
    truth = encode_truth(labels, CLASSES)
    decided = to_onehot(probabilities.argmax(dim=1))
    plain = compute_iou(decided, to_onehot(labels), include_background=False)
    union = ((decided + to_onehot(labels)) > 0).sum(dim=(2, 3))[:, 1:]
    expected = quality_of((plain * union + 1) / (union + 1), decided[:, 1:].sum(dim=(2, 3)), labels, 1.0)
    torch.testing.assert_close(mean_iou(probabilities, truth, 1.0).double(), expected, atol=1e-6, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_dice_per_class_is_monais(seed):
    probabilities, labels = random_case(seed)
    prediction = most_probable(probabilities)
    expected = compute_dice(to_onehot(prediction), to_onehot(labels), include_background=False, ignore_empty=True)
    found = dice_per_class(prediction, encode_truth(labels, CLASSES))
    torch.testing.assert_close(found.double(), expected.double(), equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), lacking=st.sampled_from([None, 1, 3]))
def test_volume_dice_is_monais_over_the_whole_volume(seed, lacking):
    probabilities, labels = random_case(seed)
    if lacking is not None:
        labels[labels == lacking] = 0
    prediction = most_probable(probabilities)
    metric = DiceMetric(include_background=False, reduction="none", ignore_empty=True)
    expected = torch.as_tensor(metric(to_onehot(prediction[None]), to_onehot(labels[None]))[0])
    torch.testing.assert_close(volume_dice(prediction, labels, CLASSES).double(), expected.double(), equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([1, 2, 5]))
def test_most_probable_is_argmax_ties_included(seed, levels):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randint(0, levels, (2, CLASSES, 9, 7), generator=generator).float()
    expected = torch.from_numpy(np.argmax(probabilities.numpy(), axis=1))
    assert torch.equal(most_probable(probabilities).long(), expected)


def test_hand_computed_slice():
    labels = torch.zeros(1, 2, 5, dtype=torch.uint8)
    labels[0, 0, :4] = 1
    prediction = torch.zeros_like(labels)
    prediction[0, 0, 2:] = 1
    prediction[0, 1, :3] = 2
    truth = encode_truth(labels, 3)
    probabilities = to_onehot(prediction, 3)
    dice, iou = (2 * 2 + 1) / (3 + 4 + 1), (2 + 1) / (5 + 1)
    assert soft_quality(probabilities, truth, 0.0).item() == pytest.approx(dice)
    assert soft_quality(probabilities, truth, 2.0).item() == pytest.approx(dice - 2 * 3 / 10)
    assert hard_quality(probabilities, truth, 2.0).item() == pytest.approx(dice - 2 * 3 / 10)
    assert mean_iou(probabilities, truth, 0.5).item() == pytest.approx(iou - 0.5 * 3 / 10)
    assert dice_per_class(prediction, truth)[0, 0].item() == pytest.approx(4 / 7)
    assert math.isnan(dice_per_class(prediction, truth)[0, 1])
    assert hard_scores(prediction, truth)[1].tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("score", [soft_quality, hard_quality, mean_iou])
def test_slice_without_classes_has_the_penalty_only(score):
    truth = encode_truth(torch.zeros(2, 4, 4, dtype=torch.uint8), 3)
    prediction = torch.zeros(2, 4, 4, dtype=torch.uint8)
    prediction[1, 0] = 2
    # Empty against empty is 0, not 1: measuring nothing earns nothing.
    assert score(to_onehot(prediction, 3), truth, 3.0).tolist() == pytest.approx([0.0, -3.0 * 4 / 16])


@pytest.mark.parametrize("score", [soft_quality, hard_quality, mean_iou])
def test_perfect_prediction_scores_one(score):
    _, labels = random_case(3)
    found = score(to_onehot(labels[2:]), encode_truth(labels[2:], CLASSES), 1.0)
    assert found.tolist() == pytest.approx([1.0] * 3)


def test_missed_class_has_dice_zero_and_absent_class_has_none():
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0, 0] = 1
    nothing = torch.zeros_like(labels)
    assert dice_per_class(nothing, encode_truth(labels, 3))[0, 0] == 0
    assert math.isnan(dice_per_class(nothing, encode_truth(labels, 3))[0, 1])
    assert volume_dice(nothing, labels, 3)[0] == 0
    assert math.isnan(volume_dice(nothing, labels, 3)[1])


@pytest.mark.parametrize("score", [soft_quality, hard_quality, mean_iou])
def test_a_batch_scores_bit_for_bit_as_its_members(score):
    probabilities, labels = random_case(7, batch=6)
    together = score(probabilities, encode_truth(labels, CLASSES), 1.0)
    alone = [score(probabilities[i : i + 1], encode_truth(labels[i : i + 1], CLASSES), 1.0) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(("shape", "spacing"), [((20, 24), (1.5, 1.25)), ((4, 20, 24), (10.0, 1.5, 1.25))])
@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_are_monais(shape, spacing, seed):
    generator = np.random.default_rng(seed)
    prediction, truth = (torch.from_numpy(generator.integers(0, 3, shape).astype(np.uint8)) for _ in range(2))
    onehots = (to_onehot(prediction[None], 3), to_onehot(truth[None], 3))
    found = surface_distances(prediction, truth, 3, spacing)
    hd95 = compute_hausdorff_distance(*onehots, percentile=95, spacing=spacing)
    assd = compute_average_surface_distance(*onehots, symmetric=True, spacing=spacing)
    assert torch.equal(found.hd95, hd95[0])
    assert torch.equal(found.assd, assd[0])
    assert not found.failed.any()


def test_surface_distances_of_two_single_voxels_in_millimetres():
    prediction, truth = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    prediction[0, 2, 2] = 1
    truth[1, 2, 5] = 1
    found = surface_distances(prediction, truth, 2, (10.0, 1.0, 2.0))
    assert found.hd95.item() == pytest.approx(math.hypot(10, 6))
    assert found.assd.item() == pytest.approx(math.hypot(10, 6))


def test_surface_distances_against_a_brute_force_over_surface_points():
    prediction, truth = torch.zeros(2, 16, 16, dtype=torch.uint8)
    prediction[3:9, 3:9] = 1
    truth[5:13, 4:10] = 1

    def surface(mask):
        padded = np.pad(mask.numpy().astype(bool), 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask.numpy().astype(bool) & ~inner) * [2.0, 0.5]

    gaps = np.linalg.norm(surface(prediction)[:, None] - surface(truth)[None], axis=-1)
    one_way, other_way = gaps.min(axis=1), gaps.min(axis=0)
    found = surface_distances(prediction, truth, 2, (2.0, 0.5))
    assert found.hd95.item() == pytest.approx(max(np.percentile(one_way, 95), np.percentile(other_way, 95)), rel=1e-6)
    assert found.assd.item() == pytest.approx(np.concatenate([one_way, other_way]).mean(), rel=1e-6)


def test_one_empty_side_is_a_failure_and_two_are_not():
    prediction, truth = torch.zeros(2, 8, 8, dtype=torch.uint8)
    prediction[1, 1] = 1
    truth[2, 2] = 2
    prediction[5, 5] = truth[5, 5] = 4
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # MONAI's about empty masks
        found = surface_distances(prediction, truth, 5, (1.0, 1.0))
    assert found.failed.tolist() == [True, True, False, False]
    assert torch.isnan(found.hd95).tolist() == [True, True, True, False]
    assert torch.isnan(found.assd).tolist() == [True, True, True, False]
    assert found.hd95[3] == 0


def test_bad_shapes_are_refused_with_a_sentence():
    truth = encode_truth(torch.zeros(2, 8, 8, dtype=torch.uint8), 4)
    with pytest.raises(SeggymError, match="4 outputs"):
        soft_quality(torch.zeros(2, 3, 8, 8), truth, 1.0)
    with pytest.raises(SeggymError, match="batch axis"):
        encode_truth(torch.zeros(8, 8, dtype=torch.uint8), 4)
    with pytest.raises(SeggymError, match="at least 2"):
        encode_truth(torch.zeros(1, 8, 8, dtype=torch.uint8), 1)
    with pytest.raises(SeggymError, match="one shape"):
        volume_dice(torch.zeros(2, 8, 8), torch.zeros(3, 8, 8), 4)
    with pytest.raises(SeggymError, match="spacing"):
        surface_distances(torch.zeros(2, 8, 8), torch.zeros(2, 8, 8), 4, (1.0, 1.0))
