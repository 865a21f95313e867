"""Average precision against pycocotools, and a case worked out by hand."""

import contextlib
import io

import numpy as np
import pytest
import torch

from seggym.reward_models.instances.detection_metrics import IOU_THRESHOLDS, average_precision
from seggym.reward_models.instances.segmenter import Detections, InstanceTarget

SIDE = 24


def detections(masks: np.ndarray, labels: list[int], scores: list[float]) -> Detections:
    count = len(labels)
    return Detections(
        boxes=torch.zeros(count, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
        class_probabilities=torch.zeros(count, 4),
        masks=torch.from_numpy(masks.reshape(count, *masks.shape[-2:])),
        passes=torch.zeros(count, dtype=torch.int64),
    )


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def draw(generator: np.random.Generator, classes: int) -> tuple[Detections, InstanceTarget]:
    """Rectangles, and detections that are some of them moved about, doubled, misnamed or made up."""
    count = int(generator.integers(0, 6))
    corners = generator.integers(0, 14, (count, 2))
    sizes = generator.integers(3, 10, (count, 2))
    true = np.array([rectangle(*c, *s) for c, s in zip(corners, sizes, strict=True)]).reshape(count, SIDE, SIDE)
    labels = generator.integers(1, classes + 1, count)
    found, named, scores = [], [], []
    for number in range(int(generator.integers(0, 9))):
        if count and generator.random() < 0.8:
            which = int(generator.integers(count))
            corner = np.clip(corners[which] + generator.integers(-1, 2, 2), 0, None)
            found.append(rectangle(*corner, *np.clip(sizes[which] + generator.integers(-1, 2, 2), 1, None)))
            named.append(int(labels[which]) if generator.random() < 0.8 else int(generator.integers(1, classes + 1)))
        else:
            found.append(rectangle(*generator.integers(0, 14, 2), *generator.integers(2, 9, 2)))
            named.append(int(generator.integers(1, classes + 1)))
        # Few different scores, so that some are equal.
        scores.append(float(generator.integers(1, 9)) / 8 + 0 * number)
    masks = np.array(found).reshape(len(found), SIDE, SIDE)
    return detections(masks, named, scores), InstanceTarget(torch.from_numpy(true), torch.from_numpy(labels))


def by_pycocotools(
    found: list[Detections], targets: list[InstanceTarget], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """mAP, AP50, AP75 and the AP of each class."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed (pip install seggym[dev])")
    from pycocotools import mask as coding
    from pycocotools.cocoeval import COCOeval

    def coded(mask: torch.Tensor) -> dict[str, object]:
        return coding.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))

    truth = [
        {
            "id": 0,
            "image_id": image,
            "category_id": int(label),
            "segmentation": coded(mask),
            "area": int(mask.sum()),
            "iscrowd": 0,
            "bbox": [0, 0, 1, 1],
        }
        for image, target in enumerate(targets)
        for mask, label in zip(target.masks, target.labels, strict=True)
    ]
    for number, entry in enumerate(truth, 1):
        entry["id"] = number
    results = [
        {"image_id": image, "category_id": int(label), "segmentation": coded(mask), "score": float(score)}
        for image, some in enumerate(found)
        for mask, label, score in zip(some.masks, some.labels, some.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO()
        data.dataset = {
            "images": [{"id": image, "height": SIDE, "width": SIDE} for image in range(len(targets))],
            "annotations": truth,
            "categories": [{"id": label, "name": str(label)} for label in range(1, classes + 1)],
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Thresholds, recalls, classes, areas, most detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = np.where((precision > -1).all((0, 1)), precision.mean((0, 1)), np.nan)
    return evaluation.stats[:3], per_class


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_pycocotools(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Of four classes the last one never occurs.
    pairs = [draw(generator, 3) for _ in range(int(generator.integers(1, 12)))]
    pairs.append((detections(rectangle(0, 0, 4, 4)[None], [1], [0.5]), pairs[0][1]))
    found, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if not sum(len(target.labels) for target in targets):
        targets[-1] = InstanceTarget(torch.from_numpy(rectangle(0, 0, 4, 4)[None]), torch.tensor([1]))
    mine = average_precision(found, targets, 4)
    summary, per_class = by_pycocotools(found, targets, 4)
    np.testing.assert_allclose([mine.map, mine.ap50, mine.ap75], summary, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mine.per_class, per_class, rtol=0, atol=1e-12)
    assert np.isnan(mine.per_class[3])


def test_by_hand() -> None:
    """One class, two objects; a perfect detection, one of IoU 0.6, and a false one between them in score."""
    true = np.stack([rectangle(0, 0, 5, 5), rectangle(10, 10, 5, 4)])
    found = np.stack([rectangle(0, 0, 5, 5), rectangle(18, 18, 3, 3), rectangle(10, 10, 3, 4)])
    one = InstanceTarget(torch.from_numpy(true), torch.tensor([1, 1]))
    score = average_precision([detections(found, [1, 1, 1], [0.9, 0.8, 0.7])], [one], 1)
    # Up to 0.6: precision 1 at recalls to 0.5, then 2/3; above it 1 at recalls to 0.5 and nothing after them.
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert abs(score.ap50 - low) < 1e-12
    assert abs(score.ap75 - high) < 1e-12
    count = int((IOU_THRESHOLDS <= 0.6 + 1e-9).sum())
    assert abs(score.map - (count * low + (10 - count) * high) / 10) < 1e-12


def test_nothing_to_find_is_no_number_and_nothing_found_is_zero() -> None:
    nothing = np.zeros((0, SIDE, SIDE), bool)
    empty = InstanceTarget(torch.from_numpy(nothing), torch.zeros(0, dtype=torch.int64))
    one = InstanceTarget(torch.from_numpy(rectangle(1, 1, 4, 4)[None]), torch.tensor([2]))
    none = detections(nothing, [], [])
    assert np.isnan(average_precision([none], [empty], 2).map)
    found = average_precision([none], [one], 2)
    assert (found.map, found.ap50) == (0.0, 0.0)
    assert np.isnan(found.per_class[0])
    assert found.per_class[1] == 0
