"""Outlined objects of an image: the one form that every annotation format is read into and written from.

Coordinates are those of LabelMe and COCO: (x, y) in pixels from the upper left corner of the image, so that the pixel
in column i and row j covers [i, i + 1] x [j, j + 1] and has its centre at (i + 0.5, j + 0.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seggym.errors import SeggymError

Kind = Literal["polygon", "rectangle", "circle"]
KINDS: tuple[Kind, ...] = ("polygon", "rectangle", "circle")

# Crossings of edges with rows that are held at once, and bytes of masks that one image may take.
_CROSSINGS = 1 << 20
_MASK_BYTES = 1 << 32


@dataclass(frozen=True, eq=False)
class Shape:
    """One outline. ``points`` is float64 (k, 2) of (x, y), read-only.

    A polygon has at least three corners and is filled by the even-odd rule; a rectangle has two opposite corners; a
    circle has its centre and a point on it, as in LabelMe.
    """

    kind: Kind
    points: np.ndarray

    def __post_init__(self) -> None:
        points = np.array(self.points, np.float64)
        if self.kind not in KINDS:
            raise ValueError(f"shape {self.kind!r} is unknown, expected one of {', '.join(KINDS)}")
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise ValueError(f"points of shape {points.shape} are not finite pairs (k, 2)")
        if len(points) < 3 if self.kind == "polygon" else len(points) != 2:
            wanted = "at least 3" if self.kind == "polygon" else "2"
            raise ValueError(f"a {self.kind} of {len(points)} points, expected {wanted}")
        points.setflags(write=False)
        object.__setattr__(self, "points", points)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shape):
            return NotImplemented
        return self.kind == other.kind and np.array_equal(self.points, other.points)

    def __hash__(self) -> int:
        return hash((self.kind, self.points.tobytes()))


@dataclass(frozen=True)
class Instance:
    """One object: its class, and several shapes where it is seen in several parts (their union).

    ``group`` is the number that ties the parts together in the file, ``score`` in [0, 1] is that of a prediction.
    """

    label: str
    shapes: tuple[Shape, ...]
    group: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class Annotation:
    """What is outlined in one image. ``image`` is its bare file name; ``width`` and ``height`` are in pixels."""

    image: str
    width: int
    height: int
    instances: tuple[Instance, ...] = ()

    @property
    def vertices(self) -> int:
        """Points that somebody had to set: what annotating the image cost."""
        return sum(len(shape.points) for instance in self.instances for shape in instance.shapes)


def rasterise(annotation: Annotation, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The objects as masks bool (k, height, width) and classes int64 (k,), numbered from 1 in the order of ``classes``.

    A pixel belongs to an object whose outline its centre lies in; objects may overlap, and one smaller than a pixel or
    outside the image may have an empty mask. A class that is not among ``classes`` raises :class:`SeggymError`.
    """
    numbers = {name: number for number, name in enumerate(classes, 1)}
    unknown = sorted({instance.label for instance in annotation.instances} - numbers.keys())
    if unknown:
        raise SeggymError(
            f"the annotation of {annotation.image} has objects of class {', '.join(map(repr, unknown))}, expected one "
            f"of {', '.join(classes)}: relabel them, or add the class to `classes`"
        )
    count, height, width = len(annotation.instances), annotation.height, annotation.width
    if count * height * width > _MASK_BYTES:
        raise SeggymError(
            f"the annotation of {annotation.image} has {count} objects of {width} x {height} pixels, expected masks of "
            f"at most {_MASK_BYTES >> 30} GiB: cut the image into tiles"
        )
    masks = np.zeros((count, height, width), bool)
    for mask, instance in zip(masks, annotation.instances, strict=True):
        for shape in instance.shapes:
            _fill(mask, shape)
    return masks, np.array([numbers[instance.label] for instance in annotation.instances], np.int64)


def shape_mask(shape: Shape, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie in ``shape``: bool (height, width)."""
    mask = np.zeros((height, width), bool)
    _fill(mask, shape)
    return mask


def outline(shape: Shape) -> np.ndarray:
    """``shape`` as the corners of a polygon, float64 (k, 2), for formats that know nothing else: a circle has 64.

    The order in which the corners of a rectangle were given, or where on a circle its point lies, makes no difference.
    """
    if shape.kind == "polygon":
        return shape.points
    if shape.kind == "rectangle":
        (left, top), (right, bottom) = shape.points.min(0), shape.points.max(0)
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    centre, edge = shape.points
    angles = np.arange(64) * (2 * np.pi / 64)
    return centre + np.hypot(*(edge - centre)) * np.stack([np.cos(angles), np.sin(angles)], -1)


def _fill(mask: np.ndarray, shape: Shape) -> None:
    """Set the pixels of ``mask`` (H, W) whose centres lie in ``shape``, looking at its bounding box only."""
    if shape.kind == "circle":
        centre, edge = shape.points
        radius = np.hypot(*(edge - centre))
        corners = np.stack([centre - radius, centre + radius])
    else:
        corners = outline(shape)
    low = np.clip(np.floor(corners.min(0)), 0, mask.shape[::-1]).astype(np.int64)
    high = np.clip(np.ceil(corners.max(0)), 0, mask.shape[::-1]).astype(np.int64)
    if (high <= low).any():
        return
    window = mask[low[1] : high[1], low[0] : high[0]]
    if shape.kind == "circle":
        x, y = (np.arange(low[axis], high[axis]) + 0.5 - centre[axis] for axis in (0, 1))
        window |= x**2 + y[:, None] ** 2 <= radius**2
    else:
        window |= _inside(corners - low, *window.shape)


def _inside(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centres an odd number of edges of the polygon lies to the left of: bool (height, width).

    Each edge is met by the rows whose centre line it crosses. Toggling every pixel to the right of the crossing, for
    all edges, is one cumulative sum along the rows: edges plus pixels, not edges times pixels.
    """
    toggles = np.zeros((height, width + 1), np.int64)
    step = max(1, _CROSSINGS // height)
    following = np.roll(corners, -1, 0)
    for start in range(0, len(corners), step):
        (x0, y0), (x1, y1) = corners[start : start + step].T, following[start : start + step].T
        # Rows j with min(y0, y1) <= j + 0.5 < max(y0, y1): a corner on a centre line counts for one of its edges.
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
        edge = np.repeat(np.arange(len(x0)), last - first)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
        x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
        np.add.at(toggles, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)), 1)
    return np.cumsum(toggles[:, :-1], 1) % 2 == 1
