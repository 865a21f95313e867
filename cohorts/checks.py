"""``seggym check-data``: every problem of a data folder at once, each with the file it is in."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seggym.cohorts import acdc, camus, chaos, cmrxrecon, davis, folder, mscmr, raw_kspace, wsl4mis
from seggym.cohorts.cases import AnyCase, Case
from seggym.cohorts.scans import affine
from seggym.errors import SeggymError

COHORTS = ("auto", "acdc", "camus", "chaos", "cmrxrecon", "davis", "folder", "mscmr", "raw")

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

    ``cohort`` is one of :data:`COHORTS`; "acdc" also does for phantoms, which have its layout, and "auto" recognises
    all but the WSL4MIS files of CHAOS, DAVIS and MS-CMRSeg, whose names are alike. ``num_classes`` is the number of
    label values, by default the cohort's and unlimited for a folder. Found are: missing pairs, masks and folders, shape
    and affine mismatches, labels outside the set or no integers, NaN and infinite values, empty volumes, colour and
    complex images, truncated and foreign files, patients that occur twice or in two roles, broken ``Info.cfg``,
    ``patients.csv`` and split lists, and raw k-space without header, coil or samples.
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
    if cohort not in COHORTS:
        raise SeggymError(f"cohort {cohort!r} cannot be checked, expected one of {', '.join(COHORTS)} (phantoms: acdc)")
    if num_classes is not None and not 2 <= num_classes <= 255:
        raise SeggymError(f"num_classes is {num_classes}, expected 2 to 255 (the background included)")
    root = Path(root)
    report = Report()
    if not root.is_dir():
        report.complain(root, "is not a folder, expected the one that holds the patients; mend the path")
        return report
    parts = _find_parts(root, cohort, num_classes, report)
    if parts is None:
        return report
    cases = [case for _, found in parts for case in found]
    if not cases and not report.problems:
        report.complain(root, f"holds no volume of cohort {cohort}, expected at least one; mend the path")
    report.patients = len({case.patient for case in cases})
    report.volumes = len(cases)
    for classes, found in parts:
        for case in found:
            case.load(classes, report.complain)
            if isinstance(case, Case):
                _compare_affines(case, report)
    _find_copies(cases, report)
    return report


def _find_parts(
    root: Path, cohort: str, num_classes: int | None, report: Report
) -> list[tuple[int, Sequence[AnyCase]]] | None:
    """Number of classes and volumes of each part of the data at ``root``; None, with a complaint, for unknown ones."""

    def is_asked(name: str) -> bool:
        return cohort in ("auto", name)

    complain = report.complain
    if is_asked("acdc") and (layout := acdc.find_layout(root)):
        return [(num_classes or len(acdc.CLASS_NAMES), acdc.find_cases(root, layout, complain))]
    if is_asked("camus") and camus.is_camus(root):
        camus.read_lists(camus.split_lists(root), complain)
        return [(num_classes or len(camus.CLASS_NAMES), camus.find_cases(root, complain))]
    # CycleMix has its images in folders of that name, and so has a folder cohort: the names of the files come first.
    if is_asked("mscmr") and (layout := mscmr.find_layout(root)) and (layout != "h5" or cohort == "mscmr"):
        classes = num_classes or len(mscmr.CLASS_NAMES)
        return [(classes, mscmr.find_cases(root, layout, complain, mscmr.SEQUENCES))]
    if is_asked("chaos") and (modalities := _chaos_modalities(root, cohort, num_classes)):
        return [
            (
                num_classes or len(chaos.CLASS_NAMES[modality]),
                chaos.find_cases(root, modality, layout, complain, chaos.SEQUENCES),
            )
            for modality, layout in modalities.items()
        ]
    if is_asked("davis") and (layout := davis.find_layout(root)) and (layout != "h5" or cohort == "davis"):
        return [(num_classes or len(davis.CLASS_NAMES), davis.find_cases(root, layout, complain))]
    if cohort == "folder" or (cohort == "auto" and folder.is_folder_cohort(root)):
        classes = num_classes or _ANY_CLASS
        return [(classes, folder.find_folder_cases(root, classes, complain))]
    if cohort == "cmrxrecon" or (cohort == "auto" and cmrxrecon.is_cmrxrecon(root)):
        return [(num_classes or len(cmrxrecon.CLASS_NAMES), cmrxrecon.find_cmrxrecon_cases(root, complain))]
    if cohort == "raw" or (cohort == "auto" and raw_kspace.is_raw_cohort(root)):
        return [(len(raw_kspace.CLASS_NAMES), raw_kspace.find_raw_cases(root, complain))]
    if cohort == "auto" and wsl4mis.holds_h5(root, davis.H5_FORM):
        complain(root, "holds .h5 files whose names do not tell the cohort; say it with --cohort mscmr, chaos or davis")
    else:
        complain(
            root,
            "holds data in no known layout, expected ACDC, CAMUS, MS-CMRSeg, CHAOS, DAVIS, CMRxRecon, images and masks "
            "or raw k-space; mend the path",
        )
    return None


def _chaos_modalities(root: Path, cohort: str, num_classes: int | None) -> dict[str, str]:
    """The modalities of CHAOS at ``root`` with their layouts; h5 files are taken for CHAOS only when told so."""
    layouts = {modality: chaos.find_layout(root, modality) for modality in chaos.MODALITIES}
    found = {modality: layout for modality, layout in layouts.items() if layout == "dicom"}
    if found or cohort == "auto":
        return found
    # The names of the files are alike in both: their folder tells, else the number of classes.
    said = [modality for modality, folder in chaos.H5_FOLDERS.items() if folder in (root.name, *_names(root))]
    for modality in said or ["ct" if num_classes == 2 else "mr"]:
        if layouts[modality]:
            found[modality] = "h5"
    return found


def _names(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.is_dir()]


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


def _find_copies(cases: Iterable[AnyCase], report: Report) -> None:
    """Byte-identical image files of two patients: one person would then train and test. One problem for each pair."""
    first: dict[str, tuple[str, Path]] = {}
    told = set()
    for case in cases:
        for path in case.images:
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
