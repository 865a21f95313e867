"""Average precision of instances by their masks, as COCO defines it (Lin et al., ECCV 2014).

The numbers are those of pycocotools' ``COCOeval`` with ``iouType="segm"``, all areas, and 100 detections per image and
class; a test compares them. Nothing is a crowd.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from seggym.reward_models.instances.geometry import mask_ious
from seggym.reward_models.instances.segmenter import Detections, InstanceTarget

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
# Detections of one class in one image that count.
_MOST = 100


@dataclass(frozen=True)
class AveragePrecision:
    """``map`` over classes and IoU thresholds .50 to .95, ``ap50`` and ``ap75`` at one; ``per_class`` float64 (C,) over
    thresholds. All in [0, 1]; NaN for classes of which there is no object, which no mean counts."""

    map: float
    ap50: float
    ap75: float
    per_class: np.ndarray


@dataclass(frozen=True)
class _Matches:
    """One image and class: ``scores`` (d,) and whether each detection is right at every threshold, bool (10, d)."""

    scores: np.ndarray
    right: np.ndarray
    objects: int


def average_precision(
    detections: Iterable[Detections], targets: Iterable[InstanceTarget], classes: int
) -> AveragePrecision:
    """How well ``detections`` find what ``targets`` say is there, image by image; classes are 1..``classes``."""
    by_class: list[list[_Matches]] = [[] for _ in range(classes)]
    for found, target in zip(detections, targets, strict=True):
        ious = mask_ious(found.masks, target.masks.to(found.masks.device)).cpu().numpy()
        scores, named = found.scores.double().cpu().numpy(), found.labels.cpu().numpy()
        true = target.labels.cpu().numpy()
        for label in range(1, classes + 1):
            mine, theirs = np.flatnonzero(named == label), np.flatnonzero(true == label)
            mine = mine[np.argsort(-scores[mine], kind="mergesort")][:_MOST]
            right = _match(ious[np.ix_(mine, theirs)])
            by_class[label - 1].append(_Matches(scores[mine], right, len(theirs)))
    precision = np.stack([_class_precision(matches) for matches in by_class])  # (C, thresholds)
    at = {threshold: int(np.argmin(np.abs(IOU_THRESHOLDS - threshold))) for threshold in (0.5, 0.75)}
    return AveragePrecision(
        _mean(precision), _mean(precision[:, at[0.5]]), _mean(precision[:, at[0.75]]), precision.mean(1)
    )


def _mean(values: np.ndarray) -> float:
    """The mean of what is no NaN; NaN where there is nothing."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _match(ious: np.ndarray) -> np.ndarray:
    """Which detections, best first, find an object of their own: bool (thresholds, d) of ``ious`` (d, g).

    Each takes the object that it overlaps most among those that are free, if that is enough; of equals the last one.
    """
    count, objects = ious.shape
    right = np.zeros((len(IOU_THRESHOLDS), count), bool)
    free = np.ones((len(IOU_THRESHOLDS), objects), bool)
    if not objects:
        return right
    rows = np.arange(len(IOU_THRESHOLDS))
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    for place in range(count):
        open_to = np.where(free, ious[place], -1.0)
        last = objects - 1 - np.argmax(open_to[:, ::-1], axis=1)
        right[:, place] = open_to[rows, last] >= limits
        free[rows[right[:, place]], last[right[:, place]]] = False
    return right


def _class_precision(matches: Sequence[_Matches]) -> np.ndarray:
    """Average precision at each threshold, (thresholds,); NaN without objects."""
    objects = sum(part.objects for part in matches)
    if not objects:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    scores = np.concatenate([part.scores for part in matches])
    order = np.argsort(-scores, kind="mergesort")
    right = np.concatenate([part.right for part in matches], axis=1)[:, order]
    found = np.cumsum(right, axis=1).astype(np.float64)
    recall, precision = found / objects, found / np.arange(1, len(order) + 1)
    # The best precision at this recall or any higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    values = np.zeros((len(IOU_THRESHOLDS), len(_RECALLS)))
    for row in range(len(IOU_THRESHOLDS)):
        place = np.searchsorted(recall[row], _RECALLS, side="left")
        reached = place < len(order)
        values[row, reached] = precision[row, place[reached]]
    return values.mean(1)
