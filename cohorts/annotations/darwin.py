"""V7 Darwin's JSON, 2.0 (written) and 1.0 (read): one file per image (docs.v7labs.com, "Darwin JSON").

The paths of a polygon are the parts of one object, ``instance_id`` is its group, ``inference.confidence`` its score. A
box without a polygon is a rectangle, an ellipse with equal radii a circle. Tags, which outline nothing, are left out.
"""

from pathlib import Path
from typing import Any

import numpy as np

from seggym.cohorts.annotations.checking import Checked
from seggym.cohorts.annotations.limits import bare_name
from seggym.cohorts.annotations.model import Annotation, Instance, Shape, outline
from seggym.cohorts.annotations.record import KEY, needed_record, with_record

_OTHERS = ("keypoint", "line", "skeleton", "cuboid", "mask", "raster_layer")


def is_darwin(content: dict[str, Any]) -> bool:
    """Whether a JSON object is a Darwin file."""
    return "annotations" in content and "categories" not in content and bool({"item", "image"} & content.keys())


def parse_darwin(
    content: dict[str, Any], path: Path, image: str | None = None, size: tuple[int, int] | None = None
) -> Annotation:
    """The annotation in ``content``, which came from ``path``.

    ``image``, where the caller knows it, stands for the name in the file; ``size`` (width, height) for one that the
    file does not state. Anything that is not as expected raises :class:`SeggymError`.
    """
    checked = Checked(path)
    if "item" in content:
        item = checked.entry(content, "item", dict, "the file")
        slots = item.get("slots") or [{}]
        if not isinstance(slots, list) or len(slots) != 1 or not isinstance(slots[0], dict):
            raise checked.fault("'slots'", "holds several images, expected one: export one file per image")
        name, sides = item.get("name"), (slots[0].get("width"), slots[0].get("height"))
    else:
        item = checked.entry(content, "image", dict, "the file")
        name, sides = item.get("original_filename") or item.get("filename"), (item.get("width"), item.get("height"))
    width, height = checked.size(*(size if size and sides == (None, None) else sides))
    instances = []
    for number, entry in enumerate(checked.entry(content, "annotations", list, "the file"), 1):
        where = f"annotation {number}"
        if not isinstance(entry, dict):
            raise checked.fault(where, f"is of type {type(entry).__name__}, expected an object: export the file again")
        if "tag" in entry:
            continue
        plain = _instance(checked, entry, where)
        instances.append(with_record(checked, plain, entry.get(KEY), where))
    return Annotation(image or bare_name(name, path), width, height, tuple(instances))


def darwin_content(annotation: Annotation) -> dict[str, Any]:
    """``annotation`` as the content of a Darwin 2.0 file."""
    slot = {
        "type": "image",
        "slot_name": "0",
        "width": annotation.width,
        "height": annotation.height,
        "source_files": [{"file_name": annotation.image}],
    }
    return {
        "version": "2.0",
        "item": {"name": annotation.image, "path": "/", "slots": [slot]},
        "annotations": [_entry(number, instance) for number, instance in enumerate(annotation.instances, 1)],
    }


def _entry(number: int, instance: Instance) -> dict[str, Any]:
    outlines = [outline(shape) for shape in instance.shapes]
    low = np.min([points.min(0) for points in outlines], 0).tolist()
    high = np.max([points.max(0) for points in outlines], 0).tolist()
    entry: dict[str, Any] = {"id": str(number), "name": instance.label, "slot_names": ["0"]}
    kinds = [shape.kind for shape in instance.shapes]
    if kinds == ["circle"]:
        centre, edge = instance.shapes[0].points
        radius = float(np.hypot(*(edge - centre)))
        entry["ellipse"] = {"center": _xy(centre), "radius": {"x": radius, "y": radius}, "angle": 0.0}
    else:
        entry["bounding_box"] = {"x": low[0], "y": low[1], "w": high[0] - low[0], "h": high[1] - low[1]}
        if kinds != ["rectangle"]:
            entry["polygon"] = {"paths": [[_xy(point) for point in points] for points in outlines]}
    if instance.group is not None:
        entry["instance_id"] = {"value": instance.group}
    if instance.score is not None:
        entry["inference"] = {"confidence": instance.score, "model": {"name": "seggym"}}
    record = needed_record(instance, _instance(Checked(Path()), entry, "the object"))
    return entry if record is None else entry | {KEY: record}


def _xy(point: np.ndarray) -> dict[str, float]:
    return {"x": float(point[0]), "y": float(point[1])}


def _instance(checked: Checked, entry: dict[str, Any], where: str) -> Instance:
    """The object of an entry, by what the format itself says."""
    label = checked.label(entry.get("name"), where)
    group = entry.get("instance_id")
    told = entry.get("inference")
    score = checked.score(told.get("confidence") if isinstance(told, dict) else None, where)
    number = checked.group(group.get("value") if isinstance(group, dict) else None, where)
    return Instance(label, _shapes(checked, entry, where), number, score)


def _shapes(checked: Checked, entry: dict[str, Any], where: str) -> tuple[Shape, ...]:
    for key in ("polygon", "complex_polygon"):
        if key in entry:
            polygon = checked.entry(entry, key, dict, where)
            paths = polygon.get("paths")
            if paths is None:
                path = checked.entry(polygon, "path", list, where)
                # 1.0 has one path in a polygon, and a list of them in a complex polygon.
                paths = path if path and isinstance(path[0], list) else [path, *(polygon.get("additional_paths") or [])]
            if not isinstance(paths, list) or not paths or not all(isinstance(path, list) for path in paths):
                raise checked.fault(where, "has a polygon that is no list of paths: export the file again")
            return tuple(checked.shape("polygon", [_point(checked, p, where) for p in path], where) for path in paths)
    if "ellipse" in entry:
        return (_ellipse(checked, checked.entry(entry, "ellipse", dict, where), where),)
    if "bounding_box" in entry:
        box = checked.entry(entry, "bounding_box", dict, where)
        x, y, w, h = (checked.number(box.get(key), where) for key in ("x", "y", "w", "h"))
        return (checked.shape("rectangle", [(x, y), (x + w, y + h)], where),)
    kind = next((key for key in _OTHERS if key in entry), "something unknown")
    raise checked.fault(where, f"is a {kind}, expected a polygon, a bounding_box or an ellipse: draw it as polygon")


def _point(checked: Checked, found: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(found, dict):
        raise checked.fault(where, f"has the point {str(found)[:40]}, expected x and y: export the file again")
    return found.get("x"), found.get("y")


def _ellipse(checked: Checked, found: dict[str, Any], where: str) -> Shape:
    centre = [checked.number(v, where) for v in _point(checked, found.get("center"), where)]
    radius = [checked.number(v, where) for v in _point(checked, found.get("radius"), where)]
    if radius[0] == radius[1]:
        return checked.shape("circle", [centre, (centre[0] + radius[0], centre[1])], where)
    turn = checked.number(found.get("angle", 0.0), where)
    angles = np.arange(64) * (2 * np.pi / 64)
    x, y = radius[0] * np.cos(angles), radius[1] * np.sin(angles)
    turned = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1)
    return checked.shape("polygon", (turned + centre).tolist(), where)
