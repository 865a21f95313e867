"""CVAT's own XML, "CVAT for images 1.1": one file for many images, read only.

Polygons, boxes, ellipses and masks; shapes of a class with the same ``group_id`` are one object.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from seggym.cohorts.annotations.checking import Checked
from seggym.cohorts.annotations.limits import bare_name
from seggym.cohorts.annotations.model import Annotation, Instance, Shape
from seggym.cohorts.annotations.tracing import trace

_IGNORED = ("tag",)


def parse_cvat_images(root: Element, path: Path) -> dict[str, Annotation]:
    """The annotations below ``root``, which came from ``path``, by the bare file name of the image.

    Anything that is not as expected raises :class:`SeggymError`.
    """
    checked = Checked(path)
    if root.find("track") is not None:
        raise checked.fault("<track>", "belongs to a video, expected images: export as CVAT for images 1.1")
    found: dict[str, Annotation] = {}
    for number, entry in enumerate(root.iterfind("image"), 1):
        name = bare_name(entry.get("name"), path, f"the name of image {number}")
        if name in found:
            raise checked.fault(f"image {number} ({name})", "has the name of another: make it unique")
        sides = [checked.text_number(entry.get(side), f"image {name}") for side in ("width", "height")]
        width, height = checked.size(*sides)
        parts: dict[object, list[Shape]] = {}
        told: dict[object, tuple[str, int | None]] = {}
        for position, item in enumerate((child for child in entry if child.tag not in _IGNORED), 1):
            where = f"shape {position} of {name}"
            label = checked.label(item.get("label"), where)
            group = int(checked.text_number(item.get("group_id") or "0", where)) or None
            key = position if group is None else (label, group)
            parts.setdefault(key, []).extend(_shapes(checked, item, (width, height), where))
            told.setdefault(key, (label, group))
        instances = tuple(Instance(told[key][0], tuple(shapes), told[key][1]) for key, shapes in parts.items())
        found[name] = Annotation(name, width, height, instances)
    return found


def _shapes(checked: Checked, item: Element, size: tuple[int, int], where: str) -> list[Shape]:
    if item.tag == "polygon":
        pairs = [pair.split(",") for pair in (item.get("points") or "").split(";")]
        return [checked.shape("polygon", [[checked.text_number(v, where) for v in pair] for pair in pairs], where)]
    if item.tag == "box" and not checked.text_number(item.get("rotation") or "0", where):
        left, top, right, bottom = (checked.text_number(item.get(key), where) for key in ("xtl", "ytl", "xbr", "ybr"))
        return [checked.shape("rectangle", [(left, top), (right, bottom)], where)]
    if item.tag == "ellipse" and not checked.text_number(item.get("rotation") or "0", where):
        x, y, across, down = (checked.text_number(item.get(key), where) for key in ("cx", "cy", "rx", "ry"))
        if across == down:
            return [checked.shape("circle", [(x, y), (x + across, y)], where)]
        angles = np.arange(64) * (2 * np.pi / 64)
        points = np.stack([x + across * np.cos(angles), y + down * np.sin(angles)], -1)
        return [checked.shape("polygon", points, where)]
    if item.tag == "mask":
        mask = _mask(checked, item, size, where)
        return [checked.shape(shape.kind, shape.points, where) for shape in trace(mask, tolerance=0, min_area=0)]
    raise checked.fault(
        where, f"is a {item.tag[:40]} (or turned), expected a polygon, an upright box or ellipse, or a mask: draw it so"
    )


def _mask(checked: Checked, item: Element, size: tuple[int, int], where: str) -> np.ndarray:
    """A mask bool (height, width): runs of 0 and 1 in turn, along the rows of a box within the image."""
    try:
        left, top, width, height = (int(item.get(key) or "") for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in (item.get("rle") or "").split(",")]
    except ValueError:
        raise checked.fault(where, "has a mask with numbers that are none: export the file again") from None
    inside = min(left, top) >= 0 and 0 < width <= size[0] - left and 0 < height <= size[1] - top
    if not inside or min(runs) < 0 or sum(runs) != width * height or sum(runs[1::2]) == 0:
        raise checked.fault(where, "has a mask that does not fit its box or the image: export the file again")
    mask = np.zeros(size[::-1], bool)
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + height, left : left + width] = values.reshape(height, width)
    return mask
