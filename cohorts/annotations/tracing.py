"""From masks to outlines: what a prediction or a drawn object becomes for people to look at and to correct."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours

from seggym.cohorts.annotations.model import Annotation, Instance, Shape

TOLERANCE = 0.35  # pixels that a simplified outline may stray
MIN_AREA = 4.0  # pixels; smaller parts are specks


def trace(
    mask: np.ndarray, *, tolerance: float = TOLERANCE, min_area: float = MIN_AREA, scale: int = 1
) -> tuple[Shape, ...]:
    """One polygon for each part of ``mask`` bool (H, W), the largest first; holes are filled.

    ``tolerance`` and ``min_area`` are in pixels of the image, of which each has ``scale`` x ``scale`` pixels of
    ``mask``. Parts touch along edges; smaller ones than ``min_area`` are left out, unless there is no other.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return ()
    # Only where the object is, with a margin, so that every contour is closed.
    window = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    corner = np.array([columns[0] - 1, rows[0] - 1])
    parts, count = ndimage.label(window)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    kept = [part for part in order if sizes[part] >= min_area * scale**2] or list(order[:1])
    shapes = []
    for part in kept:
        filled = ndimage.binary_fill_holes(parts == part + 1)
        # The first contour is the outer one: there is no hole, and a part is connected along edges.
        contour = max(find_contours(filled.astype(np.float32), 0.5, fully_connected="low"), key=len)
        simple = approximate_polygon(contour, tolerance * scale)[:-1]
        if len(simple) < 3:
            simple = contour[:-1]
        # Contours count pixel centres, (row, column); shapes count from the corner of the image, (x, y).
        shapes.append(Shape("polygon", (simple[:, ::-1] + 0.5 + corner) / scale))
    return tuple(shapes)


def predicted_annotation(
    image: str, masks: np.ndarray, labels: np.ndarray, scores: np.ndarray, classes: Sequence[str]
) -> Annotation:
    """Detections as an annotation to be corrected.

    ``masks`` is bool (k, H, W), ``labels`` int (k,) numbered from 1 in the order of ``classes``, ``scores`` (k,) in
    [0, 1]. A detection without a pixel is left out.
    """
    instances: list[Instance] = []
    for mask, label, score in zip(masks, labels, scores, strict=True):
        if shapes := trace(np.asarray(mask)):
            group = len(instances) + 1 if len(shapes) > 1 else None
            instances.append(Instance(classes[int(label) - 1], shapes, group, round(float(score), 4)))
    return Annotation(image, masks.shape[2], masks.shape[1], tuple(instances))
