"""Any folder of images and masks as a cohort.

Two layouts are read; a mask has the same stem as its image, and its folder is called ``masks`` or ``labels``:

- flat: ``root/images/*``, ``root/masks/*``. Every file is a volume of its own. The patient is the part of the stem
  before the first "_", the frame the rest (``p01_s3.png`` is frame "s3" of patient "p01"). Where the names say it
  otherwise, ``root/patients.csv`` with the columns ``file,patient`` and optionally ``group`` decides; the frame is then
  the whole stem.
- by patient: ``root/<patient>/images/*``, ``root/<patient>/masks/*``. Single slices of equal shape are stacked, in
  natural order, into one volume (frame "stack", or "stack<rows>x<columns>" where shapes differ); a file that holds a
  stack is a volume of its own with its stem as frame.

Images may be PNG, JPEG, TIFF, NIfTI or NPY, masks all of these but JPEG (its compression invents labels). RGB images
become luminance. NIfTI headers give the spacing; elsewhere it is nominal, (1, 1, 1).
"""

import csv
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from seggym.cohorts.cases import Case, Source, build_cohort
from seggym.cohorts.cohort import Cohort, require_folder
from seggym.cohorts.examples import example_patient
from seggym.cohorts.scans import (
    SUFFIXES,
    Complain,
    Scan,
    natural_key,
    read_scan,
    refuse,
    slice_shape,
    stem,
    write_png,
)
from seggym.errors import SeggymError

TABLE = "patients.csv"
MASK_FOLDERS = ("masks", "labels")
_JPEG = (".jpg", ".jpeg")


def open_folder(root: str | os.PathLike[str], *, num_classes: int, class_names: Sequence[str] | None = None) -> Cohort:
    """Open the image-plus-mask folder ``root`` whose masks hold the labels 0 to ``num_classes`` - 1.

    With ``num_classes`` = 2, masks of 0 and 255 are read as 0 and 1. ``class_names`` defaults to "background",
    "class 1", ... A missing pair raises :class:`SeggymError` here, a fault inside a file when its patient is read.
    """
    root = Path(root)
    require_folder(root, "folder")
    if not 2 <= num_classes <= 255:
        raise SeggymError(f"num_classes is {num_classes}, expected 2 to 255 (the background included)")
    names = tuple(class_names or ("background", *(f"class {label}" for label in range(1, num_classes))))
    if len(names) != num_classes:
        raise SeggymError(f"class_names has {len(names)} entries, expected {num_classes}, one for each class")
    cases = find_folder_cases(root, num_classes, refuse)
    table = root / TABLE
    return build_cohort("folder", root, names, cases, also=[table] if table.is_file() else [])


def is_folder_cohort(root: Path) -> bool:
    """Whether ``root`` has one of the two layouts."""
    return any((folder / "images").is_dir() for folder in (root, *_patient_folders(root)))


def find_folder_cases(root: Path, num_classes: int, complain: Complain) -> list[Case]:
    """The volumes below ``root``; missing pairs and the like go to ``complain``."""
    if (root / "images").is_dir():
        return _flat_cases(root, num_classes, complain)
    folders = _patient_folders(root)
    if not folders:
        complain(root, "has neither images/ and masks/ nor <patient>/images/ and <patient>/masks/; arrange it so")
    return [case for folder in folders for case in _patient_cases(folder, num_classes, complain)]


def write_example(directory: str | os.PathLike[str], layout: str = "patients", patients: int = 2) -> Path:
    """Write a tiny made-up cohort of PNG slices (4 classes), "patients" or "flat"; returns its folder."""
    directory = Path(directory)
    if layout not in ("patients", "flat"):
        raise SeggymError(f"folder layout {layout!r} is unknown, expected patients or flat")
    for index in range(1, patients + 1):
        _, volumes = example_patient(index, frames=("frame01",))
        for volume in volumes:
            image = np.rint(volume.image / volume.image.max() * 255).astype(np.uint8)
            for position in range(len(image)):
                base = directory if layout == "flat" else directory / volume.patient
                name = f"{volume.patient}_{position}.png" if layout == "flat" else f"{position}.png"
                write_png(base / "images" / name, image[position])
                write_png(base / "masks" / name, volume.label[position])
    return directory


def _patient_folders(root: Path) -> list[Path]:
    return [folder for folder in sorted(root.iterdir()) if (folder / "images").is_dir()]


