"""ACDC as numbered PNG slices: ``patientXXX/images/0.png, 1.png, ...`` and the same names in ``patientXXX/labels``.

A label picture holds the raw label values. ``volume.json`` beside the two folders, where there is one, says how the
slices make up volumes:
``{"group": "DCM", "volumes": [{"frame": "frame01", "slices": 10, "spacing": [10.0, 1.5, 1.5]}, ...]}`` (z, y, x in mm).
Without it all slices of a patient are one volume with the frame "png", spacing (1, 1, 1) and group "all".
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from seggym.cohorts.cases import Case, Source
from seggym.cohorts.cohort import Volume
from seggym.cohorts.scans import Complain, natural_key, read_scan, write_png
from seggym.files import write_json

SIDECAR = "volume.json"


def find_png_cases(folder: Path, complain: Complain) -> list[Case]:
    """The volumes of the patient in ``folder``; what is missing goes to ``complain``."""
    images = {path.name: path for path in sorted((folder / "images").glob("*.png"), key=natural_key)}
    labels = {path.name: path for path in (folder / "labels").glob("*.png")}
    for name in sorted(images.keys() ^ labels.keys()):
        missing = folder / ("labels" if name in images else "images") / name
        complain(missing, "is missing, expected one label picture for each image; restore it or remove its partner")
    pairs = [(images[name], labels[name]) for name in images if name in labels]
    if not images and not labels:
        complain(folder / "images", "holds no .png file, expected the slices 0.png, 1.png, ...; restore them")
    if not pairs:
        return []
    sidecar = folder / SIDECAR
    if not sidecar.is_file():
        return [_case(folder.name, "png", "all", pairs, None)]
    try:
        group, parts = _read_sidecar(sidecar)
    except (OSError, ValueError, KeyError, TypeError) as error:
        complain(sidecar, f"is not a readable description of the volumes ({error!r}); convert the patient again")
        return []
    stated = sum(slices for _, slices, _ in parts)
    if stated != len(pairs):
        complain(sidecar, f"states {stated} slices, found {len(pairs)} pairs of pictures; convert the patient again")
        return []
    cases = []
    for frame, slices, spacing in parts:
        cases.append(_case(folder.name, frame, group, pairs[:slices], spacing))
        pairs = pairs[slices:]
    return cases


def write_png_patient(folder: Path, group: str, volumes: Iterable[Volume]) -> int:
    """Write the volumes of one patient, slices numbered from 0 over all of them; returns the number of volumes.

    Each volume is scaled so that its maximum becomes 255: nothing is clipped, and relative to the maximum no value
    changes by more than half a step of 1/255.
    """
    parts: list[dict[str, Any]] = []
    number = 0
    for volume in volumes:
        scaled = np.rint(volume.image * (255.0 / volume.image.max())).astype(np.uint8)
        for image, label in zip(scaled, volume.label, strict=True):
            write_png(folder / "images" / f"{number}.png", image)
            write_png(folder / "labels" / f"{number}.png", label)
            number += 1
        parts.append({"frame": volume.frame, "slices": len(scaled), "spacing": list(volume.spacing)})
    # Last, so that a patient whose conversion was cut short has no description that looks complete.
    write_json(folder / SIDECAR, {"group": group, "volumes": parts})
    return len(parts)


def _case(
    patient: str,
    frame: str,
    group: str,
    pairs: list[tuple[Path, Path]],
    spacing: tuple[float, float, float] | None,
) -> Case:
    images, labels = zip(*pairs, strict=True)
    return Case(patient, frame, group, Source(images, read_scan), Source(labels, read_scan), spacing=spacing)


def _read_sidecar(path: Path) -> tuple[str, list[tuple[str, int, tuple[float, float, float]]]]:
    content = json.loads(path.read_text())
    parts = []
    for part in content["volumes"]:
        z, y, x = (float(value) for value in part["spacing"])
        if min(z, y, x) <= 0 or int(part["slices"]) < 1:
            raise ValueError(f"spacing {part['spacing']}, slices {part['slices']}")
        parts.append((str(part["frame"]), int(part["slices"]), (z, y, x)))
    return str(content["group"]), parts
