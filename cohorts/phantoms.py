"""The phantom cohort: short-axis cardiac MR that is generated, not downloaded, in the official ACDC layout.

Some of its patients are made with :data:`TEST_SETTINGS`, whose ranges lie outside those of :data:`TRAIN_SETTINGS`; they
are the cohort's official test patients. ``cohort.json`` says which: names, images and ``Info.cfg`` do not.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from seggym.cohorts.acdc import open_acdc
from seggym.cohorts.cohort import Cohort, Volume
from seggym.cohorts.phantom_patient import generate_patient
from seggym.cohorts.phantom_settings import GROUPS, TEST_SETTINGS, TRAIN_SETTINGS, PhantomSettings
from seggym.cohorts.scans import write_nifti
from seggym.errors import SeggymError
from seggym.files import read_json, write_atomic, write_json

__all__ = [
    "GROUPS",
    "TEST_SETTINGS",
    "TRAIN_SETTINGS",
    "PhantomSettings",
    "generate_patient",
    "open_phantoms",
    "phantom_roles",
    "write_phantoms",
]

# To be raised whenever the same arguments draw other images: it is part of the name of the generated folder.
GENERATOR_VERSION = 1
MANIFEST = "cohort.json"


def open_phantoms(
    root: str | os.PathLike[str], *, patients: int = 60, test_patients: int = 15, seed: int = 0
) -> Cohort:
    """Open the phantoms of these arguments below ``root``; they are generated on first use (about 0.3 s a patient).

    They lie in ``root/phantoms-<hash of generator version, settings and arguments>``. Where ``root`` cannot be written
    they are generated, with a warning, in a temporary folder that this process removes when it ends.
    """
    plan = _plan(patients, test_patients, seed)
    name = f"phantoms-{hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]}"
    folder = Path(root) / name
    if not (folder / MANIFEST).is_file():
        reason = _unwritable(Path(root))
        if reason is not None:
            warnings.warn(f"phantoms cannot be kept in {root} ({reason}): made for this process only", stacklevel=2)
            folder = Path(_temporary_folder().name) / name
        write_phantoms(folder, patients=patients, test_patients=test_patients, seed=seed)
    cohort = dataclasses.replace(open_acdc(folder, layout="nifti"), name="phantom", scribble_ignore=None)
    roles = phantom_roles(cohort)
    unseen = frozenset(patient for patient in cohort.patients if roles[patient] == "test")
    return dataclasses.replace(cohort, official_test=unseen)


def write_phantoms(root: str | os.PathLike[str], *, patients: int = 60, test_patients: int = 15, seed: int = 0) -> Path:
    """Write ``patients`` patients, ``test_patients`` of them made with the test settings, to ``root``; returns it.

    ``root`` appears complete or not at all, and only one of several processes generates it. A ``root`` that already
    holds the same cohort is left alone; one that holds anything else raises :class:`SeggymError`.
    """
    root = Path(root)
    plan = _plan(patients, test_patients, seed)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.parent / f".{root.name}.lock"):
            if _holds(root, plan):
                return root
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root.parent))
            try:
                _write_cohort(partial, plan)
                # A temporary folder is private to its user; the cohort is as readable as the folder it lies in.
                partial.chmod(root.parent.stat().st_mode & 0o777 | 0o700)
                if root.is_dir():
                    root.rmdir()
                partial.rename(root)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise SeggymError(
            f"cannot write phantoms to {root}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    return root


def phantom_roles(cohort: Cohort) -> dict[str, str]:
    """The settings, "train" or "test", that each patient of a phantom cohort was made with."""
    manifest = read_json(Path(cohort.root) / MANIFEST, "the list of phantoms")
    roles = manifest.get("patients") if isinstance(manifest, dict) else None
    if not isinstance(roles, dict) or set(roles) != set(cohort.patients):
        raise SeggymError(
            f"{Path(cohort.root) / MANIFEST} does not list the {len(cohort.patients)} patients beside it, expected one "
            "entry in `patients` for each; delete the folder and let it be generated again"
        )
    return roles


def _plan(patients: int, test_patients: int, seed: int) -> dict[str, Any]:
    """The content of ``cohort.json``: all that decides what is generated, and each patient's settings."""
    if not 0 <= test_patients <= patients or patients < 1:
        raise SeggymError(
            f"phantoms: test_patients={test_patients} of patients={patients}, expected at least one patient and "
            "0 <= test_patients <= patients"
        )
    if seed < 0:
        raise SeggymError(f"phantoms: seed={seed}, expected a whole number >= 0")
    # Mixed by the seed, so that a name does not tell the settings.
    test = np.random.default_rng([seed, 1]).permutation(patients)[:test_patients]
    # The number tells the seed, so that phantoms of two cohorts are never taken for the same patient.
    roles = {f"patient{1000 * seed + i + 1:03d}": "test" if i in test else "train" for i in range(patients)}
    settings = {s.name: json.loads(json.dumps(dataclasses.asdict(s))) for s in (TRAIN_SETTINGS, TEST_SETTINGS)}
    return {"generator_version": GENERATOR_VERSION, "seed": seed, "settings": settings, "patients": roles}


def _holds(root: Path, plan: dict[str, Any]) -> bool:
    """Whether ``root`` already is the cohort of ``plan``; anything else in it is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if (root / MANIFEST).is_file() and read_json(root / MANIFEST, "the list of phantoms") == plan:
        return True
    raise SeggymError(
        f"{root} exists and is not the phantom cohort asked for, expected no folder or an empty one; choose another "
        "folder or delete it"
    )


def _write_cohort(folder: Path, plan: dict[str, Any]) -> None:
    by_name = {"train": TRAIN_SETTINGS, "test": TEST_SETTINGS}
    names = list(plan["patients"])
    seeds = np.random.SeedSequence(plan["seed"]).generate_state(len(names), np.uint64)
    # Groups take turns within each of the two settings, so both are balanced.
    turns = {"train": 0, "test": 0}
    for name, seed in zip(names, seeds, strict=True):
        role = plan["patients"][name]
        group = list(GROUPS)[turns[role] % len(GROUPS)]
        turns[role] += 1
        volumes = generate_patient(int(seed), by_name[role], group)
        _write_patient(folder / name, group, volumes, np.random.default_rng([int(seed), 1]))
    write_json(folder / MANIFEST, plan)


def _write_patient(folder: Path, group: str, volumes: list[Volume], rng: np.random.Generator) -> None:
    diastole, systole = (int(volume.frame.removeprefix("frame")) for volume in volumes)
    height, weight = rng.uniform(155, 192), rng.uniform(52, 98)
    info = (
        f"ED: {diastole}\nES: {systole}\nGroup: {group}\nHeight: {height:.1f}\n"
        f"NbFrame: {2 * systole + 6}\nWeight: {weight:.1f}\n"
    )
    write_atomic(folder / "Info.cfg", info.encode())
    for volume in volumes:
        stem = f"{folder.name}_{volume.frame}"
        write_nifti(folder / f"{stem}.nii.gz", volume.image.astype(np.int16), volume.spacing)
        write_nifti(folder / f"{stem}_gt.nii.gz", volume.label, volume.spacing)


def _unwritable(root: Path) -> str | None:
    """Why nothing can be written in ``root``, or None."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return None
    except OSError as error:
        return error.strerror or str(error)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """One folder for this process; it is removed when the interpreter ends."""
    return tempfile.TemporaryDirectory(prefix="seggym-phantoms-")
