"""Certainty of images, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from seggym.reward_models.instances.certainty import image_certainty, observe
from seggym.reward_models.instances.geometry import box_ious, mask_boxes, mask_ious
from seggym.reward_models.instances.segmenter import Detections


def detections(*found: tuple[int, tuple[int, int, int, int], tuple[float, ...]], side: int = 20) -> Detections:
    """Rectangles (pass, (x, y, width, height), class probabilities with the background first)."""
    masks = torch.zeros(len(found), side, side, dtype=torch.bool)
    for mask, (_, (x, y, width, height), _) in zip(masks, found, strict=True):
        mask[y : y + height, x : x + width] = True
    width = len(found[0][2]) if found else 3
    probabilities = torch.tensor([row for _, _, row in found], dtype=torch.float64).reshape(len(found), width)
    best = probabilities[:, 1:].max(1)
    passes = torch.tensor([number for number, _, _ in found], dtype=torch.int64)
    return Detections(mask_boxes(masks), best.indices + 1, best.values, probabilities, masks, passes)


def test_two_passes_of_one_object() -> None:
    """Shifted by one of four columns, IoU 3/5; classes once sure and once at (3/4, 1/4)."""
    image = detections((0, (2, 2, 4, 4), (0.0, 1.0, 0.0)), (1, (3, 2, 4, 4), (0.2, 0.6, 0.2)))
    found = observe([image], passes=2)
    assert found.there.tolist() == [[True]]
    assert found.members.tolist() == [[2]]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    semantic = (1 + (1 - entropy / math.log(2))) / 2
    # Each pixel of either mask is in half of them, so the consensus is their union of 5 x 4 pixels: IoU 16/20.
    # The mean box is [2.5, 6.5] x [2, 6], which each box shares 3.5 of 4.5 columns with.
    spatial = (16 / 20) * (3.5 / 4.5)
    assert found.semantic.item() == pytest.approx(semantic, abs=1e-12)
    assert found.spatial.item() == pytest.approx(spatial, abs=1e-9)
    assert found.occurrence.item() == 1
    for mode in ("mean", "min"):
        assert image_certainty(found, mode).item() == pytest.approx(semantic * spatial, abs=1e-9)


def test_an_object_that_one_of_two_passes_sees() -> None:
    image = detections(
        (0, (0, 0, 5, 5), (0.0, 0.0, 1.0)), (0, (10, 10, 4, 4), (0.5, 0.25, 0.25)), (1, (0, 0, 5, 5), (0.0, 0.0, 1.0))
    )
    found = observe([image], passes=2)
    assert found.members.tolist() == [[2, 1]]
    # The first is seen twice, sure of everything; the second once, undecided between its classes.
    assert found.certainty[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    assert found.occurrence[0].tolist() == [1.0, 0.5]
    assert image_certainty(found, "mean").item() == pytest.approx(0.5, abs=1e-9)
    assert image_certainty(found, "min").item() == pytest.approx(0.0, abs=1e-9)


def test_one_class_has_nothing_to_confuse() -> None:
    image = detections((0, (0, 0, 4, 4), (0.2, 0.8)), (1, (0, 0, 4, 4), (0.4, 0.6)))
    found = observe([image], passes=4)
    assert found.semantic.item() == pytest.approx(0.7)
    assert found.occurrence.item() == 0.5
    assert image_certainty(found, "mean").item() == pytest.approx(0.35)


def test_no_detection_is_no_number() -> None:
    for images in ([detections()], [detections(), detections((0, (0, 0, 4, 4), (0.0, 1.0, 0.0)))]):
        found = observe(images, passes=3)
        assert not found.there[0].any()
        for mode in ("mean", "min"):
            certainty = image_certainty(found, mode)
            assert math.isnan(certainty[0])
            assert not certainty[1:].isnan().any()
    assert observe([], passes=3).there.shape[0] == 0


def test_two_of_a_pass_in_one_group_count_at_most_once_a_pass() -> None:
    image = detections(*[(number // 2, (1, 1, 6, 6), (0.0, 1.0, 0.0)) for number in range(4)])
    found = observe([image], passes=2)
    assert found.members.tolist() == [[4]]
    assert found.occurrence.item() == 1


def test_a_group_belongs_to_its_first_member() -> None:
    """Of three in a row each overlaps its neighbours: the last is not like the first, and founds its own group."""
    row = [(number, (3 * number, 0, 10, 10), (0.0, 1.0, 0.0)) for number in range(3)]
    found = observe([detections(*row)], passes=3, threshold=0.5)  # IoU of neighbours 7/13, of the outer two 4/16
    assert found.members.tolist() == [[2, 1]]
    # From the other end the middle one belongs to the last.
    assert observe([detections(row[2], row[1], row[0])], passes=3).members.tolist() == [[2, 1]]
    assert observe([detections(row[1], row[0], row[2])], passes=3).members.tolist() == [[3]]
    assert observe([detections(*row)], passes=3, threshold=0.2).members.tolist() == [[3]]


def one_by_one(image: Detections, passes: int, threshold: float) -> list[float]:
    """The measure as the paper tells it, with one loop after the other."""
    groups: list[list[int]] = []
    for number in range(len(image)):
        for group in groups:
            if float(mask_ious(image.masks[group[0]][None], image.masks[number][None])) > threshold:
                group.append(number)
                break
        else:
            groups.append([number])
    found = []
    for group in groups:
        rows = torch.tensor(group)
        classes = image.class_probabilities[rows][:, 1:].numpy().astype(np.float64)
        classes = classes / classes.sum(1, keepdims=True)
        semantic = np.mean([1 + (p[p > 0] * np.log(p[p > 0])).sum() / np.log(len(p)) for p in classes])
        consensus = image.masks[rows].double().mean(0) >= 0.25
        mean_box = image.boxes[rows].double().mean(0, keepdim=True)
        masks = np.mean([float(mask_ious(consensus[None], image.masks[row][None])) for row in group])
        boxes = np.mean([float(box_ious(mean_box, image.boxes[row][None].double())) for row in group])
        found.append(min(1, max(0, semantic)) * masks * boxes * min(1, len(group) / passes))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_all_images_at_once_are_what_each_is_alone(seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = []
    for side in (20, 20, 26, 20):
        found = []
        for number in range(5):
            for _ in range(int(generator.integers(0, 4))):
                x, y = (int(value) for value in generator.integers(0, 8, 2))
                width, height = (int(value) for value in generator.integers(5, 10, 2))
                found.append((number, (x, y, width, height), tuple(generator.dirichlet(np.ones(4)))))
        images.append(detections(*found, side=side) if found else detections(side=side))
    together = observe(images, passes=5, threshold=0.4)
    for number, image in enumerate(images):
        expected = one_by_one(image, 5, 0.4)
        mine = together.certainty[number][together.there[number]].tolist()
        assert mine == pytest.approx(expected, abs=1e-9)
        if expected:
            assert image_certainty(together, "min")[number].item() == pytest.approx(min(expected), abs=1e-9)
