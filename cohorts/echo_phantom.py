"""The cohort of echo phantoms: apical views of made-up hearts, drawn from a seed whenever they are read.

Nothing is downloaded or kept on disk. Volumes are those of CAMUS (:mod:`seggym.cohorts.camus`): one image per view and
instant, labelled left ventricle, myocardium and left atrium.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from seggym.cohorts.cohort import Cohort, Volume
from seggym.cohorts.echo_phantom_anatomy import draw_apical, draw_heart
from seggym.cohorts.echo_phantom_ultrasound import draw_sector, image_of, pixel_positions
from seggym.errors import SeggymError

CLASS_NAMES = ("background", "left ventricle", "myocardium", "left atrium")
VIEWS = ("2CH", "4CH")
INSTANTS = ("ED", "ES")
FRAMES = tuple(f"{view}_{instant}" for view in VIEWS for instant in INSTANTS)
# Side of the field of view, so that the ventricles are as long as people's.
SIDE_MM = 160.0
# To be raised whenever the same arguments draw other images: fingerprints depend on it.
GENERATOR_VERSION = 2


def open_echo(root: str | os.PathLike[str], *, patients: int = 100, size: int = 128, seed: int = 0) -> Cohort:
    """Phantoms of ``patients`` people, drawn when they are read (a few ms an image); ``root`` is not used.

    Images are (1, size, size) with whole numbers from 0 to 255, the frames of a patient "2CH_ED", "2CH_ES", "4CH_ED"
    and "4CH_ES". Patient k of a ``seed`` is the same in a cohort of any number of patients. Groups are the classes of
    the ejection fraction, as in CAMUS.
    """
    if not 1 <= patients <= 9999:
        raise SeggymError(f"echo: patients={patients}, expected 1 to 9999")
    if size < 32:
        raise SeggymError(f"echo: size={size}, expected at least 32 pixels, of which a wall takes two")
    if seed < 0:
        raise SeggymError(f"echo: seed={seed}, expected a whole number >= 0")
    # The number tells the seed, so that phantoms of two cohorts are never taken for the same patient.
    keys = {f"echo{10_000 * seed + index:05d}": index for index in range(1, patients + 1)}
    plan = f"echo-{GENERATOR_VERSION}-{patients}-{size}-{seed}"
    return Cohort(
        name="echo",
        root=Path(root),
        class_names=CLASS_NAMES,
        groups={name: ejection_group(100 * _heart(seed, index)["ejection"]) for name, index in keys.items()},
        read=partial(_read, keys, size, seed),
        fingerprint=hashlib.sha256(plan.encode()).hexdigest()[:16],
        phases={f"{name}_{frame}": frame.partition("_")[2] for name in keys for frame in FRAMES},
    )


def echo_patient(name: str, index: int, size: int = 128, seed: int = 0) -> Iterator[Volume]:
    """The four volumes of the made-up patient ``index`` (from 1) of ``seed``."""
    heart = _heart(seed, index)
    positions = pixel_positions(size)
    sector = draw_sector(np.random.default_rng([seed, index, 1]))
    spacing = (1.0, SIDE_MM / size, SIDE_MM / size)
    for number, view in enumerate(VIEWS):
        diastole = draw_apical(np.random.default_rng([seed, index, 2, number]), heart, view)
        for phase, instant in enumerate(INSTANTS):
            apical = diastole.contracted(heart["ejection"]) if instant == "ES" else diastole
            image = image_of(apical, view, sector, size, np.random.default_rng([seed, index, 3, number, phase]))
            yield Volume(name, f"{view}_{instant}", image[None], apical.label(positions)[None], spacing)


def ejection_group(percent: float) -> str:
    """Class of an ejection fraction in percent, by which CAMUS balances its folds (Leclerc et al., IEEE TMI 2019)."""
    return "EF <= 45" if percent <= 45 else "EF >= 55" if percent >= 55 else "EF 45-55"


def _heart(seed: int, index: int) -> dict[str, float]:
    return draw_heart(np.random.default_rng([seed, index]))


def _read(keys: dict[str, int], size: int, seed: int, patient: str) -> Iterator[Volume]:
    return echo_patient(patient, keys[patient], size, seed)
