"""COCO's JSON for instances (Lin et al., ECCV 2014): one file for many images.

The parts of an object are the polygons of one annotation. Masks (RLE) are read as their exact outlines, their holes
filled; regions of a crowd (``iscrowd``) are nobody in particular and left out.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seggym.cohorts.annotations.checking import Checked
from seggym.cohorts.annotations.limits import bare_name
from seggym.cohorts.annotations.model import Annotation, Instance, Shape, outline
from seggym.cohorts.annotations.record import KEY, needed_record, with_record
from seggym.cohorts.annotations.tracing import trace


def is_coco(content: dict[str, Any]) -> bool:
    """Whether a JSON object is a COCO file."""
    return {"images", "annotations", "categories"} <= content.keys()


def parse_coco(content: dict[str, Any], path: Path) -> dict[str, Annotation]:
    """The annotations in ``content``, which came from ``path``, by the bare file name of the image.

    An image without objects is there, with none. Anything that is not as expected raises :class:`SeggymError`.
    """
    checked = Checked(path)
    labels = {
        _key(checked, entry.get("id"), f"category {number}"): checked.label(entry.get("name"), f"category {number}")
        for number, entry in enumerate(_objects(checked, content, "categories"), 1)
    }
    images: dict[Any, tuple[str, int, int]] = {}
    found: dict[Any, list[Instance]] = {}
    names: set[str] = set()
    for number, entry in enumerate(_objects(checked, content, "images"), 1):
        name = bare_name(entry.get("file_name"), path, f"file_name of image {number}")
        key = _key(checked, entry.get("id"), f"image {number}")
        if key in images or name in names:
            raise checked.fault(f"image {number} ({name})", "has the id or name of another: make it unique")
        names.add(name)
        images[key] = name, *checked.size(entry.get("width"), entry.get("height"))
        found[key] = []
    for number, entry in enumerate(_objects(checked, content, "annotations"), 1):
        where = f"annotation {number}"
        key = _key(checked, entry.get("image_id"), where)
        if key not in images:
            raise checked.fault(where, f"is of the image {str(key)[:40]!r}, which is not listed: add it to 'images'")
        category = _key(checked, entry.get("category_id"), where)
        if category not in labels:
            raise checked.fault(where, f"is of category {str(category)[:40]!r}, which is not listed: add it")
        if entry.get("iscrowd"):
            continue
        shapes = _shapes(checked, entry.get("segmentation"), images[key][1:], where)
        plain = Instance(labels[category], shapes, None, checked.score(entry.get("score"), where))
        found[key].append(with_record(checked, plain, entry.get(KEY), where))
    return {name: Annotation(name, width, height, tuple(found[key])) for key, (name, width, height) in images.items()}


def coco_content(annotations: Iterable[Annotation], classes: Sequence[str]) -> dict[str, Any]:
    """``annotations`` as the content of a COCO file; categories are ``classes``, then what else there is.

    ``area`` is that of the outlines, ``bbox`` is [x, y, width, height].
    """
    annotations = list(annotations)
    labels = list(dict.fromkeys([*classes, *(i.label for annotation in annotations for i in annotation.instances)]))
    entries: list[dict[str, Any]] = []
    for image_id, annotation in enumerate(annotations, 1):
        for instance in annotation.instances:
            entry = _entry(instance)
            head = {"id": len(entries) + 1, "image_id": image_id, "category_id": labels.index(instance.label) + 1}
            entries.append(head | entry)
    return {
        "info": {"description": "seggym"},
        "licenses": [],
        "images": [
            {"id": image_id, "file_name": annotation.image, "width": annotation.width, "height": annotation.height}
            for image_id, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": number, "name": label, "supercategory": ""} for number, label in enumerate(labels, 1)],
        "annotations": entries,
    }


def _entry(instance: Instance) -> dict[str, Any]:
    outlines = [outline(shape) for shape in instance.shapes]
    low = np.min([points.min(0) for points in outlines], 0)
    high = np.max([points.max(0) for points in outlines], 0)
    plain = Instance(instance.label, tuple(Shape("polygon", points) for points in outlines), None, instance.score)
    record = needed_record(instance, plain)
    return {
        "segmentation": [points.ravel().tolist() for points in outlines],
        "area": float(sum(_area(points) for points in outlines)),
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "iscrowd": 0,
        **({} if instance.score is None else {"score": instance.score}),
        **({} if record is None else {KEY: record}),
    }


def _area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _key(checked: Checked, found: Any, where: str) -> int | str:
    if isinstance(found, (int, str)):
        return found
    raise checked.fault(where, f"has the id {str(found)[:40]}, expected a number: export the file again")


def _objects(checked: Checked, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = checked.entry(content, key, list, "the file")
    if not all(isinstance(entry, dict) for entry in entries):
        raise checked.fault(f"{key!r}", "holds something other than objects: export the file again")
    return entries


def _shapes(checked: Checked, found: Any, size: tuple[int, int], where: str) -> tuple[Shape, ...]:
    outlines: list[Any] = found if isinstance(found, list) else []
    if isinstance(found, dict):
        traced = trace(_mask(checked, found, size, where), tolerance=0, min_area=0)
        outlines = [shape.points.ravel().tolist() for shape in traced]
    if not outlines:
        raise checked.fault(where, "has no outline (a box is none), expected polygons or RLE: draw it, or delete it")
    shapes = []
    for numbers in outlines:
        if not isinstance(numbers, list) or len(numbers) % 2:
            raise checked.fault(where, "has a polygon that is no list of x and y in turn: export the file again")
        shapes.append(checked.shape("polygon", list(zip(numbers[::2], numbers[1::2], strict=True)), where))
    return tuple(shapes)


def _mask(checked: Checked, found: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """The mask bool (height, width) of a run-length code: runs of 0 and 1 in turn, down the columns."""
    width, height = size
    if found.get("size") != [height, width]:
        raise checked.fault(where, f"has a mask of size {str(found.get('size'))[:40]}, expected [{height}, {width}]")
    counts = found.get("counts")
    runs: list[int] = _decoded(counts) if isinstance(counts, str) else counts if isinstance(counts, list) else []
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != width * height:
        raise checked.fault(where, "has a run-length code that does not fill its mask: export the file again")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decoded(text: str) -> list[int]:
    """The runs of a compressed code: six bits a letter, five of them digits, differences to the run before the last."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            break
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
