"""CAMUS (Leclerc et al., IEEE TMI 2019): echocardiography, two apical views at end-diastole and end-systole.

The layout of the official NIfTI release (``database_nifti``)::

    patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}.nii.gz     ..._{ED,ES}_gt.nii.gz     Info_2CH.cfg, Info_4CH.cfg
    database_split/subgroup_{training,validation,testing}.txt

The folder of the patients may lie right in the root or be called ``database_nifti`` or ``training``. Labels are 1 left
ventricle, 2 myocardium, 3 left atrium; a mask without an atrium is sound. ``Info_*.cfg`` is optional; half sequences
are not read. Views are single images, (1, Y, X), with the spacing of the header.
"""

import csv
import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from seggym.cohorts.cases import Case, Source, build_cohort
from seggym.cohorts.cohort import Cohort, require_folder
from seggym.cohorts.echo_phantom import CLASS_NAMES, FRAMES, INSTANTS, VIEWS, echo_patient, ejection_group
from seggym.cohorts.scans import Complain, read_scan, refuse, write_nifti
from seggym.errors import SeggymError
from seggym.files import write_atomic

_PATIENT = re.compile(r"patient\d+")
_IMAGE = re.compile(r"(patient\d+)_(2CH|4CH)_(ED|ES)(_gt)?\.nii(?:\.gz)?")
_FOLDERS = ("database_nifti", "training")
_LISTS = {"training": "train", "validation": "val", "testing": "test"}
# RL4Seg's tables mark images that are only predicted on with "pred"; to a cohort they are not set apart.
_ROLES = {"train": "train", "pred": "train", "val": "val", "test": "test"}


def open_camus(root: str | os.PathLike[str], *, split: str | None = None, split_column: str | None = None) -> Cohort:
    """Open CAMUS at ``root``: a volume per view and instant, frames "2CH_ED", "2CH_ES", "4CH_ED" and "4CH_ES".

    Patients are set apart for validation and testing as the CSV file ``split`` says (a path, or a name below ``root``),
    else as the lists in ``database_split`` do. The CSV has a column ``id`` or ``patient``, whose entries begin with the
    patient's name, and one of train, val, test and pred in ``split_column`` (default: ``split``, else ``split_0`` as in
    RL4Seg); patients that it does not name are for training. Groups are classes of the ejection fraction where
    ``Info_*.cfg`` states it, else all are in "all". A missing partner raises :class:`SeggymError` here, a fault inside
    an image when its patient is read.
    """
    root = Path(root)
    require_folder(root, "camus")
    if not is_camus(root):
        raise SeggymError(
            f"{root} holds no CAMUS data, expected patientXXXX/patientXXXX_2CH_ED.nii.gz and the like; point data_root "
            "at the folder that holds the patients"
        )
    cases = find_cases(root, refuse)
    also = [path for folder in patient_folders(root) for path in _infos(folder)]
    if split is None:
        lists = split_lists(root)
        roles = read_lists(lists, refuse)
    else:
        lists = [root / split]
        roles = _read_table(root / split, split_column)
    cohort = build_cohort("camus", root, CLASS_NAMES, cases, also=also + lists)
    val, test = (frozenset(p for p in cohort.groups if roles.get(p) == role) for role in ("val", "test"))
    phases = {f"{case.patient}_{case.frame}": case.phase for case in cases if case.phase}
    return dataclasses.replace(cohort, official_val=val, official_test=test, phases=phases)


def is_camus(root: Path) -> bool:
    """Whether there are files with names of CAMUS in the folders of patients below ``root``."""
    return any(_IMAGE.fullmatch(path.name) for folder in patient_folders(root) for path in folder.glob("*.nii*"))


def patient_folders(root: Path) -> list[Path]:
    """The folders ``patientXXXX`` in ``root`` and in its ``database_nifti`` and ``training``."""
    parents = [root, *(root / name for name in _FOLDERS)]
    return [
        folder
        for parent in parents
        if parent.is_dir()
        for folder in sorted(parent.iterdir())
        if folder.is_dir() and _PATIENT.fullmatch(folder.name)
    ]


def find_cases(root: Path, complain: Complain) -> list[Case]:
    """The volumes below ``root``; missing partners, foreign names and patients that occur twice go to ``complain``."""
    cases: list[Case] = []
    seen: dict[str, Path] = {}
    for folder in patient_folders(root):
        if folder.name in seen:
            complain(folder, f"is a second folder of the patient in {seen[folder.name]}; keep one of them")
            continue
        seen[folder.name] = folder
        cases += _find_patient(folder, complain)
    return cases


def split_lists(root: Path) -> list[Path]:
    """The files of ``database_split`` that say which patients validate and test."""
    folders = (root / "database_split", root.parent / "database_split")
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        return []
    return [path for name in _LISTS if (path := folder / f"subgroup_{name}.txt").is_file()]


