"""A folder of raw k-space files as a cohort: fastMRI's HDF5 and ISMRMRD, mixed and in any subfolder.

Raw k-space has no labels: everything is background, and only the reconstruction can be rewarded.
See :mod:`seggym.cohorts.raw_kspace_fastmri` and :mod:`seggym.cohorts.ismrmrd_files` for what is read of each file.
"""

import dataclasses
import os
from pathlib import Path

import h5py

from seggym.cohorts import ismrmrd_files, raw_kspace_fastmri
from seggym.cohorts.cases import build_cohort
from seggym.cohorts.cohort import Cohort, require_folder
from seggym.cohorts.raw_kspace_example import example_header, example_kspace
from seggym.cohorts.raw_kspace_scan import RawCase
from seggym.cohorts.scans import UNREADABLE, Complain, natural_key, refuse, unreadable
from seggym.errors import SeggymError

CLASS_NAMES = ("background",)
SUFFIXES = (".h5", ".hdf5", ".mrd")
LAYOUTS = ("fastmri", "ismrmrd")


def open_raw(root: str | os.PathLike[str]) -> Cohort:
    """Open the folder ``root`` of raw k-space files.

    Patients are grouped by fastMRI's attribute ``acquisition``, all others are in group "all". A file that is neither
    raises :class:`SeggymError` here, a fault inside one when its patient is read.
    """
    root = Path(root)
    require_folder(root, "raw")
    cohort = build_cohort("raw", root, CLASS_NAMES, find_raw_cases(root, refuse))
    return dataclasses.replace(cohort, measured=True)


def is_raw_cohort(root: Path) -> bool:
    """Whether a file below ``root`` is raw k-space in one of the two layouts."""
    return any(_is_raw(path) for path in _files(root))


def find_raw_cases(root: Path, complain: Complain) -> list[RawCase]:
    """The volumes below ``root``; files of another kind and the like go to ``complain``."""
    cases: list[RawCase] = []
    seen: dict[str, Path] = {}
    for path in _files(root):
        if path.stem in seen:
            complain(
                path, f"has the same name as {seen[path.stem]}, expected one file for each scan; rename one of them"
            )
            continue
        seen[path.stem] = path
        try:
            with h5py.File(path, "r") as file:
                if "kspace" in file:
                    cases.append(raw_kspace_fastmri.find_case(path, file))
                elif ismrmrd_files.dataset_name(file) is not None:
                    cases += ismrmrd_files.find_cases(path, file, complain)
                else:
                    found = ", ".join(sorted(file)) or "nothing"
                    complain(
                        path,
                        f"has neither kspace (fastMRI) nor a group of xml and data (ISMRMRD), found {found}; remove it",
                    )
        except UNREADABLE as error:
            complain(path, unreadable(error))
    return cases


def write_example(
    directory: str | os.PathLike[str], layout: str = "fastmri", patients: int = 2, coils: int = 5
) -> Path:
    """Write a tiny made-up cohort (a scan of two slices for each patient), "fastmri" or "ismrmrd"; returns its folder.

    The first line of k-space is missing, as a scanner leaves it out; ISMRMRD scans miss as many as 20 on that side.
    """
    directory = Path(directory)
    if layout not in LAYOUTS:
        raise SeggymError(f"raw layout {layout!r} is unknown, expected one of {', '.join(LAYOUTS)}")
    for index in range(1, patients + 1):
        patient, kspace = example_kspace(index, coils)
        lines = kspace.shape[-1]
        skipped = 1 if layout == "fastmri" else 20
        kspace[..., :skipped] = 0
        # Numbers begin with the first measured line.
        header = example_header(kspace.shape, patient, last=lines - 1 - skipped, centre=lines // 2 - skipped)
        path = directory / f"scan{index:03d}.h5"
        if layout == "fastmri":
            raw_kspace_fastmri.write_scan(path, kspace, header, patient, acquisition=("T1", "T2")[index % 2])
        else:
            ismrmrd_files.write_scan(
                path, kspace, header, {column: column - skipped for column in range(skipped, lines)}
            )
    return directory


def _files(root: Path) -> list[Path]:
    return sorted(
        (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")),
        key=natural_key,
    )


def _is_raw(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return "kspace" in file or ismrmrd_files.dataset_name(file) is not None
    except UNREADABLE:
        return False
