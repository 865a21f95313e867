"""CHAOS (Kavur et al., Medical Image Analysis 2021): abdominal CT with the liver, and MR with four organs, as DICOM.

The layout of the release (``CHAOS_Train_Sets.zip``; the test sets come without masks)::

    Train_Sets/CT/<number>/DICOM_anon/*.dcm                        Ground/liver_GT_*.png     0 and 1 (or 255)
    Train_Sets/MR/<number>/T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm   T1DUAL/Ground/*.png  0, 63, 126, 189, 252
    Train_Sets/MR/<number>/T2SPIR/DICOM_anon/*.dcm                      T2SPIR/Ground/*.png  0, 63, 126, 189, 252

``CT`` and ``MR`` may lie right in the root, and the root may be one of the two. Slices are paired and ordered by the
numbers in their names, as the challenge means them to be: in CT, positions in the header run the other way. MR masks
bear the name of their in-phase or T2 slice; out-of-phase slices share the masks of the in-phase ones, in order.
Organs are accepted in the ranges that the challenge states (liver 55 to 70, right kidney 110 to 135, left kidney 175 to
200, spleen 240 to 255). CT is windowed as in WSL4MIS (level 40, width 200) and mapped to [0, 1]; MR is as stored.

CT and MR are of different people; a cohort holds one of them, and patient 5 of each is ``CT05`` or ``MR05``. ``h5`` is
the form of :mod:`seggym.cohorts.wsl4mis`, in the root or in ``CT_LIVER`` and ``MRI`` below it.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from seggym.cohorts import wsl4mis
from seggym.cohorts.cases import Case, Source, build_cohort
from seggym.cohorts.cohort import Cohort, Volume, require_folder
from seggym.cohorts.dicom import read_dicom, series_spacing, write_dicom
from seggym.cohorts.examples import example_patient
from seggym.cohorts.scans import Complain, Reader, natural_key, read_scan, refuse, renumbered, write_png
from seggym.errors import SeggymError

MODALITIES = ("ct", "mr")
CLASS_NAMES = {
    "ct": ("background", "liver"),
    "mr": ("background", "liver", "right kidney", "left kidney", "spleen"),
}
SEQUENCES = ("t1in", "t2spir", "t1out")
LAYOUTS = ("dicom", "h5")
H5_FOLDERS = {"ct": "CT_LIVER", "mr": "MRI"}
WINDOW = (40.0, 200.0)
_CT_CODES = {0: 0, 1: 1, 255: 1}
_MR_CODES = {
    0: 0,
    **{
        number: organ
        for organ, (first, last) in enumerate([(55, 70), (110, 135), (175, 200), (240, 255)], start=1)
        for number in range(first, last + 1)
    },
}
# Where the slices and masks of each sequence lie in the folder of a patient.
_PLACES = {
    "ct": ("DICOM_anon", "Ground"),
    "t1in": ("T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground"),
    "t1out": ("T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground"),
    "t2spir": ("T2SPIR/DICOM_anon", "T2SPIR/Ground"),
}


def open_chaos(
    root: str | os.PathLike[str],
    *,
    modality: str = "ct",
    layout: str = "auto",
    sequences: Sequence[str] = SEQUENCES[:2],
) -> Cohort:
    """Open the CT or the MR part of CHAOS at ``root``.

    ``modality`` is "ct" (2 classes) or "mr" (5 classes); ``layout`` is "dicom", "h5" or "auto" (the first that is
    found). ``sequences`` are the frames of MR to read, of "t1in", "t1out" and "t2spir"; "t1out" is left out by default,
    because its masks are those of "t1in" and would be counted twice. Spacing is the header's, in h5 nominal. Missing
    masks raise :class:`SeggymError` here, a fault inside a file when its patient is read.
    """
    root = Path(root)
    require_folder(root, "chaos")
    if modality not in MODALITIES:
        raise SeggymError(f"CHAOS modality {modality!r} is unknown, expected {' or '.join(MODALITIES)}")
    if layout not in ("auto", *LAYOUTS):
        raise SeggymError(f"CHAOS layout {layout!r} is unknown, expected auto, {', '.join(LAYOUTS)}")
    wrong = sorted(set(sequences) - set(SEQUENCES))
    if wrong or not sequences:
        raise SeggymError(f"sequences={list(sequences)} are not known, expected some of {', '.join(SEQUENCES)}")
    found = find_layout(root, modality) if layout == "auto" else layout
    if found is None:
        raise SeggymError(
            f"{root} holds no {modality.upper()} data of CHAOS, expected Train_Sets/{modality.upper()}/<number>/ with "
            "DICOM_anon and Ground, or training_slices/patient_N_slice_Z.h5; point data_root at the folder with them"
        )
    if found == "h5":
        return wsl4mis.open_h5("chaos", _h5_root(root, modality), CLASS_NAMES[modality], h5_form(modality))
    cases = find_cases(root, modality, found, refuse, sequences)
    return build_cohort("chaos", root, CLASS_NAMES[modality], cases)


def find_layout(root: Path, modality: str) -> str | None:
    """The layout of this modality at ``root``, or None."""
    if _patient_folders(root, modality):
        return "dicom"
    return "h5" if wsl4mis.holds_h5(_h5_root(root, modality), h5_form(modality)) else None


def find_cases(
    root: Path, modality: str, layout: str, complain: Complain, sequences: Sequence[str] = SEQUENCES[:2]
) -> list[Case]:
    """The volumes of a modality below ``root``; missing folders and slices go to ``complain``."""
    if layout == "h5":
        return wsl4mis.find_h5_cases(_h5_root(root, modality), h5_form(modality), complain)
    frames = ("ct",) if modality == "ct" else tuple(sequences)
    found = (
        _case(folder, _patient(modality, folder.name), frame, complain)
        for folder in _patient_folders(root, modality)
        for frame in frames
    )
    return [case for case in found if case is not None]


def h5_form(modality: str) -> wsl4mis.H5Form:
    """How the WSL4MIS files of a modality are named and coded."""
    return wsl4mis.H5Form(partial(_parse_h5, modality), codes=_CT_CODES if modality == "ct" else None)


def write_example(
    directory: str | os.PathLike[str], layout: str = "dicom", patients: int = 2, modalities: Sequence[str] = MODALITIES
) -> Path:
    """Write a tiny made-up cohort, "dicom" (of both modalities) or "h5" (of the first of them); returns its folder.

    In h5, of four patients the third is for validation and the fourth for testing.
    """
    directory = Path(directory)
    if layout not in LAYOUTS:
        raise SeggymError(f"CHAOS layout {layout!r} is unknown, expected one of {', '.join(LAYOUTS)}")
    lists: dict[str, list[Path]] = {role: [] for role in wsl4mis.ROLES}
    for index in range(1, patients + 1):
        if layout == "h5":
            _write_h5(directory, index, modalities[0], lists)
        for modality in modalities if layout == "dicom" else ():
            for frame in ("ct",) if modality == "ct" else SEQUENCES:
                folder = directory / "Train_Sets" / modality.upper() / str(index)
                _write_series(folder, frame, _example(index, modality, frame))
    if layout == "h5":
        wsl4mis.write_lists(directory, lists)
    return directory


def _case(folder: Path, patient: str, frame: str, complain: Complain) -> Case | None:
    images_at, masks_at = (folder / place for place in _PLACES[frame])
    for place in (images_at, masks_at):
        if not place.is_dir():
            complain(place, "is missing, expected slices and one mask for each; restore it from CHAOS_Train_Sets.zip")
            return None
    images, masks = _numbered(images_at, "*.dcm"), _numbered(masks_at, "*.png")
    if len(images) != len(masks) or not images:
        complain(
            masks_at, f"holds {len(masks)} PNG masks, expected one for each of {len(images)} slices in {images_at}"
        )
        return None
    if _gaps(images) != _gaps(masks):
        complain(
            masks_at, f"is numbered with other gaps than {images_at}, expected a mask for each slice; restore both"
        )
        return None
    if frame == "ct":
        read_image: Reader = partial(read_dicom, window=WINDOW)
        codes = _CT_CODES
    else:
        read_image, codes = read_dicom, _MR_CODES
    label = Source(masks, renumbered(read_scan, codes))
    return Case(patient, frame, "all", Source(images, read_image), label, spacing=series_spacing(images))


def _numbered(folder: Path, pattern: str) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob(pattern), key=natural_key))


def _gaps(files: Sequence[Path]) -> list[int]:
    """Steps between the numbers of ``files``, in units of the smallest: a slice that one side lacks shows as a 2.

    T1DUAL numbers its phases alternately, so that the step is 2 there. ``i0057,0000b.dcm`` is number 57.
    """
    numbers = [int((re.findall(r"\d+", path.stem.partition(",")[0]) or ["0"])[-1]) for path in files]
    steps = [after - before for before, after in pairwise(numbers)]
    smallest = max(min(steps, default=1), 1)
    return [step // smallest for step in steps]


def _patient_folders(root: Path, modality: str) -> list[Path]:
    """The numbered folders of the patients of a modality, by number."""
    name = modality.upper()
    places = ("DICOM_anon", "Ground") if modality == "ct" else ("T1DUAL", "T2SPIR")
    for parent in (root / "CHAOS_Train_Sets" / "Train_Sets" / name, root / "Train_Sets" / name, root / name, root):
        folders = sorted(parent.iterdir(), key=natural_key) if parent.is_dir() else []
        found = [
            folder
            for folder in folders
            if re.fullmatch(r"\d+", folder.name) and any((folder / place).is_dir() for place in places)
        ]
        if found:
            return found
    return []


def _patient(modality: str, number: str) -> str:
    return f"{modality.upper()}{int(number):02d}"


def _h5_root(root: Path, modality: str) -> Path:
    below = root / H5_FOLDERS[modality]
    return below if below.is_dir() else root


def _parse_h5(modality: str, stem: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"patient_?(\d+)(?:_volume)?", stem)
    return (_patient(modality, match[1]), "ct" if modality == "ct" else "t2spir") if match else None


def _example(index: int, modality: str, frame: str) -> Volume:
    """A made-up patient: the heart of the other examples taken for organs, with a spleen beside it."""
    (volume,) = example_patient(index, (frame,))[1]
    if modality == "ct":
        label = (volume.label > 1).astype(np.uint8)
    else:
        label = volume.label.copy()
        label[:, 40:52, 120:140] = 4
    image = volume.image + (SEQUENCES.index(frame) + 1 if frame in SEQUENCES else 0)
    return Volume(_patient(modality, str(index)), frame, image, label, (3.0, 0.75, 0.75))


def _write_series(folder: Path, frame: str, volume: Volume) -> None:
    images_at, masks_at = (folder / place for place in _PLACES[frame])
    for position, (image, label) in enumerate(zip(volume.image, volume.label, strict=True)):
        if frame == "ct":
            name, mask_name = f"i{position:04d},0000b", f"liver_GT_{position:03d}"
            # 0 to 1000 is seen through the window between -60 and 140 HU, stored with the usual offset.
            stored, mask, intercept = image / 5 - 60 + 1024, label * np.uint8(255), -1024
        else:
            # In phase 2, 4, ..., out of phase 1, 3, ... with the masks of the former.
            number = {"t1in": 2 * position + 2, "t1out": 2 * position + 1}.get(frame, position + 1)
            name = mask_name = f"IMG-0004-{number:05d}"
            stored, mask, intercept = image, label * np.uint8(63), 0
        z = -volume.spacing[0] * position
        write_dicom(images_at / f"{name}.dcm", np.rint(stored).astype(np.uint16), volume.spacing, z, intercept)
        if frame != "t1out":
            write_png(masks_at / f"{mask_name}.png", mask)


def _write_h5(directory: Path, index: int, modality: str, lists: dict[str, list[Path]]) -> None:
    volume = _example(index, modality, "ct" if modality == "ct" else "t2spir")
    role = {3: "val", 0: "test"}.get(index % 4, "train")
    if role == "train":
        lists[role] += wsl4mis.write_h5_slices(directory / "training_slices", f"patient_{index}", volume)
    else:
        path = directory / ("val_volumes" if role == "val" else "testing_volumes") / f"patient_{index:02d}_volume.h5"
        wsl4mis.write_h5_volume(path, volume)
        lists[role].append(path)
