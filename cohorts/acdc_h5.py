"""ACDC as WSL4MIS preprocesses it: HDF5 files with the datasets ``image``, ``label`` and, where drawn, ``scribble``.

``ACDC_training_volumes/patientXXX_frameYY.h5`` holds a volume (Z, Y, X), ``ACDC_training_slices/
patientXXX_frameYY_slice_N.h5`` one slice (Y, X). Whole volumes are preferred; slices are stacked by their number. The
format states neither spacing nor pathology: spacing is nominal, (1, 1, 1), and all patients are in group "all".
"""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import h5py

from seggym.cohorts.cases import Case, Source
from seggym.cohorts.cohort import Volume
from seggym.cohorts.scans import Complain, read_h5
from seggym.files import write_atomic

VOLUMES, SLICES = "ACDC_training_volumes", "ACDC_training_slices"
_NAME = re.compile(r"(patient\d+)_(frame\d+)(?:_slice_(\d+))?\.h5")


def h5_folders(root: Path) -> list[Path]:
    """Where the files of this layout lie: the folders below ``root`` that WSL4MIS names, or ``root`` itself."""
    candidates = (root / VOLUMES, root / SLICES, root)
    return [folder for folder in candidates if folder.is_dir() and any(map(_match, folder.iterdir()))]


def find_h5_cases(root: Path, complain: Complain) -> list[Case]:
    """The volumes below ``root``: from the first of :func:`h5_folders` that holds whole volumes, else from slices."""
    by_frame: dict[tuple[str, str], dict[int, Path]] = {}
    for folder in h5_folders(root)[:1]:
        matches = [match for path in folder.iterdir() if (match := _match(path))]
        whole = any(match[3] is None for match in matches)
        for match in matches:
            if (match[3] is None) == whole:
                by_frame.setdefault((match[1], match[2]), {})[int(match[3] or 0)] = folder / match[0]
    return [
        case for (patient, frame), own in sorted(by_frame.items()) if (case := _case(patient, frame, own, complain))
    ]


def write_h5_volumes(root: Path, volumes: Iterable[Volume]) -> None:
    """Write volumes as WSL4MIS stores them, each as one file and as one file per slice."""
    for volume in volumes:
        _write(root / VOLUMES / f"{volume.name}.h5", volume, slice(None))
        for position in range(len(volume.image)):
            _write(root / SLICES / f"{volume.name}_slice_{position}.h5", volume, position)


def _write(path: Path, volume: Volume, part: slice | int) -> None:
    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            file["image"] = volume.image[part]
            file["label"] = volume.label[part]
            if volume.scribble is not None:
                file["scribble"] = volume.scribble[part]

    write_atomic(path, write)


def _match(path: Path) -> re.Match[str] | None:
    return _NAME.fullmatch(path.name)


def _case(patient: str, frame: str, numbered: dict[int, Path], complain: Complain) -> Case | None:
    numbers = sorted(numbered)
    files = tuple(numbered[number] for number in numbers)
    absent = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if absent:
        name = f"{patient}_{frame}_slice_{absent[0]}.h5"
        complain(files[0].parent / name, "is missing, but slices with higher numbers exist; restore it")
        return None
    try:
        with h5py.File(files[0], "r") as file:
            has_scribble = "scribble" in file
    except OSError as error:
        complain(files[0], f"cannot be read, it is truncated or no HDF5 file ({error}); copy it again")
        return None
    image, label, scribble = (
        Source(files, partial(read_h5, dataset=dataset)) for dataset in ("image", "label", "scribble")
    )
    return Case(patient, frame, "all", image, label, scribble if has_scribble else None)
