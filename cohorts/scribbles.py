"""Scribbles drawn from masks, for cohorts that have masks only.

In the manner of WSL4MIS (Luo et al., MICCAI 2022), slice by slice and for the background as well: a region is eroded
and thinned to its skeleton, the skeleton's side branches are cut, and what is left is a line of about three pixels. A
compact region, whose skeleton is little more than a point, gets the rim of its eroded self, a loop as people draw it.
The depth of the erosion is random and in proportion to the thickness of the region, so that a thin wall and a few
pixels keep their line.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

from seggym.cohorts.cohort import Cohort, Volume
from seggym.errors import SeggymError

SOURCES = ("auto", "stored", "drawn")

# A region is eroded by this share of its largest depth; never by all of it, or nothing would be left.
_EROSION = (0.2, 0.6)
# Side branches up to this share of the longer side of the image are cut, and so much is taken off open ends.
_BRANCH = 0.06
# A region whose skeleton is shorter than this many of its depths is compact.
_COMPACT = 3.0
_AROUND = np.ones((3, 3), bool)


def draw_scribbles(label: np.ndarray, num_classes: int, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Scribbles of ``label`` (Z, Y, X), integers 0 to ``num_classes`` - 1, as uint8 (Z, Y, X).

    Unlabelled pixels are ``num_classes``. Every other pixel has the class that it has in ``label``, and every class of
    a slice, the background included, has at least one pixel there. The same label and seed give the same scribbles.
    """
    drawn = np.full(label.shape, num_classes, np.uint8)
    rng = np.random.default_rng(seed)
    for position, plane in enumerate(label):
        # One number for each class, present or not, so that a class does not change the lines of the others.
        shares = rng.uniform(*_EROSION, num_classes)
        for value in np.unique(plane):
            drawn[position][_line(plane == value, shares[value])] = value
    return drawn


def with_scribbles(cohort: Cohort, source: str = "auto", seed: int = 0) -> Cohort:
    """``cohort`` with a scribble in every volume, ``scribble_ignore`` = ``num_classes``.

    ``source`` "stored" takes the cohort's own (a volume without one raises :class:`SeggymError` when it is read),
    "drawn" draws all of them from the masks, "auto" draws those that the cohort lacks. The seed of a volume's scribble
    is ``seed`` with the volume's name.
    """
    if source not in SOURCES:
        raise SeggymError(f"the source of scribbles is {source!r}, expected one of {', '.join(SOURCES)}")
    read = partial(_read, cohort, source, seed)
    return dataclasses.replace(cohort, read=read, scribble_ignore=cohort.num_classes)


def _read(cohort: Cohort, source: str, seed: int, patient: str) -> Iterator[Volume]:
    for volume in cohort.read(patient):
        if volume.scribble is not None and source != "drawn":
            yield volume
            continue
        if source == "stored":
            raise SeggymError(
                f"{volume.name} in {cohort.root} has no scribble, expected one for every volume; add it, or let it be "
                "drawn from the mask with scribbles=auto"
            )
        scribble = draw_scribbles(volume.label, cohort.num_classes, (seed, zlib.crc32(volume.name.encode())))
        yield dataclasses.replace(volume, scribble=scribble)


def _line(region: np.ndarray, share: float) -> np.ndarray:
    """The line drawn in ``region``, bool (Y, X) and not empty."""
    # Beyond the image there is no other class, so its edge counts as one: nobody draws along the edge.
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    core = depth > share * depth.max()
    line = _without_branches(skeletonize(core), round(_BRANCH * max(region.shape)))
    if line.sum() < _COMPACT * depth.max():
        line = core & ~ndimage.binary_erosion(core)
    return ndimage.binary_dilation(line) & region


def _without_branches(skeleton: np.ndarray, length: int) -> np.ndarray:
    """Take ``length`` pixels off every end, but leave a mark of every part."""
    line = skeleton.copy()
    parts, _ = ndimage.label(line, _AROUND)  # taking off an end never divides a part
    for _ in range(length):
        neighbours = ndimage.correlate(line.astype(np.uint8), _AROUND.astype(np.uint8), mode="constant") - 1
        shorter = line & (neighbours > 1)
        left = np.bincount(parts[shorter], minlength=parts.max() + 1) > 0
        shorter |= line & ~left[parts]
        if (shorter == line).all():
            break
        line = shorter
    return line
