"""Folders of images with annotation files among them, whichever program wrote those.

A file is known by its content, not by its ending. One that is named like an image (``a.json``, ``a.xml`` or
``a.png.json`` for ``a.png``) belongs to that image, whatever name stands in it; any other belongs to the images that it
names, of which only the last part is looked at, except those with a file of their own. Nothing outside the folder is
opened, links are refused.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seggym.cohorts.annotations.coco import is_coco, parse_coco
from seggym.cohorts.annotations.cvat import parse_xml, read_xml
from seggym.cohorts.annotations.cvat_images import parse_cvat_images
from seggym.cohorts.annotations.darwin import is_darwin, parse_darwin
from seggym.cohorts.annotations.labelme import is_labelme, parse_labelme
from seggym.cohorts.annotations.limits import IMAGE_SUFFIXES, image_size, read_image, read_json_object
from seggym.cohorts.annotations.model import Annotation
from seggym.cohorts.scans import natural_key
from seggym.errors import SeggymError

ANNOTATION_SUFFIXES = (".json", ".xml")
# The folder below the images in which people annotate; it is not part of the data.
ANNOTATE = "annotate"


@dataclass(frozen=True)
class ImageFolder:
    """The images below ``root``, by their file names, in natural order, and their annotations, read when asked for."""

    root: Path
    images: dict[str, Path]
    beside: dict[str, Path] = field(repr=False)  # the file of one image, unread
    named: dict[str, tuple[Path, Annotation]] = field(repr=False)  # what other files say, read

    @property
    def names(self) -> list[str]:
        """The file names of all images."""
        return list(self.images)

    def annotated(self, names: Iterable[str] | None = None) -> list[str]:
        """Those of ``names`` (default: all) that have an annotation, readable or not."""
        return [name for name in (self.images if names is None else names) if name in self.beside or name in self.named]

    def image(self, name: str) -> np.ndarray:
        """Image ``name`` as uint8 (height, width, 3)."""
        return read_image(self.images[name])

    def annotation_file(self, name: str) -> Path | None:
        """The file that annotates image ``name``, maybe among others."""
        return self.beside.get(name) or (self.named[name][0] if name in self.named else None)

    def annotation(self, name: str) -> Annotation | None:
        """The annotation of image ``name``, None where there is none.

        A file that is not as expected, or is of an image of another size, raises :class:`SeggymError`.
        """
        size = image_size(self.images[name])
        if name in self.beside:
            path = self.beside[name]
            found = read_annotation(path, name, size)
        elif name in self.named:
            path, found = self.named[name]
        else:
            return None
        if (found.width, found.height) != size:
            raise SeggymError(
                f"{path} is for an image of {found.width} x {found.height} pixels, but {name} has {size[0]} x "
                f"{size[1]}: annotate the image itself, not a resized or turned copy"
            )
        return found


def open_image_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """Find the images below ``root`` and their annotation files; a folder ``annotate`` is left out.

    Links, two images of one name, and two annotations of one image raise :class:`SeggymError`.
    """
    root = Path(root)
    if not root.is_dir():
        raise SeggymError(f"there is no folder {root}, expected one with images: make it, or mend the path")
    images: dict[str, Path] = {}
    files: list[Path] = []
    for path in _files(root):
        if path.suffix.lower() in ANNOTATION_SUFFIXES:
            files.append(path)
        elif path.name in images:
            raise SeggymError(f"{path} has the name of {images[path.name]}: rename one of the images")
        else:
            images[path.name] = path
    images = {path.name: path for path in sorted(images.values(), key=natural_key)}
    return ImageFolder(root, images, *_annotation_files(images, files))


def read_annotation(path: Path, image: str, size: tuple[int, int]) -> Annotation:
    """The annotation in ``path`` of the image named ``image``, of ``size`` (width, height) where the file has none."""
    found = _parse(path, image, size)
    if isinstance(found, dict):
        if image in found:
            return found[image]
        raise SeggymError(f"{path} is named like {image} but annotates other images: rename or mend it")
    if found is None:
        raise SeggymError(
            f"{path} is named like {image} but is no annotation, expected JSON of LabelMe, Darwin or COCO, or XML of "
            "CVAT: export it again, or rename it"
        )
    return found


def _files(root: Path) -> list[Path]:
    """Images and annotation files below ``root``."""
    found: list[Path] = []
    links: list[Path] = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        links += [here / name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name != ANNOTATE and not name.startswith("."))
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or path.suffix.lower() not in (*IMAGE_SUFFIXES, *ANNOTATION_SUFFIXES):
                continue
            (links if path.is_symlink() else found).append(path)
    if links:
        raise SeggymError(
            f"{root} holds {len(links)} symbolic links ({links[0].name}, ...), expected files; links are not followed: "
            "copy or move what they point to"
        )
    return found


def _annotation_files(
    images: dict[str, Path], files: list[Path]
) -> tuple[dict[str, Path], dict[str, tuple[Path, Annotation]]]:
    owners: dict[Path, str] = {}
    for name, path in images.items():
        for stem in (path.stem, path.name):
            for suffix in ANNOTATION_SUFFIXES:
                file = path.with_name(stem + suffix)
                if file in owners and file in files:
                    raise SeggymError(f"{file} may belong to {owners[file]} or to {name}: rename one of the images")
                owners[file] = name
    beside: dict[str, Path] = {}
    for path in files:
        if (owner := owners.get(path)) is None:
            continue
        if owner in beside:
            raise SeggymError(f"{owner} is annotated by {beside[owner]} and by {path}: remove one of them")
        beside[owner] = path
    named: dict[str, tuple[Path, Annotation]] = {}
    for path in files:
        if path in owners:
            continue
        found = _parse(path, None, None)
        annotations = found if isinstance(found, dict) else {} if found is None else {found.image: found}
        for name in images.keys() & annotations.keys() - beside.keys():
            if name in named:
                raise SeggymError(f"{name} is annotated by {named[name][0]} and by {path}: remove one of them")
            named[name] = path, annotations[name]
    return beside, named


def _parse(path: Path, image: str | None, size: tuple[int, int] | None) -> Annotation | dict[str, Annotation] | None:
    """What ``path`` annotates: one image, several by name, or None where it is no annotation."""
    if path.suffix.lower() == ".xml":
        root = read_xml(path)
        if root.tag == "annotations":
            return parse_cvat_images(root, path)
        return parse_xml(root, path, image, size) if root.tag == "annotation" else None
    content: dict[str, Any] = read_json_object(path)
    if is_labelme(content):
        return parse_labelme(content, path, image, size)
    if is_coco(content):
        return parse_coco(content, path)
    return parse_darwin(content, path, image, size) if is_darwin(content) else None
