"""Boxes and masks against definitions written out one by one."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import disk

from seggym.reward_models.instances import geometry


def boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def random_boxes(generator: torch.Generator, *shape: int) -> torch.Tensor:
    low = torch.rand(*shape, 2, generator=generator) * 40
    return torch.cat([low, low + 1 + torch.rand(*shape, 2, generator=generator) * 25], -1)


def test_ious_by_hand() -> None:
    first, second = boxes([0, 0, 4, 2]), boxes([2, 0, 6, 2], [4, 0, 5, 2], [0, 0, 4, 2], [1, 1, 1, 1])
    assert torch.allclose(geometry.box_ious(first, second), torch.tensor([[4 / 12, 0.0, 1.0, 0.0]]))
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, :2, :4], masks[1, :2, 2:] = True, True
    expected = torch.tensor([[1, 4 / 12, 0], [4 / 12, 1, 0], [0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(geometry.mask_ious(masks, masks), expected)


def test_mask_ious_count_exactly_beyond_one_piece() -> None:
    """An image of more pixels than are multiplied at a time, and masks of more than 2^16 pixels."""
    generator = np.random.default_rng(0)
    masks = generator.random((2, 300, 701)) < 0.7
    found = geometry.mask_ious(torch.from_numpy(masks[:1]), torch.from_numpy(masks[1:]))
    assert float(found) == (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


def test_boxes_of_masks() -> None:
    mask = torch.zeros(2, 8, 9, dtype=torch.bool)
    mask[0, 2:5, 3:4] = True
    assert geometry.mask_boxes(mask).tolist() == [[3, 2, 4, 5], [0, 0, 0, 0]]


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_offsets_lead_back_to_the_box(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors, wanted = random_boxes(generator, 5), random_boxes(generator, 5)
    # A step of sizes is limited to 4 times; the boxes that are wanted are at most so much larger.
    anchors[:, 2:] = anchors[:, :2] + (wanted[:, 2:] - wanted[:, :2]) * (0.3 + torch.rand(5, 2, generator=generator))
    assert torch.allclose(geometry.decode_boxes(geometry.encode_boxes(wanted, anchors), anchors), wanted, atol=1e-3)


def greedy(rows: np.ndarray, scores: np.ndarray, threshold: float) -> set[int]:
    """Suppression as it is told: take the best, drop what overlaps it, and so on."""
    left = [int(row) for row in np.argsort(-scores, kind="stable") if scores[row] > -np.inf]
    taken: set[int] = set()
    while left:
        best = left.pop(0)
        taken.add(best)
        left = [
            row
            for row in left
            if float(geometry.box_ious(torch.tensor(rows[best][None]), torch.tensor(rows[row][None]))) <= threshold
        ]
    return taken


@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.3, 0.7]))
@settings(max_examples=25, deadline=None)
def test_suppression_of_many_sets(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sets = random_boxes(generator, 3, 12)
    scores = torch.randint(6, (3, 12), generator=generator).float()
    scores[1, 5:] = -torch.inf
    found = geometry.suppress(sets, scores, threshold)
    for row in range(3):
        assert set(found[row].nonzero()[:, 0].tolist()) == greedy(sets[row].numpy(), scores[row].numpy(), threshold)


def bilinear(image: np.ndarray, x: float, y: float) -> float:
    """``image`` between the centres of its pixels; beyond them the border goes on."""
    height, width = image.shape
    x, y = np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)
    left, top = int(min(x, width - 2)), int(min(y, height - 2))
    right, down = x - left, y - top
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def test_pooling_samples_the_centres_of_bins() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(2, 3, 8, 10, generator=generator, dtype=torch.float64)
    regions = torch.tensor([[[3.0, 2.0, 17.0, 13.0]], [[-4.0, 10.0, 30.0, 40.0]]], dtype=torch.float64)
    found = geometry.pool_regions(features, regions, 3, 2.0)
    assert found.shape == (2, 1, 3, 3, 3)
    for image in range(2):
        x0, y0, x1, y1 = regions[image, 0].tolist()
        for row in range(3):
            for column in range(3):
                x, y = (x0 + (x1 - x0) * (column + 0.5) / 3) / 2, (y0 + (y1 - y0) * (row + 0.5) / 3) / 2
                for channel in range(3):
                    expected = bilinear(features[image, channel].numpy(), x, y)
                    assert abs(float(found[image, 0, channel, row, column]) - expected) < 1e-6


def test_a_mask_that_is_cut_out_and_pasted_is_the_same() -> None:
    mask = np.zeros((1, 64, 48), bool)
    mask[0][disk((30, 20), 12, shape=(64, 48))] = True
    masks = torch.from_numpy(mask)
    box = geometry.mask_boxes(masks)
    patch = geometry.crop_masks(masks, box, 28)
    pasted = geometry.paste_masks(patch - 0.5, box, 64, 48)
    assert float(geometry.mask_ious(pasted, masks)) > 0.97
    outside = torch.tensor([[-10.0, -10.0, 5.0, 5.0]])
    corner = geometry.paste_masks(torch.ones(1, 28, 28), outside, 64, 48)[0]
    assert int(corner.sum()) == 25
    assert bool(corner[:5, :5].all())