def read_lists(lists: list[Path], complain: Complain) -> dict[str, str]:
    """Patient -> train, val or test, from the files of :func:`split_lists`."""
    roles: dict[str, str] = {}
    for path in lists:
        role = _LISTS[path.stem.removeprefix("subgroup_")]
        try:
            names = path.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            complain(path, f"cannot be read ({error}), expected one patient a line; copy it again")
            continue
        for name in names:
            if roles.setdefault(name, role) != role:
                complain(path, f"names {name}, which is for {roles[name]} already, expected one role; mend the lists")
    return roles


def write_example(directory: str | os.PathLike[str], patients: int = 2, size: int = 96) -> Path:
    """Write a tiny made-up cohort of echo phantoms in the official layout; returns its folder.

    Of four patients the third is for validation and the fourth for testing.
    """
    directory = Path(directory)
    lists: dict[str, list[str]] = {name: [] for name in _LISTS}
    for index in range(1, patients + 1):
        patient = f"patient{index:04d}"
        folder = directory / "database_nifti" / patient
        for volume in echo_patient(patient, index, size):
            write_nifti(folder / f"{volume.name}.nii.gz", volume.image.astype(np.uint8), volume.spacing)
            write_nifti(folder / f"{volume.name}_gt.nii.gz", volume.label, volume.spacing)
        for view in VIEWS:
            content = f"ED: 1\nES: 18\nNbFrame: 18\nSex: F\nAge: 60\nImageQuality: Good\nEF: {40 + 10 * (index % 3)}\n"
            write_atomic(folder / f"Info_{view}.cfg", content.encode())
        lists[{3: "validation", 0: "testing"}.get(index % 4, "training")].append(patient)
    for name, members in lists.items():
        path = directory / "database_split" / f"subgroup_{name}.txt"
        write_atomic(path, "".join(f"{member}\n" for member in members).encode())
    return directory


def _find_patient(folder: Path, complain: Complain) -> list[Case]:
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for path in sorted(folder.glob("*.nii*")):
        match = _IMAGE.fullmatch(path.name)
        if match is None:
            continue  # half sequences and the like
        if match[1] != folder.name:
            complain(path, f"is named after {match[1]}, but lies in the folder of {folder.name}; move or rename it")
            continue
        files = labels if match[4] else images
        first = files.setdefault(f"{match[2]}_{match[3]}", path)
        if first != path:
            complain(path, f"is a second file of what {first.name} holds; keep one of them")
    group = _group(folder, complain)
    cases = []
    for frame in FRAMES:
        if frame in images and frame in labels:
            sources = Source((images[frame],), read_scan), Source((labels[frame],), read_scan), None
            cases.append(Case(folder.name, frame, group, *sources, phase=frame.partition("_")[2]))
        elif frame in images:
            complain(images[frame], f"has no mask, expected {folder.name}_{frame}_gt.nii.gz beside it; add it")
        elif frame in labels:
            complain(labels[frame], f"has no image, expected {folder.name}_{frame}.nii.gz beside it; add it")
    if not images and not labels:
        expected = f"{folder.name}_2CH_ED.nii.gz"
        complain(
            folder, f"holds no view ({', '.join(VIEWS)} at {' or '.join(INSTANTS)}), expected {expected}; restore it"
        )
    return cases


def _infos(folder: Path) -> list[Path]:
    return [path for view in VIEWS if (path := folder / f"Info_{view}.cfg").is_file()]


def _group(folder: Path, complain: Complain) -> str:
    """The class of the ejection fraction that ``Info_*.cfg`` states; "all" where there is none."""
    for path in _infos(folder):
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            complain(path, f"cannot be read ({error}); restore it from the download or delete it")
            continue
        stated = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == "EF"]
        if stated:
            try:
                return ejection_group(float(stated[0]))
            except ValueError:
                complain(path, f"states EF: {stated[0]}, expected the ejection fraction in percent; mend it")
    return "all"


def _read_table(path: Path, column: str | None) -> dict[str, str]:
    """Patient -> role of a CSV file of patients or images; images of one patient have one role."""
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SeggymError(f"split file {path} cannot be read ({error}); mend split= or copy it again") from None
    columns = list(rows[0]) if rows else []
    names = next((name for name in ("patient", "id") if name in columns), None)
    chosen = next((name for name in ((column,) if column else ("split", "split_0")) if name in columns), None)
    if names is None or chosen is None:
        raise SeggymError(
            f"split file {path} has the columns {', '.join(columns) or 'none'}, expected patient or id, and "
            f"{column or 'split or split_0'}; mend the file or set split_column="
        )
    roles: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        match = _PATIENT.match(row[names] or "")
        role = _ROLES.get((row[chosen] or "").strip())
        if match is None or role is None:
            raise SeggymError(
                f"split file {path}, line {number}: {names}={row[names]!r}, {chosen}={row[chosen]!r}, expected a name "
                f"that begins with patientXXXX and one of {', '.join(_ROLES)}; mend the line"
            )
        if roles.setdefault(match[0], role) != role:
            raise SeggymError(
                f"split file {path}, line {number}: {match[0]} is for {role} here and for {roles[match[0]]} above, "
                "expected one role for both views and instants of a patient; mend the line"
            )
    return roles
