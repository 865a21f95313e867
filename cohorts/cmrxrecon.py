"""CMRxRecon (Wang et al., Scientific Data 2024): multi-coil k-space of short-axis cine, with labels of the heart.

The layout of the challenges of 2023 and 2024: ``MultiCoil/Cine/<set>/FullSample/Pxxx/cine_sax.mat``, MATLAB v7.3 files
(HDF5) whose variable ``kspace_full`` is, in h5py's order, (frame, slice, coil, ky, kx) with pairs of real and imag; in
2023 with ``SingleCoil/Cine/<set>/SegmentROI/Pxxx/cine_sax_label.nii.gz``, labels (kx, ky, slice) of a single frame.
The label is also looked for in ``SegmentROI`` beside ``FullSample``, and beside the .mat file; ``Pxxx/cine_sax.mat``
may lie right in the root. ``<set>`` is TrainingSet, ValidationSet or TestSet; numbers begin anew in each, so patients
of the other two are called by set and number, and those of TestSet are set apart for testing.

The format file of the challenge numbers the classes as :data:`CLASS_NAMES` does; users of the release of 2023 report
2 and 3 exchanged. Numbers are used as they are, and ``class_names`` renames them.
"""

import csv
import dataclasses
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from seggym.cohorts.cases import build_cohort
from seggym.cohorts.cohort import Cohort, require_folder
from seggym.cohorts.raw_kspace_example import OVERSAMPLING, example_kspace, example_volume
from seggym.cohorts.raw_kspace_scan import RawCase, RawScan, as_complex, without_oversampling
from seggym.cohorts.scans import (
    NOMINAL_SPACING,
    UNREADABLE,
    Complain,
    Scan,
    read_scan,
    refuse,
    unreadable,
    write_nifti,
)
from seggym.errors import SeggymError
from seggym.files import write_atomic

CLASS_NAMES = ("background", "left ventricle", "right ventricle", "myocardium")
SETS = ("TrainingSet", "ValidationSet", "TestSet")
SCAN, LABEL, INFO, VARIABLE = "cine_sax.mat", "cine_sax_label.nii.gz", "cine_sax_info.csv", "kspace_full"
_COLUMNS = ("FOVx", "FOVy", "ReconMatrix_X", "ReconMatrix_Y", "SliceThickness")


def open_cmrxrecon(
    root: str | os.PathLike[str],
    *,
    frame: int = 0,
    labels: bool = True,
    class_names: Sequence[str] = CLASS_NAMES,
    readout_oversampling: float = OVERSAMPLING,
) -> Cohort:
    """Open CMRxRecon at ``root``.

    ``frame`` is the cardiac frame that is scanned and that the labels belong to, by default the first (end-diastole,
    as scans are triggered by the R wave). ``labels`` = False reads no labels, as there are none in 2024: everything is
    background then. ``readout_oversampling`` is that of kx. Spacing is that of ``cine_sax_info.csv`` beside the .mat
    file, else of the label's header.
    """
    root = Path(root)
    require_folder(root, "cmrxrecon")
    if readout_oversampling < 1:
        raise SeggymError(f"readout_oversampling={readout_oversampling} must be at least 1, which is none")
    names = tuple(class_names) if labels else CLASS_NAMES[:1]
    cases = find_cmrxrecon_cases(root, refuse, frame=frame, labels=labels, oversampling=readout_oversampling)
    infos = (case.images[0].with_name(INFO) for case in cases)
    cohort = build_cohort("cmrxrecon", root, names, cases, also=[path for path in infos if path.is_file()])
    tested = frozenset(case.patient for case in cases if _set_of(case.images[0]) == "TestSet")
    return dataclasses.replace(cohort, official_test=tested, measured=True)


def is_cmrxrecon(root: Path) -> bool:
    """Whether there is a cine scan of the challenge below ``root``."""
    return bool(_scans(root))


def find_cmrxrecon_cases(
    root: Path, complain: Complain, *, frame: int = 0, labels: bool = True, oversampling: float = OVERSAMPLING
) -> list[RawCase]:
    """The volumes below ``root``; missing labels and patients that occur twice go to ``complain``."""
    cases = []
    seen: dict[str, Path] = {}
    for path in _scans(root):
        part, number = _set_of(path), path.parent.name
        patient = number if part in (None, "TrainingSet") else f"{part}-{number}"
        if patient in seen:
            complain(path, f"is a second scan of the patient in {seen[patient]}; keep one of them")
            continue
        seen[patient] = path
        label = _label_of(path) if labels else None
        if labels and label is None:
            complain(path, f"has no label, expected SegmentROI/{number}/{LABEL}; add it, or pass labels=false")
            continue
        cases.append(
            RawCase(
                patient,
                f"frame{frame:02d}",
                "all",
                (path,),
                (label,) if label else (),
                partial(_read, path, label, frame, oversampling),
                partial(_read_label, path, label, oversampling) if label else None,
            )
        )
    return cases


