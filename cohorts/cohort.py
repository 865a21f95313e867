"""What a reader returns: patients, their volumes, and how to find them on disk."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from seggym.errors import SeggymError

# One line per reader: the name in configs and environment ids, and the function that opens it.
READERS = {
    "acdc": "seggym.cohorts.acdc:open_acdc",
    "camus": "seggym.cohorts.camus:open_camus",
    "chaos": "seggym.cohorts.chaos:open_chaos",
    "cmrxrecon": "seggym.cohorts.cmrxrecon:open_cmrxrecon",
    "davis": "seggym.cohorts.davis:open_davis",
    "echo": "seggym.cohorts.echo_phantom:open_echo",
    "folder": "seggym.cohorts.folder:open_folder",
    "mscmr": "seggym.cohorts.mscmr:open_mscmr",
    "phantom": "seggym.cohorts.phantoms:open_phantoms",
    "raw": "seggym.cohorts.raw_kspace:open_raw",
}


@dataclass(frozen=True)
class Volume:
    """One labelled stack of slices: one frame (cardiac phase) of one patient.

    ``image`` is float32 (Z, Y, X), magnitude >= 0; ``label`` is uint8 (Z, Y, X) with 0 = background;
    ``spacing`` is (z, y, x) in mm as the header states it; ``scribble``, where the cohort has one, is uint8 (Z, Y, X).
    ``kspace``, where it was measured, is complex64 (Z, J, Y, X) of J coils: readouts along Y, phase-encode lines in X,
    DC at the index N // 2 of both; a line that was never measured is zeros. ``image`` is then its root sum of squares.
    """

    patient: str
    frame: str
    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, float, float]
    scribble: np.ndarray | None = None
    kspace: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Unique within the cohort, e.g. ``patient003_frame01``."""
        return f"{self.patient}_{self.frame}"


@dataclass(frozen=True)
class Cohort:
    """A data set on disk: which patients it holds, how they are grouped, and how one is read.

    ``class_names[0]`` is the background. ``groups`` maps every patient to its pathology group (one group for all where
    the cohort has none); ``read(patient)`` yields the volumes of a patient. ``scribble_ignore`` is the scribble value
    that means "unlabelled". ``official_test`` and ``official_val`` name the patients that the cohort itself sets apart
    for testing and validation. ``phases`` maps the names of volumes to "ED" or "ES" where the cohort says their
    cardiac phase.
    ``measured`` cohorts hold raw k-space, from which nothing is simulated.
    ``fingerprint`` is that of the files as they were when the cohort was opened; ``fingerprint_now`` looks again.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    groups: Mapping[str, str]
    read: Callable[[str], Iterable[Volume]] = field(repr=False)
    fingerprint: str = ""
    scribble_ignore: int | None = None
    official_test: frozenset[str] = frozenset()
    official_val: frozenset[str] = frozenset()
    measured: bool = False
    fingerprint_now: Callable[[], str] | None = field(default=None, repr=False)
    phases: Mapping[str, str] = field(default_factory=dict)

    @property
    def patients(self) -> list[str]:
        """Sorted patient names."""
        return sorted(self.groups)

    @property
    def num_classes(self) -> int:
        """Number of label values, the background included."""
        return len(self.class_names)

    def is_unchanged(self) -> bool:
        """Whether the files still are what ``fingerprint`` says; a cohort that cannot look again trusts it."""
        return self.fingerprint_now is None or self.fingerprint_now() == self.fingerprint

    def volumes(self, patients: Iterable[str] | None = None) -> Iterator[Volume]:
        """Yield the volumes of ``patients`` (default: all), sorted by patient; labels are checked."""
        chosen = self.patients if patients is None else sorted(patients)
        unknown = sorted(set(chosen) - set(self.groups))
        if unknown:
            raise SeggymError(
                f"cohort {self.name} at {self.root} has no patient {', '.join(unknown)}; it has {len(self.groups)} "
                "patients: mend the split file or the data folder"
            )
        for patient in chosen:
            for volume in self.read(patient):
                if volume.label.max(initial=0) >= self.num_classes:
                    raise SeggymError(
                        f"{volume.name} in {self.root} holds label {volume.label.max()}, expected 0 to "
                        f"{self.num_classes - 1} ({', '.join(self.class_names)}); run `seggym check-data {self.root}`"
                    )
                yield volume


def open_cohort(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> Cohort:
    """Open the cohort ``name`` (a key of :data:`READERS`); ``options`` go to its reader.

    ``root`` falls back to ``$SEGGYM_<NAME>_ROOT`` and then to ``$SEGGYM_HOME/cohorts/<name>``.
    """
    if name not in READERS:
        raise SeggymError(f"cohort {name!r} is unknown, expected one of {', '.join(sorted(READERS))}")
    module, function = READERS[name].split(":")
    reader = getattr(import_module(module), function)
    try:
        signature(reader).bind(root, **options)
    except TypeError as error:
        known = ", ".join(list(signature(reader).parameters)[1:])
        raise SeggymError(
            f"the options {options} do not suit cohort {name} ({error}); its options are {known}"
        ) from None
    return reader(cohort_root(name, root), **options)


def seggym_home() -> Path:
    """``$SEGGYM_HOME``, or the platform's user data folder."""
    return Path(os.environ.get("SEGGYM_HOME") or platformdirs.user_data_dir("seggym"))


def cohort_root(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Where the cohort lies: the argument, else ``$SEGGYM_<NAME>_ROOT``, else ``$SEGGYM_HOME/cohorts/<name>``."""
    chosen = root or os.environ.get(f"SEGGYM_{name.upper()}_ROOT") or seggym_home() / "cohorts" / name
    # Hydra reads a folder called 2024 as a number.
    return Path(str(chosen)).expanduser()


def require_folder(root: Path, name: str) -> None:
    """Raise the sentence that tells where the data of cohort ``name`` were looked for and how to say where they are."""
    if not root.is_dir():
        raise SeggymError(
            f"no {name} data at {root}: pass data_root=, or set SEGGYM_{name.upper()}_ROOT, to the folder that holds "
            "the patients"
        )
