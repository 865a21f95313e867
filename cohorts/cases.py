"""From the files of one volume to a :class:`Volume`, and from all of them to a :class:`Cohort`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from seggym.cohorts.cohort import Cohort, Volume
from seggym.cohorts.fingerprints import fingerprint_files
from seggym.cohorts.scans import Complain, Reader, Scan, image_faults, label_faults, refuse
from seggym.errors import SeggymError


@dataclass(frozen=True)
class Source:
    """The files that make up one array: a single file, or one file per slice, and the function that reads one.

    ``finish`` is applied to the stacked values (Z, Y, X), for what only the whole volume tells.
    """

    files: tuple[Path, ...]
    read: Reader
    finish: Callable[[np.ndarray], np.ndarray] | None = None

    def scan(self, complain: Complain) -> Scan | None:
        """Read all files and stack their slices, (Z, Y, X); None after a complaint."""
        scans = [self.read(path, complain) for path in self.files]
        read = [scan for scan in scans if scan is not None]
        if len(read) < len(scans):
            return None
        shape = read[0].values.shape
        clean = True
        for path, scan in zip(self.files[1:], read[1:], strict=True):
            if scan.values.shape != shape:
                complain(path, f"has shape {scan.values.shape}, expected {shape} as in {self.files[0].name}")
                clean = False
        if not clean:
            return None
        values = np.concatenate([scan.values for scan in read])
        return Scan(values if self.finish is None else self.finish(values), read[0].spacing)

    def parts(self, values: np.ndarray) -> Iterator[tuple[Path, np.ndarray]]:
        """Each file with its part of ``values`` (Z, Y, X)."""
        yield from zip(self.files, np.array_split(values, len(self.files)), strict=True)


class AnyCase(Protocol):
    """One volume on disk, whatever it is stored as."""

    @property
    def patient(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the volume."""
        ...

    @property
    def images(self) -> tuple[Path, ...]:
        """The files that hold the image itself."""
        ...

    def load(self, num_classes: int, complain: Complain) -> Volume | None:
        """Read the volume; every fault in it goes to ``complain``, and then the result is None."""
        ...


@dataclass(frozen=True)
class Case:
    """One volume on disk, not yet read. ``spacing`` (z, y, x) in mm replaces the one of the image file.

    ``phase`` is "ED" or "ES" where the cohort says in which cardiac phase the volume was taken.
    """

    patient: str
    frame: str
    group: str
    image: Source
    label: Source
    scribble: Source | None = None
    spacing: tuple[float, float, float] | None = None
    phase: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the volume."""
        return self.image.files + self.label.files + (self.scribble.files if self.scribble else ())

    @property
    def images(self) -> tuple[Path, ...]:
        """The files of the image."""
        return self.image.files

    def load(self, num_classes: int, complain: Complain) -> Volume | None:
        """:func:`load_case`."""
        return load_case(self, num_classes, complain)


def load_case(case: Case, num_classes: int, complain: Complain) -> Volume | None:
    """Read a volume; every fault in it goes to ``complain``, and then the result is None.

    A scribble may hold one value more than the labels: ``num_classes`` means "unlabelled".
    """
    faults = []

    def note(path: Path, message: str) -> None:
        faults.append(path)
        complain(path, message)

    image = case.image.scan(note)
    label = case.label.scan(note)
    scribble = case.scribble.scan(note) if case.scribble else None
    if image is not None:
        for path, values in case.image.parts(image.values):
            for fault in image_faults(values):
                note(path, fault)
        if not image.values.any():
            note(case.image.files[0], f"is empty (shape {image.values.shape}, no value above 0); export it again")
    for source, scan, highest in ((case.label, label, num_classes - 1), (case.scribble, scribble, num_classes)):
        if source is None or scan is None:
            continue
        for path, values in source.parts(scan.values):
            for fault in label_faults(values, highest):
                note(path, fault)
        if image is not None and scan.values.shape != image.values.shape:
            note(
                source.files[0],
                f"has shape {scan.values.shape} (z, y, x), expected {image.values.shape} as in "
                f"{case.image.files[0].name}; draw it on the grid of the image",
            )
    if faults or image is None or label is None:
        return None
    return Volume(
        patient=case.patient,
        frame=case.frame,
        image=np.ascontiguousarray(image.values, dtype=np.float32),
        label=np.ascontiguousarray(label.values, dtype=np.uint8),
        spacing=case.spacing or image.spacing,
        scribble=None if scribble is None else np.ascontiguousarray(scribble.values, dtype=np.uint8),
    )


def build_cohort(
    name: str,
    root: Path,
    class_names: Sequence[str],
    cases: Sequence[AnyCase],
    *,
    also: Iterable[Path] = (),
    scribble_ignore: int | None = None,
) -> Cohort:
    """The cohort of ``cases``; a patient is read when asked for. The fingerprint also covers the files in ``also``."""
    if not cases:
        raise SeggymError(f"{root} holds no volume of cohort {name}; check the folder with `seggym check-data {root}`")
    by_patient: dict[str, list[AnyCase]] = {}
    for case in cases:
        by_patient.setdefault(case.patient, []).append(case)
    files = {path for case in cases for path in case.files} | set(also)
    fingerprint_now = partial(fingerprint_files, root, files)
    return Cohort(
        name=name,
        root=root,
        class_names=tuple(class_names),
        groups={patient: own[0].group for patient, own in by_patient.items()},
        read=partial(_read_patient, by_patient, len(class_names)),
        fingerprint=fingerprint_now(),
        scribble_ignore=scribble_ignore,
        fingerprint_now=fingerprint_now,
    )


def _read_patient(by_patient: Mapping[str, Sequence[AnyCase]], num_classes: int, patient: str) -> Iterator[Volume]:
    for case in by_patient[patient]:
        volume = case.load(num_classes, refuse)
        assert volume is not None, "refuse raises at the first fault"
        yield volume
