"""Cohorts as WSL4MIS (and CoreCLR after it) preprocess them: HDF5 files with ``image``, ``label`` and ``scribble``.

``<name>.h5`` holds a volume (Z, Y, X), ``<name>_slice_N.h5`` one slice (Y, X) of it; DAVIS has colour as a last axis.
The files lie in the root or in folders right below it, such as ``training_slices``, ``val_volumes``,
``testing_volumes`` or ``ACDC_training_volumes``. A whole volume is preferred to its slices, which are stacked by their
number. Where the split lists ``train.txt``, ``val.txt`` and ``test.txt`` lie in the root, exactly the files they name
are read, and they say which patients validate and test; without them the folders do (``val...``, ``...test...``).

The format states neither spacing nor pathology: spacing is nominal, (1, 1, 1), and all patients are in group "all".
Some of these files hold images from -1 to 1 or of zero mean; a volume with negative values is shifted to begin at 0.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from seggym.cohorts.cases import Case, Source, build_cohort
from seggym.cohorts.cohort import Cohort, Volume
from seggym.cohorts.scans import UNREADABLE, Complain, read_h5, refuse, renumbered, unreadable
from seggym.files import write_atomic

ROLES = ("train", "val", "test")
UNMASKED = ("refuse", "skip")
_SLICE = re.compile(r"(.+)_slice_(\d+)")


@dataclass(frozen=True)
class H5Form:
    """How one cohort names and codes its files.

    ``parse`` turns a file's stem, without slice number, into patient and frame, or None for a foreign file; ``codes``
    maps the numbers in ``label`` to classes (None: they are the classes); ``colour`` images have a last axis of RGB.
    """

    parse: Callable[[str], tuple[str, str] | None]
    codes: Mapping[int, int] | None = None
    colour: bool = False


def holds_h5(root: Path, form: H5Form) -> bool:
    """Whether there are files of this form in ``root`` or right below it."""
    return any(_identify(path, form) for folder in _folders(root) for path in folder.glob("*.h5"))


def find_h5_cases(root: Path, form: H5Form, complain: Complain, unmasked: str | None = None) -> list[Case]:
    """The volumes below ``root``; what is missing goes to ``complain``.

    ``unmasked`` says what becomes of volumes without ``label``, which a cohort of scribbles may have: "refuse" (a
    complaint) or "skip". None leaves it to the reading of the file.
    """
    listed = _read_lists(root, complain)
    found_by_folder = (path for folder in _folders(root) for path in sorted(folder.glob("*.h5")))
    files = list(found_by_folder if listed is None else listed)
    whole: dict[tuple[str, str], Path] = {}
    slices: dict[tuple[str, str], dict[int, Path]] = {}
    for path in files:
        found = _identify(path, form)
        if found is None:
            if listed is not None:
                complain(path, "has a name that is none of this cohort's, but a split list names it; mend the list")
            continue
        patient, frame, number = found
        first = whole.get((patient, frame)) if number is None else slices.get((patient, frame), {}).get(number)
        if first is not None:
            complain(path, f"is a second file of what {first} holds; keep one of them")
        elif number is None:
            whole[patient, frame] = path
        else:
            slices.setdefault((patient, frame), {})[number] = path
    cases = []
    for patient, frame in sorted(whole.keys() | slices.keys()):
        alone = whole.get((patient, frame))
        members = (alone,) if alone else _stack(slices[patient, frame], complain)
        case = _case(patient, frame, members, form, complain, unmasked) if members else None
        if case is not None:
            cases.append(case)
    _check_roles(root, cases, listed, complain)
    return cases


def open_h5(name: str, root: Path, class_names: Sequence[str], form: H5Form, unmasked: str | None = None) -> Cohort:
    """The cohort of the files in ``root``; validation and test patients as the split lists, or the folders, say."""
    cases = find_h5_cases(root, form, refuse, unmasked)
    cohort = build_cohort(name, root, class_names, cases, also=list_files(root), scribble_ignore=len(class_names))
    listed = _read_lists(root, refuse)
    roles = {case.patient: _role(root, case.image.files[0], listed) for case in cases}
    val, test = (frozenset(patient for patient, own in roles.items() if own == role) for role in ("val", "test"))
    return dataclasses.replace(cohort, official_val=val, official_test=test)


def write_h5_volume(path: Path, volume: Volume) -> None:
    """Write a whole volume as one file."""
    _write(path, volume, slice(None))


def write_h5_slices(folder: Path, stem: str, volume: Volume, digits: int = 1) -> list[Path]:
    """Write each slice of a volume as a file of its own, ``<stem>_slice_N.h5``; returns the files."""
    paths = [folder / f"{stem}_slice_{position:0{digits}d}.h5" for position in range(len(volume.image))]
    for position, path in enumerate(paths):
        _write(path, volume, position)
    return paths


def write_lists(root: Path, roles: Mapping[str, Iterable[Path]]) -> None:
    """Write the split lists: role -> its files below ``root``."""
    for role, paths in roles.items():
        lines = "".join(f"{path.relative_to(root).as_posix()}\n" for path in paths)
        write_atomic(root / f"{role}.txt", lines.encode())


def list_files(root: Path) -> list[Path]:
    """The split lists in ``root``."""
    return [path for role in ROLES if (path := root / f"{role}.txt").is_file()]


def _write(path: Path, volume: Volume, part: slice | int) -> None:
    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            file["image"] = volume.image[part]
            file["label"] = volume.label[part]
            if volume.scribble is not None:
                file["scribble"] = volume.scribble[part]

    write_atomic(path, write)


def _folders(root: Path) -> list[Path]:
    return [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []


def _identify(path: Path, form: H5Form) -> tuple[str, str, int | None] | None:
    """Patient, frame and slice number (None for a whole volume) of a file; None for a foreign one."""
    match = _SLICE.fullmatch(path.stem)
    named = form.parse(match[1] if match else path.stem)
    return None if named is None else (*named, int(match[2]) if match else None)


def _read_lists(root: Path, complain: Complain) -> dict[Path, str] | None:
    """Role of each file that the split lists name; None where there are no lists."""
    lists = list_files(root)
    roles: dict[Path, str] = {}
    for source in lists:
        try:
            names = source.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            complain(source, f"cannot be read ({error}), expected one file name a line; copy it again")
            continue
        for path in (root / name for name in names):
            if not path.is_file():
                complain(path, f"is missing, but {source.name} names it; restore it or mend the list")
            else:
                roles.setdefault(path, source.stem)
    return roles if lists else None


def _role(root: Path, path: Path, listed: Mapping[Path, str] | None) -> str:
    if listed is not None:
        return listed[path]
    folder = path.parent.name.lower() if path.parent != root else ""
    return "val" if folder.startswith("val") else "test" if "test" in folder else "train"


def _check_roles(root: Path, cases: Iterable[Case], listed: Mapping[Path, str] | None, complain: Complain) -> None:
    """A patient in two roles would both train and test."""
    first: dict[str, str] = {}
    for case in cases:
        for path in case.image.files:
            role = _role(root, path, listed)
            if first.setdefault(case.patient, role) != role:
                complain(
                    path,
                    f"is for {role}, but other files of {case.patient} are for {first[case.patient]}, expected one "
                    "role for a patient; mend the split",
                )
                break


def _stack(numbered: Mapping[int, Path], complain: Complain) -> tuple[Path, ...]:
    """The slices of a volume in order; empty after a complaint about one that is missing."""
    numbers = sorted(numbered)
    absent = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if absent:
        stem, _, digits = numbered[numbers[0]].stem.rpartition("_")
        missing = numbered[numbers[0]].with_name(f"{stem}_{absent[0]:0{len(digits)}d}.h5")
        complain(missing, "is missing (or in no split list), but slices with higher numbers exist; restore it")
        return ()
    return tuple(numbered[number] for number in numbers)


def _case(
    patient: str, frame: str, files: tuple[Path, ...], form: H5Form, complain: Complain, unmasked: str | None
) -> Case | None:
    try:
        with h5py.File(files[0], "r") as file:
            datasets = set(file)
    except UNREADABLE as error:
        complain(files[0], unreadable(error))
        return None
    if "label" not in datasets and unmasked == "skip":
        return None
    if "label" not in datasets and unmasked == "refuse":
        complain(files[0], "holds a scribble but no mask (dataset 'label'); add it, or leave it out with unmasked=skip")
        return None
    read_label = partial(read_h5, dataset="label")
    return Case(
        patient,
        frame,
        "all",
        Source(files, partial(read_h5, dataset="image", colour=form.colour), finish=_from_zero),
        Source(files, read_label if form.codes is None else renumbered(read_label, form.codes)),
        Source(files, partial(read_h5, dataset="scribble")) if "scribble" in datasets else None,
    )


def _from_zero(values: np.ndarray) -> np.ndarray:
    """Images are magnitudes everywhere else in the house; the shift changes no contrast."""
    low = values.min(initial=0)
    return values - low if low < 0 else values