def _flat_cases(root: Path, num_classes: int, complain: Complain) -> list[Case]:
    pairs = _pairs(root, complain)
    table = _read_table(root / TABLE, complain) if (root / TABLE).is_file() else None
    if table is not None:
        known = {name for image, _ in pairs for name in (image.name, stem(image))}
        for name in sorted(table.keys() - known):
            complain(root / TABLE, f"names {name}, but images/ has no such file with a mask; remove the row")
    cases = []
    for image, mask in pairs:
        patient, _, frame = stem(image).partition("_")
        group = "all"
        if table is not None:
            row = table.get(image.name) or table.get(stem(image))
            if row is None:
                complain(image, f"has no row in {TABLE}; add one, or remove the file")
                continue
            (patient, group), frame = row, stem(image)
        cases.append(_case(patient, frame or "image", group, [(image, mask)], num_classes))
    _check_groups(cases, root / TABLE, complain)
    return cases


def _patient_cases(folder: Path, num_classes: int, complain: Complain) -> list[Case]:
    pairs = _pairs(folder, complain)
    stacks: dict[tuple[int, ...], list[tuple[Path, Path]]] = {}
    cases = []
    for image, mask in pairs:
        shape = slice_shape(image)
        if shape is None:
            cases.append(_case(folder.name, stem(image), "all", [(image, mask)], num_classes))
        else:
            stacks.setdefault(shape, []).append((image, mask))
    for shape, members in sorted(stacks.items()):
        frame = "stack" if len(stacks) == 1 else f"stack{shape[0]}x{shape[1]}"
        cases.append(_case(folder.name, frame, "all", members, num_classes))
    return cases


def _case(patient: str, frame: str, group: str, pairs: list[tuple[Path, Path]], num_classes: int) -> Case:
    images, masks = zip(*pairs, strict=True)
    return Case(
        patient,
        frame,
        group,
        Source(images, partial(read_scan, colour=True)),
        Source(masks, partial(_read_mask, num_classes=num_classes)),
    )


def _read_mask(path: Path, complain: Complain, *, num_classes: int) -> Scan | None:
    scan = read_scan(path, complain)
    # Binary masks are commonly stored as black and white.
    if scan is not None and num_classes == 2 and np.isin(scan.values, (0, 255)).all():
        return Scan((scan.values == 255).astype(np.uint8), scan.spacing)
    return scan


def _pairs(base: Path, complain: Complain) -> list[tuple[Path, Path]]:
    """Image and mask of equal stem below ``base``, in natural order."""
    mask_folder = next((base / name for name in MASK_FOLDERS if (base / name).is_dir()), base / MASK_FOLDERS[0])
    images, masks = _by_stem(base / "images", complain), _by_stem(mask_folder, complain)
    for name in sorted(images.keys() - masks.keys()):
        complain(images[name], f"has no mask of the same stem in {mask_folder}; add it or remove the image")
    for name in sorted(masks.keys() - images.keys()):
        complain(masks[name], f"has no image of the same stem in {base / 'images'}; add it or remove the mask")
    if not images and not masks:
        complain(base / "images", f"holds no image, expected files that end in {', '.join(SUFFIXES)}; add them")
    pairs = []
    for name in images:
        if name in masks and masks[name].suffix.lower() in _JPEG:
            complain(masks[name], "is a JPEG, whose compression changes labels; store the mask as PNG")
        elif name in masks:
            pairs.append((images[name], masks[name]))
    return pairs


def _by_stem(folder: Path, complain: Complain) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=natural_key) if folder.is_dir() else []:
        if not path.name.lower().endswith(SUFFIXES) or path.name.startswith("."):
            continue
        if stem(path) in found:
            complain(path, f"has the same stem as {found[stem(path)].name}; keep one of them")
            continue
        found[stem(path)] = path
    return found


def _read_table(path: Path, complain: Complain) -> dict[str, tuple[str, str]]:
    """File -> (patient, group) as ``patients.csv`` states it."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        complain(path, f"is not a readable table ({error}); save it as comma-separated UTF-8 text")
        return {}
    if not {"file", "patient"} <= set(columns):
        complain(
            path, f"has the columns {', '.join(columns) or 'none'}, expected file,patient[,group]; mend its header"
        )
        return {}
    table: dict[str, tuple[str, str]] = {}
    for row in rows:
        name, patient = (row["file"] or "").strip(), (row["patient"] or "").strip()
        if not name or not patient:
            complain(path, f"has a row with an empty file or patient ({name or 'no file'}); fill it in")
        elif name in table:
            complain(path, f"names {name} twice; keep one row")
        else:
            table[name] = (patient, (row.get("group") or "all").strip())
    return table


def _check_groups(cases: list[Case], table: Path, complain: Complain) -> None:
    """Complain about patients that the table puts into two groups."""
    groups: dict[str, set[str]] = {}
    for case in cases:
        groups.setdefault(case.patient, set()).add(case.group)
    for patient, own in groups.items():
        if len(own) > 1:
            complain(table, f"puts patient {patient} into the groups {', '.join(sorted(own))}; choose one")
