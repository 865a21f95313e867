"""k-space of a few small made-up hearts, as several coils see them, for the examples of the raw readers."""

import numpy as np

from seggym.cohorts.cohort import Volume
from seggym.cohorts.examples import example_patient
from seggym.cohorts.raw_kspace_scan import fftc

SLICES = 2
OVERSAMPLING = 2


def example_volume(index: int) -> Volume:
    """The made-up patient ``index`` (from 1) with its labels, two slices of 160 x 176."""
    _, volumes = example_patient(index, frames=("frame01",))
    volume = next(volumes)
    return Volume(volume.patient, volume.frame, volume.image[:SLICES], volume.label[:SLICES], volume.spacing)


def example_kspace(index: int, coils: int) -> tuple[str, np.ndarray]:
    """Name and k-space complex64 (2, J, 320, 176) of a made-up patient: rows of the image are read out, two-fold.

    Each coil sees the heart from its place on a circle around it; phase is smooth and noise a 200th of the brightest.
    """
    volume = example_volume(index)
    rng = np.random.default_rng([index, coils])
    rows, columns = volume.image.shape[1:]
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    turn = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    near = 1 / (1 + np.square(y - np.sin(turn)) + np.square(x - np.cos(turn)))
    phase = turn + rng.uniform(-1, 1) * y + rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * x * y
    seen = volume.image[:, None] / 1000 * near * np.exp(1j * phase)
    seen = seen + 0.005 * (rng.normal(size=seen.shape) + 1j * rng.normal(size=seen.shape))
    margin = (OVERSAMPLING - 1) * rows // 2
    wide = np.pad(seen, ((0, 0), (0, 0), (margin, margin), (0, 0)))
    return volume.patient, fftc(fftc(wide, 2), 3).astype(np.complex64)


def example_header(shape: tuple[int, ...], patient: str, last: int, centre: int) -> str:
    """ISMRMRD's XML header of k-space (Z, J, R, L) with lines numbered from 0 to ``last`` and DC at ``centre``."""
    samples, lines = shape[2:]
    pixel = example_volume(1).spacing[1]

    def space(name: str, width: int, height: int) -> str:
        sizes = {"matrixSize": (width, height, 1), "fieldOfView_mm": (width * pixel, height * pixel, 10)}
        inner = "".join(f"<{key}><x>{x}</x><y>{y}</y><z>{z}</z></{key}>" for key, (x, y, z) in sizes.items())
        return f"<{name}>{inner}</{name}>"

    return (
        '<?xml version="1.0" encoding="UTF-8"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<subjectInformation><patientID>{patient}</patientID></subjectInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding>{space('encodedSpace', samples, lines)}{space('reconSpace', samples // OVERSAMPLING, lines)}"
        f"<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>"
        f"<center>{centre}</center></kspace_encoding_step_1></encodingLimits>"
        "<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
    )
