"""A few small made-up hearts, so that every reader can write a cohort in its own layout for tests and trials."""

from collections.abc import Iterator

import numpy as np

from seggym.cohorts.cohort import Volume

GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")
SPACING = (10.0, 1.5625, 1.5625)
_SHAPE = (3, 160, 176)


def example_patient(index: int, frames: tuple[str, ...] = ("frame01", "frame09")) -> tuple[str, Iterator[Volume]]:
    """Group and volumes of the made-up patient ``index`` (from 1): image 0 to 1000 and labels 0 to 3, (3, 160, 176)."""
    patient = f"patient{index:03d}"
    volumes = (_heart(patient, frame, np.random.default_rng([index, order])) for order, frame in enumerate(frames))
    return GROUPS[(index - 1) % len(GROUPS)], volumes


def _heart(patient: str, frame: str, rng: np.random.Generator) -> Volume:
    z, y, x = np.indices(_SHAPE, dtype=np.float32)
    centre_y, centre_x = _SHAPE[1] / 2 + rng.uniform(-6, 6), _SHAPE[2] / 2 + rng.uniform(-6, 6)
    radius = np.hypot(y - centre_y, x - centre_x)
    inner = rng.uniform(10, 16) - 2 * z
    label = np.zeros(_SHAPE, np.uint8)
    label[np.hypot(y - centre_y, (x - centre_x + inner + 12) / 0.8) < inner + 4] = 1
    label[radius < inner + 7] = 2
    label[radius < inner] = 3
    body = np.hypot((y - _SHAPE[1] / 2) / 72, (x - _SHAPE[2] / 2) / 80) < 1
    brightness = np.array([250, 800, 350, 850], np.float32)[label] * body
    image = np.clip(brightness + rng.normal(0, 20, _SHAPE), 0, 1000)
    # The scribble of ACDC: a few drawn lines carry the label, 4 is unlabelled.
    scribble = np.where(y.astype(int) % 16 == 0, label, 4).astype(np.uint8)
    return Volume(patient, frame, np.rint(image).astype(np.float32), label, SPACING, scribble)
