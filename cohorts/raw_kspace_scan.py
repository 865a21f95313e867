"""Measured k-space as every reader of it hands it over, its faults, and one such scan on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seggym.cohorts.cohort import Volume
from seggym.cohorts.scans import NOMINAL_SPACING, Complain, Scan, label_faults


@dataclass(frozen=True)
class RawScan:
    """Measured k-space of one stack of slices.

    kspace complex64 (Z, J, R, L): slices, receive coils, R samples along the readout with DC at R // 2, L phase-encode
    lines with DC at L // 2; oversampling of the readout is removed, and lines that were never measured are zeros.
    spacing (z, readout, line) in mm of a pixel of the full image.
    """

    kspace: np.ndarray
    spacing: tuple[float, float, float] = NOMINAL_SPACING


@dataclass(frozen=True)
class RawCase:
    """One stack of raw k-space on disk, not yet read; the twin of :class:`seggym.cohorts.cases.Case`.

    ``read`` and ``read_label`` return None after a complaint. Labels (Z, R, L) are drawn on the image of ``read``;
    without ``read_label`` everything is background.
    """

    patient: str
    frame: str
    group: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    read: Callable[[Complain], RawScan | None]
    read_label: Callable[[Complain], Scan | None] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the volume."""
        return self.images + self.labels

    def load(self, num_classes: int, complain: Complain) -> Volume | None:
        """Read the volume; every fault in it goes to ``complain``, and then the result is None."""
        faults = []

        def note(path: Path, message: str) -> None:
            faults.append(path)
            complain(path, message)

        scan = self.read(note)
        drawn = self.read_label(note) if self.read_label else None
        if scan is not None:
            for fault in kspace_faults(scan.kspace):
                note(self.images[0], fault)
        if drawn is not None:
            for fault in label_faults(drawn.values, num_classes - 1):
                note(self.labels[0], fault)
            if scan is not None and drawn.values.shape != (shape := image_shape(scan.kspace)):
                note(
                    self.labels[0],
                    f"has shape {drawn.values.shape} (slices, readout, lines), expected {shape} as the image of "
                    f"{self.images[0].name}; draw it on that image",
                )
        if faults or scan is None:
            return None
        label = np.zeros(image_shape(scan.kspace), np.uint8) if drawn is None else drawn.values
        return Volume(
            patient=self.patient,
            frame=self.frame,
            image=root_sum_of_squares(scan.kspace),
            label=np.ascontiguousarray(label, dtype=np.uint8),
            spacing=scan.spacing,
            kspace=scan.kspace,
        )


def image_shape(kspace: np.ndarray) -> tuple[int, int, int]:
    """(Z, R, L) of k-space (Z, J, R, L)."""
    slices, _, samples, lines = kspace.shape
    return slices, samples, lines


def kspace_faults(kspace: np.ndarray) -> list[str]:
    """What makes k-space (Z, J, R, L) unfit as a measurement."""
    if 0 in kspace.shape:
        return [f"has k-space of shape {kspace.shape} (slices, coils, readout, lines), expected no empty axis"]
    if not np.isfinite(kspace).all():
        return ["holds NaN or infinite samples, expected finite ones; export it again"]
    silent = np.flatnonzero(~kspace.any((0, 2, 3)))
    if len(silent) == kspace.shape[1]:
        return ["holds zeros only, expected measured k-space; export it again"]
    if len(silent):
        coils = ", ".join(map(str, silent))
        return [f"has no signal in coil {coils} of {kspace.shape[1]} (from 0), expected some in each; export it again"]
    empty = np.flatnonzero(~kspace.any((1, 2, 3)))
    if len(empty):
        return [f"has no sample in slice {', '.join(map(str, empty))} (from 0), expected some in each; export it again"]
    return []


def without_oversampling(kspace: np.ndarray, samples: int) -> np.ndarray:
    """``kspace`` (Z, J, R, L) with the field of view along the readout cut to its central ``samples`` pixels."""
    length = kspace.shape[2]
    if samples >= length:
        return kspace
    hybrid = ifftc(kspace, 2)
    first = length // 2 - samples // 2
    return fftc(hybrid[:, :, first : first + samples], 2).astype(np.complex64)


def root_sum_of_squares(kspace: np.ndarray) -> np.ndarray:
    """The image of all coils, float32 (Z, R, L)."""
    images = np.abs(ifftc(ifftc(kspace, 2), 3))
    return np.sqrt(np.square(images).sum(1)).astype(np.float32)


def fftc(values: np.ndarray, axis: int) -> np.ndarray:
    """Centred, orthonormal transform of one axis to k-space."""
    shifted = np.fft.fft(np.fft.ifftshift(values, axes=axis), axis=axis, norm="ortho")
    return np.fft.fftshift(shifted, axes=axis)


def ifftc(values: np.ndarray, axis: int) -> np.ndarray:
    """Centred, orthonormal transform of one axis to the image: the inverse of :func:`fftc`."""
    shifted = np.fft.ifft(np.fft.ifftshift(values, axes=axis), axis=axis, norm="ortho")
    return np.fft.fftshift(shifted, axes=axis)


def as_complex(values: np.ndarray) -> np.ndarray | None:
    """``values`` as complex64, also from MATLAB's and ISMRMRD's pairs named real and imag; None if they are real."""
    if values.dtype.names is not None:
        if set(values.dtype.names) != {"real", "imag"}:
            return None
        joined = np.empty(values.shape, np.complex64)
        joined.real, joined.imag = values["real"], values["imag"]
        return joined
    return values.astype(np.complex64, copy=False) if np.iscomplexobj(values) else None
