"""MS-CMRSeg 2019 (Zhuang et al., Medical Image Analysis 2022): three cardiac MR sequences of 45 patients, short axis.

Files are found anywhere below the root by their names, which are those of the challenge and of the scribble release:

- challenge: ``patientN_{C0,T2,LGE}.nii.gz`` (C0 is bSSFP; in ``c0t2lge/``) with ``patientN_{C0,T2,LGE}_manual.nii.gz``
  (in ``c0gt/``, ``t2gt/``, ``lgegt/``), whose labels are 200 myocardium, 500 left and 600 right ventricle;
- CycleMix (Zhang and Zhuang, CVPR 2022): ``subjectN_DE.nii.gz`` (LGE) with ``subjectN_DE_manual.nii.gz`` and
  ``subjectN_DE_scribble.nii.gz``, whose labels are 1 right ventricle, 2 myocardium, 3 left ventricle and, in scribbles,
  4 for unlabelled; in ``MSCMR_dataset/{train,val,TestSet}/{images,labels}`` and ``MSCMR_scribbles``. Subject N is taken
  to be patient N. Where val and TestSet exist, they set their patients apart.

The same scan may lie there twice. Classes are numbered as in ACDC. ``h5`` is the form of :mod:`seggym.cohorts.wsl4mis`
with ``patient_N.h5`` and ``patient_N_slice_Z.h5``.
"""

import dataclasses
import filecmp
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seggym.cohorts import wsl4mis
from seggym.cohorts.cases import Case, Source, build_cohort
from seggym.cohorts.cohort import Cohort, Volume, require_folder
from seggym.cohorts.examples import example_patient
from seggym.cohorts.scans import Complain, Reader, read_scan, refuse, renumbered, write_nifti
from seggym.errors import SeggymError

CLASS_NAMES = ("background", "right ventricle", "myocardium", "left ventricle")
CODES = {0: 0, 1: 1, 2: 2, 3: 3, 200: 2, 500: 3, 600: 1}
SCRIBBLE_IGNORE = len(CLASS_NAMES)
SEQUENCES = ("LGE", "C0", "T2")
LAYOUTS = ("nifti", "h5")
_NAME = re.compile(r"(?:patient|subject)(\d+)_(C0|T2|LGE|DE)(_manual|_scribble)?\.nii(?:\.gz)?")
_READ: dict[str | None, Reader] = {"_manual": renumbered(read_scan, CODES)}
_CHALLENGE_CODES = (0, 600, 200, 500)  # of CLASS_NAMES


def open_mscmr(
    root: str | os.PathLike[str],
    *,
    layout: str = "auto",
    sequences: Sequence[str] = SEQUENCES[:1],
    unmasked: str = "refuse",
) -> Cohort:
    """Open MS-CMRSeg at ``root``; ``layout`` is "nifti", "h5" or "auto" (the first of them that is found).

    ``sequences`` are the frames to read, of "LGE", "C0" and "T2" (h5 holds LGE alone). The challenge kept masks of LGE
    back and CycleMix trains on scribbles alone: images without a mask are an error, or with ``unmasked="skip"`` they
    are left out. Scribbles are read where there are any. A fault inside an image is raised when its patient is read.
    """
    root = Path(root)
    require_folder(root, "mscmr")
    if layout not in ("auto", *LAYOUTS):
        raise SeggymError(f"MS-CMRSeg layout {layout!r} is unknown, expected auto, {', '.join(LAYOUTS)}")
    if unmasked not in wsl4mis.UNMASKED:
        raise SeggymError(f"unmasked={unmasked!r} is unknown, expected {' or '.join(wsl4mis.UNMASKED)}")
    wrong = sorted(set(sequences) - set(SEQUENCES))
    if wrong or not sequences:
        raise SeggymError(f"sequences={list(sequences)} are not known, expected some of {', '.join(SEQUENCES)}")
    found = find_layout(root) if layout == "auto" else layout
    if found is None:
        raise SeggymError(
            f"{root} holds no MS-CMRSeg data, expected patientN_LGE.nii.gz or subjectN_DE.nii.gz with masks, or "
            "training_slices/patient_N_slice_Z.h5; point data_root at the folder that holds them"
        )
    if found == "h5":
        return wsl4mis.open_h5("mscmr", root, CLASS_NAMES, H5_FORM, unmasked)
    cases = find_cases(root, found, refuse, sequences, unmasked)
    cohort = build_cohort("mscmr", root, CLASS_NAMES, cases, scribble_ignore=SCRIBBLE_IGNORE)
    val, test = (
        frozenset(case.patient for case in cases if _is_in(case.image.files[0], root, part))
        for part in ("val", "TestSet")
    )
    return dataclasses.replace(cohort, official_val=val, official_test=test)


def find_layout(root: Path) -> str | None:
    """The MS-CMRSeg layout at ``root``, or None."""
    if any(_NAME.fullmatch(path.name) for path in root.rglob("*.nii*")):
        return "nifti"
    return "h5" if wsl4mis.holds_h5(root, H5_FORM) else None


