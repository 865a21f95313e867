"""``seggym check-data``: every problem of a data folder at once, each with the file it is in."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seggym.cohorts import acdc, folder
from seggym.cohorts.cases import Case, load_case
from seggym.cohorts.scans import affine
from seggym.errors import SeggymError

# Without a stated class count a label of a folder cohort may be any value of a byte.
_ANY_CLASS = 256
# Entries of an affine are mm and float32 in the header.
_AFFINE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file or folder; ``message`` continues a sentence that begins with ``path``."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path} {self.message}"


@dataclass
class Report:
    """Outcome of :func:`inspect_data`: what was found, sound or not, and every problem in it."""

    patients: int = 0
    volumes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def complain(self, path: Path, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(path, message))


def check_data(root: str | os.PathLike[str], cohort: str = "auto", num_classes: int | None = None) -> list[Problem]:
    """All problems of the data at ``root``; an empty list means that every volume can be used.

    ``cohort`` is "acdc" (also phantoms, which have its layout), "folder" or "auto". ``num_classes`` is the number of
    label values, by default 4 for ACDC and unlimited for a folder. Found are: missing pairs, shape and affine
    mismatches, labels outside the set or no integers, NaN and infinite values, empty volumes, colour and complex
    images, truncated and foreign files, patients that occur twice and broken ``Info.cfg`` and ``patients.csv``.
    """
    return inspect_data(root, cohort, num_classes).problems


def check_command(root: str, cohort: str = "auto", num_classes: int | None = None) -> int:
    """Print one line for each problem and a summary; returns the exit code, 0 or (with problems) 2."""
    report = inspect_data(root, cohort, num_classes)
    for problem in report.problems:
        print(problem)
    count = len(report.problems)
    found = "no problem" if count == 0 else "1 problem" if count == 1 else f"{count} problems"
    print(f"{_plural(report.patients, 'patient')}, {_plural(report.volumes, 'volume')}, {found} found")
    return 2 if count else 0


def inspect_data(root: str | os.PathLike[str], cohort: str = "auto", num_classes: int | None = None) -> Report:
    """What :func:`check_data` finds, with the number of patients and volumes."""
    if cohort not in ("auto", "acdc", "folder"):
        raise SeggymError(f"cohort {cohort!r} cannot be checked, expected auto, acdc (also for phantoms) or folder")
    if num_classes is not None and not 2 <= num_classes <= 255:
        raise SeggymError(f"num_classes is {num_classes}, expected 2 to 255 (the background included)")
    root = Path(root)
    report = Report()
    if not root.is_dir():
        report.complain(root, "is not a folder, expected the one that holds the patients; mend the path")
        return report
    layout = None if cohort == "folder" else acdc.find_layout(root)
    if layout is not None:
        classes = num_classes or len(acdc.CLASS_NAMES)
        cases = acdc.find_cases(root, layout, report.complain)
    elif cohort == "folder" or (cohort == "auto" and folder.is_folder_cohort(root)):
        classes = num_classes or _ANY_CLASS
        cases = folder.find_folder_cases(root, classes, report.complain)
    else:
        report.complain(root, "holds data in no known layout, expected one of ACDC or images and masks; mend the path")
        return report
    report.patients = len({case.patient for case in cases})
    report.volumes = len(cases)
    for case in cases:
        load_case(case, classes, report.complain)
        _compare_affines(case, report)
    _find_copies(cases, report)
    return report


def _compare_affines(case: Case, report: Report) -> None:
    """A reader trusts the voxel grid; but other positions in the label's header hint at a flip or a wrong file."""
    reference = affine(case.image.files[0])
    for source in (case.label, case.scribble):
        other = affine(source.files[0]) if source is not None else None
        if source is not None and reference is not None and other is not None:
            difference = float(np.abs(reference - other).max())
            if not difference <= _AFFINE_TOLERANCE:
                report.complain(
                    source.files[0],
                    f"has another affine than {case.image.files[0].name} (entries differ by up to {difference:g}), "
                    "expected the same position and spacing; check that it belongs to that image and is not flipped",
                )


def _find_copies(cases: Iterable[Case], report: Report) -> None:
    """Byte-identical image files of two patients: one person would then train and test. One problem for each pair."""
    first: dict[str, tuple[str, Path]] = {}
    told = set()
    for case in cases:
        for path in case.image.files:
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError:
                continue  # already told when it was read
            patient, original = first.setdefault(digest, (case.patient, path))
            if patient != case.patient and (patient, case.patient) not in told:
                told.add((patient, case.patient))
                report.complain(
                    path, f"is byte for byte {original}, expected different patients; remove one of the two patients"
                )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
