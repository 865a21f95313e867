"""The ACDC cohort (Bernard et al., IEEE TMI 2018): short-axis cine MR, labelled at end-diastole and end-systole.

Three layouts are read:

- ``nifti``, the official download: ``patientXXX/{Info.cfg, patientXXX_frameYY.nii.gz, patientXXX_frameYY_gt.nii.gz}``,
  optionally ``..._scribble.nii.gz`` (Valvano et al., IEEE TMI 2021), also below ``training/`` and ``testing/``;
- ``png``: numbered slices, see :mod:`seggym.cohorts.acdc_png`;
- ``h5``: the preprocessing of WSL4MIS, see :mod:`seggym.cohorts.wsl4mis`.
"""

import dataclasses
import os
import re
from pathlib import Path

from seggym.cohorts import acdc_png, wsl4mis
from seggym.cohorts.cases import Case, Source, build_cohort
from seggym.cohorts.cohort import Cohort, require_folder
from seggym.cohorts.examples import example_patient
from seggym.cohorts.scans import Complain, read_scan, refuse, write_nifti
from seggym.errors import SeggymError
from seggym.files import write_atomic

CLASS_NAMES = ("background", "right ventricle", "myocardium", "left ventricle")
SCRIBBLE_IGNORE = 4
LAYOUTS = ("nifti", "png", "h5")


def _parse_h5(stem: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"(patient\d+)_(frame\d+)", stem)
    return (match[1], match[2]) if match else None


H5_FORM = wsl4mis.H5Form(_parse_h5)


def open_acdc(root: str | os.PathLike[str], *, layout: str = "auto") -> Cohort:
    """Open ACDC at ``root``; ``layout`` is "nifti", "png", "h5" or "auto" (the first of them that is found).

    Patients are grouped by the pathology that ``Info.cfg`` (NIfTI) or ``volume.json`` (PNG) states; without it all are
    in group "all". Only ``Info.cfg`` says which volume is ED and which ES. Spacing is that of the NIfTI header or of
    ``volume.json``, else nominal (1, 1, 1). A missing pair or a broken ``Info.cfg`` raises :class:`SeggymError` here, a
    fault inside an image when its patient is read.
    """
    root = Path(root)
    require_folder(root, "acdc")
    if layout not in ("auto", *LAYOUTS):
        raise SeggymError(f"ACDC layout {layout!r} is unknown, expected auto, {', '.join(LAYOUTS)}")
    found = find_layout(root) if layout == "auto" else layout
    if found is None:
        raise SeggymError(
            f"{root} holds no ACDC data, expected patientXXX/Info.cfg with NIfTI files, patientXXX/images/*.png, or "
            "ACDC_training_volumes/*.h5; point data_root at the folder that holds the patients"
        )
    if found == "h5":
        return wsl4mis.open_h5("acdc", root, CLASS_NAMES, H5_FORM)
    cases = find_cases(root, found, refuse)
    also = [path for folder in {case.image.files[0].parent for case in cases} for path in _side_files(folder)]
    cohort = build_cohort("acdc", root, CLASS_NAMES, cases, also=also, scribble_ignore=SCRIBBLE_IGNORE)
    official_test = frozenset(folder.name for folder in patient_folders(root) if folder.parent.name == "testing")
    phases = {f"{case.patient}_{case.frame}": case.phase for case in cases if case.phase}
    return dataclasses.replace(cohort, official_test=official_test & set(cohort.groups), phases=phases)


def find_layout(root: Path) -> str | None:
    """The ACDC layout at ``root``, or None."""
    folders = patient_folders(root)
    if any((folder / "Info.cfg").exists() or any(folder.glob("*_frame*.nii.gz")) for folder in folders):
        return "nifti"
    # With masks/ instead of labels/ it is the layout of `seggym.cohorts.folder`.
    if any((folder / "images").is_dir() and not (folder / "masks").is_dir() for folder in folders):
        return "png"
    return "h5" if wsl4mis.holds_h5(root, H5_FORM) else None


def find_cases(root: Path, layout: str, complain: Complain) -> list[Case]:
    """The volumes below ``root``; missing pairs, a patient that occurs twice and the like go to ``complain``."""
    if layout == "h5":
        return wsl4mis.find_h5_cases(root, H5_FORM, complain)
    cases: list[Case] = []
    seen: dict[str, Path] = {}
    for folder in patient_folders(root):
        if folder.name in seen:
            complain(folder, f"is a second folder of the patient in {seen[folder.name]}; keep one of them")
            continue
        seen[folder.name] = folder
        cases += acdc_png.find_png_cases(folder, complain) if layout == "png" else _find_nifti_cases(folder, complain)
    return cases


