"""What a rule of validity measures in a label map: topology, frontiers and shape of one or two structures.

Definitions follow Painchaud et al. (IEEE TMI 2020) for cardiac MR and, for echocardiography, their public code. A
structure is a class or a union of classes, given as bool (H, W) cropped to the foreground with a margin of one pixel.
A measure is NaN where a structure that it needs is empty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Region = NDArray[np.bool_]

NAN = float("nan")
_EIGHT = np.ones((3, 3), bool)
_FOUR = ndimage.generate_binary_structure(2, 1)
# Gaps and fragments of at most this share of the image are left behind by resampling (a pixel at 128 x 128).
_SPECK = 2.0**-14


@dataclass(frozen=True)
class LabelMap:
    """A label map (H, W) of integers; 0 is the background."""

    labels: NDArray[np.integer]

    @cached_property
    def cropped(self) -> NDArray[np.integer]:
        """The part with foreground, and one pixel of background around it."""
        rows, columns = (np.flatnonzero(self.labels.any(axis=axis)) for axis in (1, 0))
        if not rows.size:
            return np.zeros((3, 3), self.labels.dtype)
        return np.pad(self.labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)

    @property
    def speck(self) -> float:
        """Number of pixels up to which a gap or a fragment does not count."""
        return self.labels.size * _SPECK

    def structure(self, classes: tuple[int, ...]) -> Region:
        """Where one of ``classes`` is, within :attr:`cropped`."""
        cropped = self.cropped
        region = cropped == classes[0]
        for label in classes[1:]:
            region |= cropped == label
        return region


def area(label_map: LabelMap, of: Region) -> float:
    """Number of pixels."""
    return float(of.sum())


def share(label_map: LabelMap, of: Region) -> float:
    """Pixels relative to those of the whole image."""
    return float(of.sum()) / label_map.labels.size


def holes(label_map: LabelMap, of: Region) -> float:
    """Pixels of the regions (8-connected) that the structure encloses, whatever is in them."""
    inverse = ~of
    regions, _ = ndimage.label(inverse, _EIGHT)
    return float(np.count_nonzero(inverse) - np.count_nonzero(regions == regions[0, 0]))


def background_holes(label_map: LabelMap, of: Region) -> float:
    """Pixels of the enclosed regions (8-connected) in which there is nothing but background: a ring has none."""
    regions, count = ndimage.label(~of, _EIGHT)
    if count == 1:
        return 0.0
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    sizes[[0, regions[0, 0]]] = 0
    sizes[np.unique(regions[label_map.cropped > 0])] = 0
    return float(sizes.sum())


def disconnectivity(label_map: LabelMap, of: Region) -> float:
    """Pixels outside of the largest connected (8) region."""
    regions, count = ndimage.label(of, _EIGHT)
    if count < 2:
        return 0.0
    sizes = np.bincount(regions.ravel())[1:]
    return float(sizes.sum() - sizes.max())


def erosion_ratio(label_map: LabelMap, of: Region) -> float:
    """Erosions (3 x 3) until the structure is not one region any more, relative to its greatest half thickness."""
    if not of.any():
        return NAN
    thickness = float(ndimage.distance_transform_edt(of).max())
    erosions = 0
    while _is_one(of, label_map.speck if erosions else 0.0):
        of = ndimage.binary_erosion(of, _EIGHT)
        erosions += 1
    return erosions / thickness


def gap(label_map: LabelMap, of: Region, to: Region) -> float:
    """Pixels that lie enclosed (4-connected) between two structures; holes of one alone do not count, nor do specks."""
    union = of | to | _own_holes(of, to) | _own_holes(to, of)
    regions, count = ndimage.label(~union, _FOUR)
    if count == 1:
        return 0.0
    pixels = float(np.count_nonzero(regions) - np.count_nonzero(regions == regions[0, 0]))
    return pixels if pixels > label_map.speck else 0.0


def distance(label_map: LabelMap, of: Region, to: Region) -> float:
    """Pixels between two structures where they are closest; 0 where they touch, at a corner at least."""
    if not of.any() or not to.any():
        return NAN
    return float(ndimage.distance_transform_cdt(~to, "chessboard")[of].min() - 1)


def frontier(label_map: LabelMap, of: Region, to: Region) -> float:
    """Pixels of one structure that touch (8) the other; a single one does not count."""
    pixels = float(np.count_nonzero(of & ndimage.binary_dilation(to, _EIGHT)))
    return pixels if pixels > 1 else 0.0


def frontier_ratio(label_map: LabelMap, of: Region, to: Region) -> float:
    """:func:`frontier` relative to the width in columns of the first structure."""
    columns = np.flatnonzero(of.any(axis=0))
    if not columns.size:
        return NAN
    return frontier(label_map, of, to) / float(columns[-1] - columns[0] + 1)


def width_ratio(label_map: LabelMap, of: Region, to: Region) -> float:
    """Pixels of one structure per pixel of the other in the row of their joint centre of mass."""
    rows = (of | to).sum(axis=1)
    if not rows.any():
        return NAN
    row = int(rows @ np.arange(rows.size) / rows.sum())
    one, other = int(of[row].sum()), int(to[row].sum())
    return one / other if one and other else NAN


def concavity(label_map: LabelMap, of: Region) -> float:
    """Depth of the deepest dent in the outline, relative to the square root of the area; holes are filled."""
    from skimage.morphology import convex_hull_image

    filled = ndimage.binary_fill_holes(of)
    if not filled.any():
        return NAN
    hull = convex_hull_image(filled)
    # Without a margin the pixels along any digital slope would count as dents.
    dents = ndimage.binary_erosion(hull & ~filled, _EIGHT)
    if not dents.any():
        return 0.0
    return float(ndimage.distance_transform_edt(hull)[dents].max() / np.sqrt(filled.sum()))


def circularity(label_map: LabelMap, of: Region) -> float:
    """Isoperimetric ratio 4 pi area / perimeter^2, 1 for a disc; holes are filled."""
    from skimage.measure import perimeter

    filled = ndimage.binary_fill_holes(of)
    length = float(perimeter(filled, neighborhood=4))
    return float(4 * np.pi * filled.sum() / length**2) if length > 0 else NAN


ONE: dict[str, Callable[[LabelMap, Region], float]] = {
    "area": area,
    "share": share,
    "holes": holes,
    "background_holes": background_holes,
    "disconnectivity": disconnectivity,
    "erosion_ratio": erosion_ratio,
    "concavity": concavity,
    "circularity": circularity,
}
"""Measures of one structure."""

TWO: dict[str, Callable[[LabelMap, Region, Region], float]] = {
    "gap": gap,
    "distance": distance,
    "frontier": frontier,
    "frontier_ratio": frontier_ratio,
    "width_ratio": width_ratio,
}
"""Measures of one structure relative to another."""


def _is_one(region: Region, speck: float) -> bool:
    """Whether ``region`` is one connected (8) region, fragments below ``speck`` pixels left out."""
    regions, count = ndimage.label(region, _EIGHT)
    if count > 1 and speck > 1:
        count = int((np.bincount(regions.ravel())[1:] >= speck).sum())
    return count == 1


def _own_holes(of: Region, other: Region) -> Region:
    """The regions (4-connected) that ``of`` encloses and in which there is nothing of ``other``."""
    regions, count = ndimage.label(~of, _FOUR)
    if count == 1:
        return np.zeros_like(of)
    own = np.ones(count + 1, bool)
    own[[0, regions[0, 0]]] = False
    own[np.unique(regions[other])] = False
    return own[regions]
