"""XML of CVAT: "LabelMe 3.0" (one file per image, read and written) and "CVAT for images 1.1" (many images, read).

In the first, objects are tied together by ``parts``: one *has parts* 2 and 3, which are *part of* it. Where they are of
one class they are one object (a wheel that is part of a car is not). Masks, which would be files of their own, are
refused: no path in a file is opened.
"""

import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from seggym.cohorts.annotations.checking import Checked
from seggym.cohorts.annotations.limits import MAX_TEXT_BYTES, bare_name, parse_json_object, read_bytes
from seggym.cohorts.annotations.model import Annotation, Instance, Shape, outline
from seggym.cohorts.annotations.record import KEY, needed_record, with_record
from seggym.errors import SeggymError
from seggym.files import json_bytes

Element = ElementTree.Element


def read_xml(path: Path) -> Element:
    """The root of the XML in ``path``; entities and document types are refused."""
    try:
        return fromstring(read_bytes(path, MAX_TEXT_BYTES, "an XML file"), forbid_dtd=True)
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise SeggymError(f"{path} is not readable XML ({str(error)[:120]}): export it again") from None


def parse_xml(root: Element, path: Path, image: str | None = None, size: tuple[int, int] | None = None) -> Annotation:
    """The annotation in a "LabelMe 3.0" file, whose ``root`` came from ``path``.

    ``image``, where the caller knows it, stands for the name in the file; ``size`` (width, height) for one that the
    file does not state. Anything that is not as expected raises :class:`SeggymError`.
    """
    checked = Checked(path)
    if root.tag != "annotation":
        raise checked.fault(f"the root <{root.tag[:40]}>", "is unknown, expected <annotation>: export as LabelMe 3.0")
    sides = [root.findtext(f"imagesize/{key}") for key in ("ncols", "nrows")]
    if not any(sides) and size:
        width, height = checked.size(*size)
    else:
        width, height = checked.size(*(checked.text_number(side, "<imagesize>") for side in sides))
    parts: dict[str, tuple[Instance, object]] = {}
    links: list[tuple[str, str]] = []
    for number, entry in enumerate(root.iterfind("object"), 1):
        where = f"object {number}"
        if (entry.findtext("deleted") or "0").strip() == "1":
            continue
        name = (entry.findtext("id") or f"unnamed {number}").strip()
        if name in parts:
            raise checked.fault(where, f"has the id {name[:40]!r} of another: export the file again")
        record = entry.findtext(KEY)
        parts[name] = _object(checked, entry, where), parse_json_object(record.encode(), path) if record else None
        if parent := (entry.findtext("parts/ispartof") or "").strip():
            links.append((name, parent))
        links += [(name, child.strip()) for child in (entry.findtext("parts/hasparts") or "").split(",")]
    return Annotation(
        image or bare_name((root.findtext("filename") or "").strip(), path),
        width,
        height,
        _joined(checked, parts, links),
    )


def xml_bytes(annotation: Annotation) -> bytes:
    """``annotation`` as a "LabelMe 3.0" file."""
    root = ElementTree.Element("annotation")
    _add(root, "filename", annotation.image)
    _add(root, "folder", "")
    source = _add(root, "source")
    _add(source, "sourceImage", "")
    _add(source, "sourceAnnotation", "seggym")
    sides = _add(root, "imagesize")
    _add(sides, "nrows", str(annotation.height))
    _add(sides, "ncols", str(annotation.width))
    number = 0
    for instance in annotation.instances:
        leader = number
        members = [str(leader + step) for step in range(1, len(instance.shapes))]
        understood = Instance(instance.label, tuple(_written(shape) for shape in instance.shapes), None, instance.score)
        record = needed_record(instance, understood)
        for step, shape in enumerate(instance.shapes):
            entry = _add(root, "object")
            for key, text in (("name", instance.label), ("deleted", "0"), ("verified", "0"), ("occluded", "no")):
                _add(entry, key, text)
            _add(entry, "date", "")
            _add(entry, "id", str(number))
            tied = _add(entry, "parts")
            _add(tied, "hasparts", "" if step else ",".join(members))
            _add(tied, "ispartof", str(leader) if step else "")
            if shape.kind == "rectangle":
                _add(entry, "type", "bounding_box")
            polygon = _add(entry, "polygon")
            for x, y in outline(shape).tolist():
                point = _add(polygon, "pt")
                _add(point, "x", repr(x))
                _add(point, "y", repr(y))
            _add(polygon, "username", "")
            _add(entry, "attributes", "" if instance.score is None else f"score={instance.score!r}")
            if record is not None and not step:
                _add(entry, KEY, json_bytes(record).decode())
            number += 1
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, "utf-8", xml_declaration=True)


def _add(parent: Element, tag: str, text: str | None = None) -> Element:
    child = ElementTree.SubElement(parent, tag)
    child.text = text
    return child


def _written(shape: Shape) -> Shape:
    """What the format makes of ``shape``."""
    points = outline(shape)
    return Shape("rectangle", points[[0, 2]]) if shape.kind == "rectangle" else Shape("polygon", points)


def _object(checked: Checked, entry: Element, where: str) -> Instance:
    label = checked.label((entry.findtext("name") or "").strip(), where)
    polygon = entry.find("polygon")
    if polygon is None:
        kind = "a mask in a file of its own" if entry.find("segm") is not None else "no polygon"
        raise checked.fault(where, f"has {kind}, expected <polygon>: convert it to polygons, then export again")
    points = [
        tuple(checked.text_number(point.findtext(axis), where) for axis in ("x", "y"))
        for point in polygon.iterfind("pt")
    ]
    shape = checked.shape("polygon", points, where)
    if (entry.findtext("type") or "").strip() == "bounding_box":
        shape = Shape("rectangle", np.stack([shape.points.min(0), shape.points.max(0)]))
    told = {
        key.strip(): value.strip()
        for key, _, value in (part.partition("=") for part in (entry.findtext("attributes") or "").split(","))
    }
    score = checked.score(checked.text_number(told["score"], where), where) if "score" in told else None
    return Instance(label, (shape,), None, score)


def _joined(
    checked: Checked, parts: dict[str, tuple[Instance, object]], links: list[tuple[str, str]]
) -> tuple[Instance, ...]:
    """The objects, those together that are linked and of one class."""
    together = {name: [name] for name in parts}
    for one, other in links:
        if one in parts and other in parts and parts[one][0].label == parts[other][0].label:
            first, second = together[one], together[other]
            if first is not second:
                first += second
                together.update((name, first) for name in second)
    order = {name: number for number, name in enumerate(parts)}
    groups = list({id(names): sorted(names, key=order.__getitem__) for names in together.values()}.values())
    groups.sort(key=lambda names: order[names[0]])
    instances: list[Instance] = []
    for names in groups:
        first_part, record = parts[names[0]]
        shapes = tuple(itertools.chain.from_iterable(parts[name][0].shapes for name in names))
        plain = Instance(first_part.label, shapes, None, first_part.score)
        instances.append(with_record(checked, plain, record, f"the record of object {names[0]}"))
    return tuple(instances)
