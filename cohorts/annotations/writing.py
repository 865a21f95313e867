"""Annotations as the files of a format."""

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Literal

from seggym.cohorts.annotations.coco import coco_content
from seggym.cohorts.annotations.cvat import xml_bytes
from seggym.cohorts.annotations.darwin import darwin_content
from seggym.cohorts.annotations.labelme import labelme_content
from seggym.cohorts.annotations.model import Annotation
from seggym.files import json_bytes

Format = Literal["labelme", "cvat", "darwin", "coco"]
FORMATS: tuple[Format, ...] = ("labelme", "cvat", "darwin", "coco")
COCO_FILE = "annotations_coco.json"


def annotation_files(annotations: Iterable[Annotation], classes: Sequence[str], form: Format) -> dict[str, bytes]:
    """The content of the files, by their names, that hold ``annotations`` in the format ``form``.

    COCO is one file, :data:`COCO_FILE`; the others have one file per image, named after it. Reading them gives what was
    written; only LabelMe numbers an object of several parts that had no group.
    """
    if form == "coco":
        return {COCO_FILE: json_bytes(coco_content(annotations, classes))}
    if form == "cvat":
        return {PurePath(found.image).stem + ".xml": xml_bytes(found) for found in annotations}
    content = labelme_content if form == "labelme" else darwin_content
    return {PurePath(found.image).stem + ".json": json_bytes(content(found)) for found in annotations}