def patient_folders(root: Path) -> list[Path]:
    """The folders ``patientXXX`` in ``root``, ``root/training`` and ``root/testing``, also below ``root/database``."""
    parents = [root, *(root / part for part in ("training", "testing", "database/training", "database/testing"))]
    return [
        folder
        for parent in parents
        if parent.is_dir()
        for folder in sorted(parent.iterdir())
        if folder.is_dir() and re.fullmatch(r"patient\d+", folder.name)
    ]


def write_example(directory: str | os.PathLike[str], layout: str = "nifti", patients: int = 2) -> Path:
    """Write a tiny made-up cohort (ED and ES, three slices each) in one of the three layouts; returns its folder."""
    directory = Path(directory)
    for index in range(1, patients + 1):
        group, volumes = example_patient(index)
        folder = directory / f"patient{index:03d}"
        if layout == "png":
            acdc_png.write_png_patient(folder, group, volumes)
        elif layout == "h5":
            for volume in volumes:
                wsl4mis.write_h5_volume(directory / "ACDC_training_volumes" / f"{volume.name}.h5", volume)
                wsl4mis.write_h5_slices(directory / "ACDC_training_slices", volume.name, volume)
        elif layout == "nifti":
            write_atomic(folder / "Info.cfg", f"ED: 1\nES: 9\nGroup: {group}\nNbFrame: 20\n".encode())
            for volume in volumes:
                write_nifti(folder / f"{volume.name}.nii.gz", volume.image.astype("int16"), volume.spacing)
                write_nifti(folder / f"{volume.name}_gt.nii.gz", volume.label, volume.spacing)
                assert volume.scribble is not None, "the made-up hearts have scribbles"
                write_nifti(folder / f"{volume.name}_scribble.nii.gz", volume.scribble, volume.spacing)
        else:
            raise SeggymError(f"ACDC layout {layout!r} is unknown, expected one of {', '.join(LAYOUTS)}")
    return directory


def _find_nifti_cases(folder: Path, complain: Complain) -> list[Case]:
    info = _read_info(folder / "Info.cfg", complain)
    if info is None:
        return []
    cases = []
    for key in ("ED", "ES"):
        frame = f"frame{int(info[key]):02d}"
        image, label, scribble = (
            folder / f"{folder.name}_{frame}{suffix}.nii.gz" for suffix in ("", "_gt", "_scribble")
        )
        missing = [path for path in (image, label) if not path.is_file()]
        for path in missing:
            complain(path, f"is missing, but Info.cfg names {key} as frame {info[key]}; restore it or mend Info.cfg")
        if not missing:
            drawn = Source((scribble,), read_scan) if scribble.is_file() else None
            sources = Source((image,), read_scan), Source((label,), read_scan), drawn
            cases.append(Case(folder.name, frame, info["Group"], *sources, phase=key))
    return cases


def _read_info(path: Path, complain: Complain) -> dict[str, str] | None:
    """The entries of an ``Info.cfg``, with ED and ES as frame numbers and Group; None after a complaint."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        complain(path, "is missing, expected the lines ED, ES and Group; restore it from the download")
        return None
    except (OSError, UnicodeDecodeError) as error:
        complain(path, f"cannot be read ({error}); restore it from the download")
        return None
    info = {key.strip(): value.strip() for key, found, value in (line.partition(":") for line in lines) if found}
    missing = [key for key in ("ED", "ES", "Group") if not info.get(key)]
    if missing:
        complain(path, f"states no {', '.join(missing)}, expected the lines ED, ES and Group; add what is missing")
        return None
    wrong = [key for key in ("ED", "ES") if not info[key].isdecimal()]
    if wrong:
        complain(path, f"states {wrong[0]}: {info[wrong[0]]}, expected a frame number; mend it")
        return None
    if int(info["ED"]) == int(info["ES"]):
        complain(path, f"states frame {info['ED']} for both ED and ES, expected two frames; mend it")
        return None
    return info


def _side_files(folder: Path) -> list[Path]:
    """The files that describe the volumes whose images lie in ``folder``."""
    candidates = (folder / "Info.cfg", folder.parent / acdc_png.SIDECAR)
    return [path for path in candidates if path.is_file()]
