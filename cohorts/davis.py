"""DAVIS 2017 (Pont-Tuset et al., 2017): videos whose frames are segmented; a natural-image cohort beside the medical.

The layout of the 480p release: ``JPEGImages/480p/<video>/00000.jpg``, ``Annotations/480p/<video>/00000.png`` (one
index for each object) and ``ImageSets/2017/{train,val}.txt`` with one video a line. A video takes the place of a
patient and its frames that of slices; any object is class 1. Videos of ``val.txt`` are set apart for testing, as the
benchmark does. test-dev is not read: it has masks of first frames only. ``h5`` is the form of
:mod:`seggym.cohorts.wsl4mis`, with ``<video>.h5`` and ``<video>_slice_00000.h5``.

Images become luminance (ITU-R 601), as everywhere in the house: a volume has one number per voxel, and every network,
observation and distance is built on that. Colour would be worth something here, and numbers on DAVIS are not comparable
with those of methods that see it.
"""

import dataclasses
import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from seggym.cohorts import wsl4mis
from seggym.cohorts.cases import Case, Source, build_cohort
from seggym.cohorts.cohort import Cohort, Volume, require_folder
from seggym.cohorts.examples import example_patient
from seggym.cohorts.scans import Complain, natural_key, read_scan, refuse, renumbered
from seggym.errors import SeggymError
from seggym.files import write_atomic

CLASS_NAMES = ("background", "object")
LAYOUTS = ("frames", "h5")
RESOLUTION = "480p"
_SETS = ("train", "val")
_CODES = {number: min(number, 1) for number in range(256)}


def open_davis(root: str | os.PathLike[str], *, layout: str = "auto") -> Cohort:
    """Open DAVIS at ``root``; ``layout`` is "frames", "h5" or "auto" (the first of them that is found).

    Spacing is nominal. Missing frames and masks raise :class:`SeggymError` here, a fault inside a file when its video
    is read.
    """
    root = Path(root)
    require_folder(root, "davis")
    if layout not in ("auto", *LAYOUTS):
        raise SeggymError(f"DAVIS layout {layout!r} is unknown, expected auto, {', '.join(LAYOUTS)}")
    found = find_layout(root) if layout == "auto" else layout
    if found is None:
        raise SeggymError(
            f"{root} holds no DAVIS data, expected JPEGImages/{RESOLUTION}, Annotations/{RESOLUTION} and "
            "ImageSets/2017, or training_slices/<video>_slice_00000.h5; point data_root at the folder that holds them"
        )
    if found == "h5":
        return wsl4mis.open_h5("davis", root, CLASS_NAMES, H5_FORM)
    cases = find_cases(root, found, refuse)
    also = [path for name in _SETS if (path := _set_file(root, name)).is_file()]
    cohort = build_cohort("davis", root, CLASS_NAMES, cases, also=also)
    tested = frozenset(_read_set(root, "val", refuse)) & set(cohort.groups)
    return dataclasses.replace(cohort, official_test=tested)


def find_layout(root: Path) -> str | None:
    """The DAVIS layout at ``root``, or None; any h5 files will do, as every name may be that of a video."""
    if (root / "JPEGImages").is_dir():
        return "frames"
    return "h5" if wsl4mis.holds_h5(root, H5_FORM) else None


def find_cases(root: Path, layout: str, complain: Complain) -> list[Case]:
    """One volume for each video that the lists name; what is missing goes to ``complain``."""
    if layout == "h5":
        return wsl4mis.find_h5_cases(root, H5_FORM, complain)
    cases = []
    seen: dict[str, str] = {}
    for name in _SETS:
        for video in _read_set(root, name, complain):
            if video in seen:
                complain(_set_file(root, name), f"names {video}, and so does {seen[video]}.txt; keep it in one of them")
                continue
            seen[video] = name
            case = _case(root, video, name, complain)
            if case is not None:
                cases.append(case)
    return cases