def find_cases(
    root: Path, layout: str, complain: Complain, sequences: Sequence[str] = SEQUENCES[:1], unmasked: str = "refuse"
) -> list[Case]:
    """The volumes below ``root``; missing partners and differing copies go to ``complain``."""
    if layout == "h5":
        return wsl4mis.find_h5_cases(root, H5_FORM, complain, unmasked)
    files: dict[tuple[int, str], dict[str, Path]] = {}
    for path in sorted(root.rglob("*.nii*")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        sequence = "LGE" if match[2] == "DE" else match[2]
        if sequence in sequences:
            own = files.setdefault((int(match[1]), sequence), {})
            first = own.setdefault((match[3] or "_image")[1:], path)
            if first != path and not _is_same(first, path, _READ.get(match[3], read_scan)):
                complain(path, f"differs from {first}, which is the same scan by its name; keep one of them")
    cases = []
    for (number, sequence), own in sorted(files.items()):
        if "image" not in own:
            complain(next(iter(own.values())), f"has no image of patient {number} ({sequence}) beside it; add it")
        elif "manual" in own:
            scribble = Source((own["scribble"],), read_scan) if "scribble" in own else None
            label = Source((own["manual"],), _READ["_manual"])
            cases.append(Case(_patient(number), sequence, "all", Source((own["image"],), read_scan), label, scribble))
        elif unmasked == "refuse":
            complain(
                own["image"],
                f"has no mask, expected patient{number}_{sequence}_manual.nii.gz; add it, or leave images without one "
                "out with unmasked=skip",
            )
    return cases


def write_example(directory: str | os.PathLike[str], layout: str = "nifti", patients: int = 2) -> Path:
    """Write a tiny made-up cohort, "nifti" (challenge, with scribbles of LGE), "cyclemix" or "h5"; returns its folder.

    In the last two, of four patients the third is for validation and the fourth for testing. CycleMix's training
    patients have scribbles alone, those of the h5 form masks as well.
    """
    directory = Path(directory)
    if layout not in ("nifti", "cyclemix", "h5"):
        raise SeggymError(f"MS-CMRSeg layout {layout!r} is unknown, expected nifti, cyclemix or h5")
    lists: dict[str, list[Path]] = {role: [] for role in wsl4mis.ROLES}
    for index in range(1, patients + 1):
        role = {3: "val", 0: "test"}.get(index % 4, "train")
        for volume in example_patient(index, SEQUENCES if layout == "nifti" else SEQUENCES[:1])[1]:
            if layout == "nifti":
                _write_challenge(directory, index, volume)
            elif layout == "cyclemix":
                _write_cyclemix(directory / "MSCMR_dataset", index, role, volume)
            elif role == "train":
                lists[role] += wsl4mis.write_h5_slices(directory / "training_slices", f"patient_{index}", volume)
            else:
                path = directory / ("val_volumes" if role == "val" else "testing_volumes") / f"patient_{index}.h5"
                wsl4mis.write_h5_volume(path, volume)
                lists[role].append(path)
    if layout == "h5":
        wsl4mis.write_lists(directory, lists)
    return directory


def _write_challenge(directory: Path, index: int, volume: Volume) -> None:
    name, spacing = f"patient{index}_{volume.frame}", volume.spacing
    coded = sum(code * (volume.label == label) for label, code in enumerate(_CHALLENGE_CODES))
    write_nifti(directory / "c0t2lge" / f"{name}.nii.gz", volume.image.astype("int16"), spacing)
    write_nifti(directory / f"{volume.frame.lower()}gt" / f"{name}_manual.nii.gz", coded.astype("int16"), spacing)
    if volume.frame == "LGE" and volume.scribble is not None:
        scribble = directory / "MSCMR_scribbles" / f"subject{index}_DE_scribble.nii.gz"
        write_nifti(scribble, volume.scribble, spacing)


def _write_cyclemix(directory: Path, index: int, role: str, volume: Volume) -> None:
    folder = directory / {"test": "TestSet"}.get(role, role)
    write_nifti(folder / "images" / f"subject{index}_DE.nii.gz", volume.image.astype("int16"), volume.spacing)
    drawn = volume.scribble if role == "train" else volume.label
    assert drawn is not None, "the made-up hearts have scribbles"
    kind = "scribble" if role == "train" else "manual"
    write_nifti(folder / "labels" / f"subject{index}_DE_{kind}.nii.gz", drawn, volume.spacing)


def _is_same(one: Path, other: Path, read: Reader) -> bool:
    """Whether two files hold the same voxels; masks of the two releases have other numbers for the same classes."""
    if filecmp.cmp(one, other, shallow=False):
        return True
    first, second = (read(path, lambda path, message: None) for path in (one, other))
    return first is not None and second is not None and np.array_equal(first.values, second.values)


def _patient(number: int) -> str:
    return f"patient{number:02d}"


def _is_in(path: Path, root: Path, folder: str) -> bool:
    return folder in path.relative_to(root).parts[:-1]


def _parse_h5(stem: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"patient_?(\d+)", stem)
    return (_patient(int(match[1])), "LGE") if match else None


H5_FORM = wsl4mis.H5Form(_parse_h5)