def write_example(directory: str | os.PathLike[str], patients: int = 2, coils: int = 5) -> Path:
    """Write a tiny made-up cohort (two frames of two slices) in the layout of 2023; returns its folder."""
    directory = Path(directory)
    cine = Path("Cine") / "TrainingSet"
    for index in range(1, patients + 1):
        _, kspace = example_kspace(index, coils)
        volume = example_volume(index)
        # (slice, coil, kx, ky) -> (frame, slice, coil, ky, kx); the second frame is darker.
        frames = np.stack([kspace, kspace * np.float32(0.5)]).swapaxes(3, 4)
        path = directory / "MultiCoil" / cine / "FullSample" / f"P{index:03d}" / SCAN
        write_atomic(path, partial(_write_mat, frames))
        margin = (kspace.shape[2] - volume.label.shape[1]) // 2
        wide = np.pad(volume.label, ((0, 0), (margin, margin), (0, 0)))
        label = directory / "SingleCoil" / cine / "SegmentROI" / path.parent.name / LABEL
        write_nifti(label, wide.swapaxes(1, 2), volume.spacing)
    return directory


def _write_mat(frames: np.ndarray, path: Path) -> None:
    pairs = np.empty(frames.shape, [("real", "<f4"), ("imag", "<f4")])
    pairs["real"], pairs["imag"] = frames.real, frames.imag
    with h5py.File(path, "w") as file:
        file[VARIABLE] = pairs


def _scans(root: Path) -> list[Path]:
    """The fully sampled short-axis scans below ``root``; undersampled copies of them are left out."""
    return sorted(
        path
        for path in root.rglob(SCAN)
        if re.fullmatch(r"P\d+", path.parent.name)
        and not _within(path, "AccFactor")
        and not _within(path, "SingleCoil")
    )


def _within(path: Path, prefix: str) -> bool:
    return any(part.startswith(prefix) for part in path.parts)


def _set_of(path: Path) -> str | None:
    return next((part for part in path.parts if part in SETS), None)


def _label_of(path: Path) -> Path | None:
    folder = path.parent
    regions = folder.parent.parent / "SegmentROI" / folder.name
    # The labels of multi-coil scans are kept with their single-coil twins.
    twin = Path(*("SingleCoil" if part == "MultiCoil" else part for part in regions.parts))
    return next((place / LABEL for place in (twin, regions, folder) if (place / LABEL).is_file()), None)


def _read(path: Path, label: Path | None, frame: int, oversampling: float, complain: Complain) -> RawScan | None:
    try:
        with h5py.File(path, "r") as file:
            if VARIABLE not in file:
                complain(
                    path, f"has no variable {VARIABLE}, found {', '.join(sorted(file)) or 'none'}; download it again"
                )
                return None
            stored = file[VARIABLE]
            shape = stored.shape
            if len(shape) != 5:
                complain(
                    path, f"holds {VARIABLE} of shape {shape}, expected (frame, slice, coil, ky, kx); download it again"
                )
                return None
            if frame >= shape[0]:
                complain(
                    path, f"holds {shape[0]} frames, expected one of number {frame} (from 0); choose another frame"
                )
                return None
            kspace = as_complex(stored[frame])
    except UNREADABLE as error:
        complain(path, unreadable(error))
        return None
    if kspace is None:
        complain(path, f"holds {VARIABLE} without real and imag parts, expected complex samples; download it again")
        return None
    spacing = _spacing(path, label, complain)
    if spacing is None:
        return None
    kept = round(kspace.shape[-1] / oversampling)
    return RawScan(np.ascontiguousarray(without_oversampling(kspace.swapaxes(2, 3), kept)), spacing)


def _read_label(path: Path, label: Path, oversampling: float, complain: Complain) -> Scan | None:
    """Labels (slice, kx, ky) on the readout without its oversampling."""
    scan = read_scan(label, complain)
    if scan is None:
        return None
    z, y, x = scan.spacing
    values = scan.values.swapaxes(1, 2)
    kept = round(values.shape[1] / oversampling)
    first = values.shape[1] // 2 - kept // 2
    return Scan(values[:, first : first + kept], (z, x, y))


def _spacing(path: Path, label: Path | None, complain: Complain) -> tuple[float, float, float] | None:
    """(z, readout, line) in mm; None after a complaint."""
    info = path.with_name(INFO)
    if info.is_file():
        try:
            with open(info, newline="", encoding="utf-8-sig") as file:
                table = {row[0].strip(): row[1] for row in csv.reader(file) if len(row) == 2}
            width, height, columns, rows, thickness = (float(table[name]) for name in _COLUMNS)
            return thickness, width / columns, height / rows
        except (OSError, KeyError, ValueError, ZeroDivisionError, csv.Error) as error:
            complain(info, f"states no usable {', '.join(_COLUMNS)} ({error}); mend or remove it")
            return None
    # A label that cannot be read is told when it is read as a label.
    scan = None if label is None else read_scan(label, lambda path, message: None)
    return NOMINAL_SPACING if scan is None else (scan.spacing[0], scan.spacing[2], scan.spacing[1])
