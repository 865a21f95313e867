"""LabelMe's JSON (github.com/wkentaro/labelme): one file per image, and the form in which seggym keeps annotations.

Shapes with the same class and ``group_id`` are one object. The score of a prediction is an entry ``score`` of each
shape, which LabelMe keeps when it saves.
"""

from pathlib import Path
from typing import Any

import numpy as np

from seggym.cohorts.annotations.checking import Checked
from seggym.cohorts.annotations.limits import bare_name
from seggym.cohorts.annotations.model import KINDS, Annotation, Instance, Shape

VERSION = "5.5.0"


def is_labelme(content: dict[str, Any]) -> bool:
    """Whether a JSON object is a LabelMe file."""
    return "shapes" in content


def parse_labelme(
    content: dict[str, Any], path: Path, image: str | None = None, size: tuple[int, int] | None = None
) -> Annotation:
    """The annotation in ``content``, which came from ``path``.

    ``image``, where the caller knows it, stands for the name in the file; ``size`` (width, height) for one that the
    file does not state. Anything that is not as expected raises :class:`SeggymError`.
    """
    checked = Checked(path)
    parts: dict[object, list[Shape]] = {}
    told: dict[object, tuple[str, int | None, float | None]] = {}
    for number, entry in enumerate(checked.entry(content, "shapes", list, "the file"), 1):
        where = f"shape {number}"
        if not isinstance(entry, dict):
            raise checked.fault(where, f"is of type {type(entry).__name__}, expected an object: export the file again")
        label = checked.label(entry.get("label"), where)
        group = checked.group(entry.get("group_id"), where)
        key = number if group is None else (label, group)
        parts.setdefault(key, []).append(_shape(checked, entry, where))
        told.setdefault(key, (label, group, checked.score(entry.get("score"), where)))
    width, height = content.get("imageWidth"), content.get("imageHeight")
    width, height = checked.size(*(size if size and width is None and height is None else (width, height)))
    instances = tuple(Instance(told[key][0], tuple(shapes), *told[key][1:]) for key, shapes in parts.items())
    return Annotation(image or bare_name(content.get("imagePath"), path), width, height, instances)


def labelme_content(annotation: Annotation) -> dict[str, Any]:
    """``annotation`` as the content of a LabelMe file. Objects of several parts get group ids where they have none."""
    shapes = [
        {
            "label": instance.label,
            "points": shape.points.tolist(),
            "group_id": instance.group,
            "description": "",
            "shape_type": shape.kind,
            "flags": {},
            **({} if instance.score is None else {"score": instance.score}),
        }
        for instance in with_groups(annotation.instances)
        for shape in instance.shapes
    ]
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": annotation.image,
        "imageData": None,
        "imageHeight": annotation.height,
        "imageWidth": annotation.width,
    }


def with_groups(instances: tuple[Instance, ...]) -> tuple[Instance, ...]:
    """``instances`` with a group of their own wherever a file would tear one apart or join two of them."""
    taken = {instance.group for instance in instances}
    free = (number for number in range(1, len(taken) + len(instances) + 2) if number not in taken)
    seen: set[tuple[str, int]] = set()
    told = []
    for instance in instances:
        group = instance.group
        if (group is None and len(instance.shapes) > 1) or (group is not None and (instance.label, group) in seen):
            group = next(free)
        if group is not None:
            seen.add((instance.label, group))
        told.append(Instance(instance.label, instance.shapes, group, instance.score))
    return tuple(told)


def _shape(checked: Checked, entry: dict[str, Any], where: str) -> Shape:
    kind = entry.get("shape_type") or "polygon"
    points = checked.entry(entry, "points", list, where)
    if kind not in KINDS:
        raise checked.fault(
            where, f"is a {str(kind)[:40]}, expected one of {', '.join(KINDS)}: draw it as polygon, or delete it"
        )
    if kind != "rectangle" or len(points) != 4:
        return checked.shape(kind, points, where)
    # Some programs give all corners of a rectangle; a turned one is a polygon.
    corners = checked.shape("polygon", points, where)
    low, high = corners.points.min(0), corners.points.max(0)
    upright = ((corners.points == low) | (corners.points == high)).all() and len(np.unique(corners.points, axis=0)) == 4
    return Shape("rectangle", np.stack([low, high])) if upright else corners