def write_example(directory: str | os.PathLike[str], layout: str = "frames", patients: int = 2) -> Path:
    """Write a tiny made-up cohort of videos (three frames each), "frames" or "h5"; returns its folder.

    Of four videos the third is for validation and the fourth for testing; "frames" has both in ``val.txt``.
    """
    directory = Path(directory)
    if layout not in LAYOUTS:
        raise SeggymError(f"DAVIS layout {layout!r} is unknown, expected one of {', '.join(LAYOUTS)}")
    lists: dict[str, list[Path]] = {role: [] for role in wsl4mis.ROLES}
    videos: dict[str, list[str]] = {name: [] for name in _SETS}
    for index in range(1, patients + 1):
        role = {3: "val", 0: "test"}.get(index % 4, "train")
        video = f"video-{index:02d}"
        (volume,) = example_patient(index, (RESOLUTION,))[1]
        if layout == "frames":
            _write_frames(directory, video, volume)
            videos["train" if role == "train" else "val"].append(video)
        else:
            lists[role] += _write_h5(directory, video, role, volume)
    if layout == "h5":
        wsl4mis.write_lists(directory, lists)
    for name in _SETS if layout == "frames" else ():
        write_atomic(_set_file(directory, name), "".join(f"{video}\n" for video in videos[name]).encode())
    return directory


def _case(root: Path, video: str, listed: str, complain: Complain) -> Case | None:
    images_at, masks_at = (root / kind / RESOLUTION / video for kind in ("JPEGImages", "Annotations"))
    for place in (images_at, masks_at):
        if not place.is_dir():
            complain(place, f"is missing, but {listed}.txt names the video; restore it or mend the list")
            return None
    images = {path.stem: path for path in sorted(images_at.glob("*.jpg"), key=natural_key)}
    masks = {path.stem: path for path in masks_at.glob("*.png")}
    for frame in sorted(images.keys() ^ masks.keys()):
        missing = masks_at / f"{frame}.png" if frame in images else images_at / f"{frame}.jpg"
        complain(missing, "is missing, expected one mask for each frame; restore it or remove its partner")
    frames = [frame for frame in images if frame in masks]
    if not images and not masks:
        complain(images_at, "holds no frame, expected 00000.jpg, 00001.jpg, ...; restore them")
    if not frames:
        return None
    image = Source(tuple(images[frame] for frame in frames), partial(read_scan, colour=True))
    label = Source(tuple(masks[frame] for frame in frames), renumbered(read_scan, _CODES))
    return Case(video, RESOLUTION, "all", image, label)


def _set_file(root: Path, name: str) -> Path:
    return root / "ImageSets" / "2017" / f"{name}.txt"


def _read_set(root: Path, name: str, complain: Complain) -> list[str]:
    path = _set_file(root, name)
    try:
        return path.read_text().split()
    except FileNotFoundError:
        complain(path, "is missing, expected the name of one video a line; restore it from the download")
    except (OSError, UnicodeDecodeError) as error:
        complain(path, f"cannot be read ({error}), expected the name of one video a line; restore it")
    return []


def _parse_h5(stem: str) -> tuple[str, str]:
    return stem, RESOLUTION


H5_FORM = wsl4mis.H5Form(_parse_h5, codes=_CODES, colour=True)


def _colour(volume: Volume) -> np.ndarray:
    """The made-up volume as uint8 (Z, Y, X, 3), each channel of its own brightness."""
    grey = volume.image / volume.image.max()
    return np.rint(np.stack([255 * grey, 200 * grey, 120 * grey], -1)).astype(np.uint8)


def _write_frames(directory: Path, video: str, volume: Volume) -> None:
    for position, (frame, label) in enumerate(zip(_colour(volume), volume.label, strict=True)):
        write_atomic(
            directory / "JPEGImages" / RESOLUTION / video / f"{position:05d}.jpg",
            partial(_save, Image.fromarray(frame), "JPEG"),
        )
        mask = Image.fromarray(label)
        mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
        write_atomic(
            directory / "Annotations" / RESOLUTION / video / f"{position:05d}.png", partial(_save, mask, "PNG")
        )


def _save(picture: Image.Image, kind: str, path: Path) -> None:
    picture.save(path, format=kind)


def _write_h5(directory: Path, video: str, role: str, volume: Volume) -> list[Path]:
    # The files have colour as a last axis, which a volume that a reader returns has not.
    coloured = dataclasses.replace(volume, image=_colour(volume).astype(np.float32), scribble=None)
    if role == "train":
        return wsl4mis.write_h5_slices(directory / "training_slices", video, coloured, digits=5)
    path = directory / ("val_volumes" if role == "val" else "testing_volumes") / f"{video}.h5"
    wsl4mis.write_h5_volume(path, coloured)
    return [path]
