"""The scan protocol, and slices prepared for it.

Magnitude volumes become what the simulated scanner sees: the whole field of view, padded to a square and band-limited
to the acquisition matrix plus a guard band, so that a smooth phase can be applied before k-space is cropped.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from seggym.configs.checking import require_at_least, require_choices
from seggym.errors import SeggymError
from seggym.kspace import measured, orders
from seggym.kspace.keyed_random import key_of, uniform
from seggym.kspace.transforms import centre_crop, fftc, ifftc

PHASE_ENCODE = ("columns", "random")
TRAJECTORIES = ("lines", "radial", "points")
ANGLES = ("uniform", "golden")

# Lines kept beyond the matrix on either side, beside those of the echo shift. A phase of 3 rad with at most one cycle
# per field of view spreads a line over about 5 neighbours; with 16 the truncation changes the signal of an object with
# sharp edges by less than 0.1 % (root of the energy), far below the noise.
GUARD_BAND = 16


@dataclass(frozen=True)
class Acquisition:
    """The protocol of the scan. Measured k-space has the noise and the phase that it has: ``snr``, ``phase`` and
    ``echo_shift`` say nothing about it.

    matrix: number of phase-encode lines and of readout samples (M).
    crop: side of the central crop of the reconstruction that the network sees (C <= M).
    snr: mean signal of the central quarter of the field of view over the standard deviation of the noise in the real
        and in the imaginary part of a fully sampled image; None (null in a file; an infinite one becomes None) is a
        scan without noise.
    phase: range of the amplitude of the smooth phase in rad; one draw per patient.
    echo_shift: largest displacement of the echo along the phase-encode axis in lines; one draw per patient.
    initial_lines: size of the block around DC that is measured before the first action; odd. Of points it is the side
        of a square; of spokes their number, spread evenly, which may be even.
    coils: receive coils around the object (:mod:`seggym.kspace.coils`), combined by the root of the sum of squares;
        every coil has the noise that ``snr`` gives to a single uniform one. Those of measured k-space are compressed
        to as many virtual ones.
    orientation: largest angle in degrees by which the anatomy is turned in the field of view; one draw per patient.
    field_of_view: range of the factor by which the field of view is larger than the image that it is simulated from;
        one draw per patient. At least 1: a smaller one would fold over.
    phase_encode: axis of phase encoding: "columns" of the image, or "random", columns or rows with equal probability
        per episode.
    corruption: probability that a measured line is out of phase with the others, as a heart beat out of step leaves
        it: all its samples are turned by one angle, uniform over the circle. Drawn anew for every measurement.
    trajectory: what an action measures: "lines", phase-encode lines; "radial", spokes through the centre of k-space,
        M samples each (:mod:`seggym.kspace.radial`); "points" of the M x M grid, as a 3-D scan with its readout
        perpendicular to the slice has them (:mod:`seggym.kspace.points`). Samples of all have the same noise.
    spokes: number of candidate spokes; angles: they are "uniform" over half a turn, or numbered by the "golden" angle.
    block: side of the squares of points that one action measures; it divides the matrix.
    """

    matrix: int = 160
    crop: int = 128
    snr: float | None = 20.0
    phase: tuple[float, float] = (0.5, 3.0)
    echo_shift: float = 4.0
    initial_lines: int = 3
    coils: int = 1
    orientation: float = 0.0
    field_of_view: tuple[float, float] = (1.0, 1.0)
    phase_encode: str = "columns"
    corruption: float = 0.0
    trajectory: str = "lines"
    spokes: int = 64
    angles: str = "uniform"
    block: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.matrix:
            raise SeggymError(f"crop={self.crop} does not fit matrix={self.matrix}: choose 0 < crop <= matrix")
        self._check_trajectory()
        if self.echo_shift < 0:
            raise SeggymError(f"echo_shift={self.echo_shift} is the largest displacement in lines, expected 0 or more")
        require_at_least(self, coils=1)
        if self.snr == math.inf:
            # JSON has no infinity, and records of a scan are JSON.
            object.__setattr__(self, "snr", None)
        if self.snr is not None and not self.snr > 0:
            raise SeggymError(f"snr={self.snr} must be a positive number (null for a scan without noise)")
        if self.phase_encode not in PHASE_ENCODE:
            raise SeggymError(f"phase_encode={self.phase_encode!r} is unknown, expected {' or '.join(PHASE_ENCODE)}")
        if not 0 <= self.corruption < 1:
            raise SeggymError(f"corruption={self.corruption} is a probability, expected 0 <= corruption < 1")
        if not 0 <= self.orientation <= 180:
            raise SeggymError(f"orientation={self.orientation} is an angle in degrees, expected 0 to 180")
        for name in ("phase", "field_of_view"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
        if not 1 <= self.field_of_view[0] <= self.field_of_view[1]:
            raise SeggymError(f"field_of_view={list(self.field_of_view)} must be [low, high] with 1 <= low <= high")

    def _check_trajectory(self) -> None:
        require_choices(self, {"trajectory": TRAJECTORIES, "angles": ANGLES})
        if self.trajectory == "radial":
            if not 0 < self.initial_lines < self.spokes:
                raise SeggymError(
                    f"initial_lines={self.initial_lines} must be a number of spokes, at least 1 and below "
                    f"spokes={self.spokes}"
                )
        elif self.initial_lines % 2 != 1 or not 0 < self.initial_lines < self.matrix:
            raise SeggymError(
                f"initial_lines={self.initial_lines} must be an odd number below matrix={self.matrix}: the block is "
                "centred on DC"
            )
        if self.block < 1 or self.matrix % self.block:
            raise SeggymError(f"block={self.block} does not divide matrix={self.matrix}: choose one that does")
        if self.trajectory != "lines" and self.phase_encode != "columns":
            raise SeggymError(
                f"phase_encode={self.phase_encode!r} is the axis of phase-encode lines, trajectory={self.trajectory!r} "
                "has none: leave it out"
            )

    @property
    def num_views(self) -> int:
        """What an action chooses among: the number of lines, spokes, or points (blocks of them)."""
        return {"lines": self.matrix, "radial": self.spokes, "points": (self.matrix // self.block) ** 2}[
            self.trajectory
        ]

    @property
    def initial_views(self) -> np.ndarray:
        """Indices of the views that are measured before the first action, int64.

        Of points: those that hold a sample of the central square of ``initial_lines`` x ``initial_lines``.
        """
        count = self.initial_lines
        if self.trajectory == "radial":
            numbers = np.arange(count)
            return numbers * self.spokes // count if self.angles == "uniform" else numbers
        block = orders.initial_block(self.matrix, count)
        if self.trajectory == "lines":
            return block
        touched = np.unique(block // self.block)
        return (touched[:, None] * (self.matrix // self.block) + touched).ravel()

    @property
    def dc(self) -> int:
        """Index of the line through the centre of k-space."""
        return self.matrix // 2

    @property
    def grid(self) -> int:
        """Side of a prepared slice: the matrix and its guard bands."""
        return self.matrix + 2 * (GUARD_BAND + math.ceil(self.echo_shift))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for records beside a network."""
        return {**asdict(self), "phase": list(self.phase), "field_of_view": list(self.field_of_view)}


class VolumeLike(Protocol):
    """What :func:`prepare` reads of a volume; ``seggym.cohorts.cohort.Volume`` has it."""

    @property
    def patient(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def image(self) -> np.ndarray: ...
    @property
    def label(self) -> np.ndarray: ...
    @property
    def spacing(self) -> tuple[float, float, float]: ...
    @property
    def kspace(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class SliceStack:
    """Slices prepared for an :class:`Acquisition`; n slices, grid G, crop C.

    images float32 (n, G, G): magnitude on the whole field of view; labels uint8 (n, C, C); signal float32 (n,):
    reference signal of the SNR; data_range float32 (n,): maximum of the volume, for SSIM and PSNR;
    phase_amplitude and echo_shift float32 (n,): rad and lines, one draw per patient; spacing float32 (n, 3): z, y, x
    in mm at matrix resolution; patients, volumes, positions: patient name, volume name and slice index of each slice.

    Slices whose k-space was measured have it in hybrid float32 (n, J, M, M, 2): real and imaginary part of hybrid space
    (:mod:`seggym.kspace.simulation`), in a unit of each volume's own; available bool (n, M) are the lines that were
    measured, the others are zeros and never candidates. Nothing is simulated then: signal, phase_amplitude and
    echo_shift are 0, and images, of all lines, are on the matrix (n, M, M).
    """

    images: torch.Tensor
    labels: torch.Tensor
    signal: torch.Tensor
    data_range: torch.Tensor
    phase_amplitude: torch.Tensor
    echo_shift: torch.Tensor
    spacing: torch.Tensor
    patients: tuple[str, ...]
    volumes: tuple[str, ...]
    positions: tuple[int, ...]
    num_classes: int
    hybrid: torch.Tensor | None = None
    available: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.patients)

    @property
    def names(self) -> list[str]:
        """``<volume>_slice<position>`` of every slice; unique."""
        return [f"{volume}_slice{position}" for volume, position in zip(self.volumes, self.positions, strict=True)]

    def to(self, device: torch.device) -> "SliceStack":
        """The same slices with their tensors on ``device``."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return SliceStack(**{**vars(self), **moved})


def prepare(volumes: Iterable[VolumeLike], acquisition: Acquisition, num_classes: int) -> SliceStack:
    """Bring every slice of ``volumes`` onto the grid of ``acquisition``; labels follow by nearest neighbour."""
    rows: dict[str, list[Any]] = {name: [] for name in SliceStack.__dataclass_fields__ if name != "num_classes"}
    for volume in volumes:
        depth = len(volume.image)
        rows["patients"] += [volume.patient] * depth
        rows["volumes"] += [volume.name] * depth
        rows["positions"] += list(range(depth))
        if volume.kspace is not None:
            for name, values in _measured(volume, volume.kspace, acquisition).items():
                rows[name] += values
            continue
        patient_key = torch.tensor([key_of(volume.patient)])
        angle = uniform(patient_key, 2, 1, -acquisition.orientation, acquisition.orientation).item()
        wider = uniform(patient_key, 3, 1, *acquisition.field_of_view).item()
        magnitude, label = turned(volume.image, angle, order=3), turned(volume.label, angle, order=0)
        side = _square_side(volume.image.shape[1:], wider)
        image = prepare_image(torch.from_numpy(np.ascontiguousarray(magnitude, dtype=np.float32)), acquisition, wider)
        seen = centre_crop(_resample(image, acquisition.matrix), acquisition.crop, (-2, -1))
        quarter = image.shape[-1] // 4
        amplitude = uniform(patient_key, 0, 1, *acquisition.phase).item()
        shift = uniform(patient_key, 1, 1, -acquisition.echo_shift, acquisition.echo_shift).item()
        step = side / acquisition.matrix
        rows["images"].append(image)
        rows["labels"].append(torch.from_numpy(prepare_label(label, acquisition, wider)))
        rows["signal"] += [centre_crop(image, quarter, (-2, -1)).abs().mean().item()] * depth
        rows["data_range"] += [seen.abs().max().item()] * depth
        rows["phase_amplitude"] += [amplitude] * depth
        rows["echo_shift"] += [shift] * depth
        rows["spacing"] += [(volume.spacing[0], volume.spacing[1] * step, volume.spacing[2] * step)] * depth
    if not rows["patients"]:
        raise SeggymError("there is no slice to scan: the chosen patients hold no volume; check the split and the data")
    return SliceStack(
        images=torch.cat(rows["images"]),
        labels=torch.cat(rows["labels"]),
        signal=torch.tensor(rows["signal"]),
        data_range=torch.tensor(rows["data_range"]),
        phase_amplitude=torch.tensor(rows["phase_amplitude"]),
        echo_shift=torch.tensor(rows["echo_shift"]),
        spacing=torch.tensor(rows["spacing"]),
        patients=tuple(rows["patients"]),
        volumes=tuple(rows["volumes"]),
        positions=tuple(rows["positions"]),
        num_classes=num_classes,
        hybrid=torch.cat(rows["hybrid"]) if rows["hybrid"] else None,
        available=torch.cat(rows["available"]) if rows["available"] else None,
    )


def _measured(volume: VolumeLike, kspace: np.ndarray, acquisition: Acquisition) -> dict[str, list[Any]]:
    """The rows of a stack for a volume with measured ``kspace`` complex (Z, J, R, L)."""
    for name in ("trajectory", "phase_encode", "orientation", "field_of_view", "corruption"):
        value, expected = getattr(acquisition, name), Acquisition.__dataclass_fields__[name].default
        if value != expected:
            raise SeggymError(
                f"{name}={value!r} is about simulated scans, the k-space of {volume.name} was measured: leave it out"
            )
    depth, found = kspace.shape[:2]
    if found < acquisition.coils:
        raise SeggymError(
            f"{volume.name} was measured with {found} coils, expected at least acquisition.coils={acquisition.coils}: "
            f"set acquisition.coils={found}"
        )
    samples = measured.readout_samples(kspace.shape, volume.spacing, acquisition.matrix)
    hybrid, available = measured.hybrid_space(torch.from_numpy(kspace), samples, acquisition.matrix)
    initial = acquisition.initial_views
    missing = [int(line) for line in initial if not available[:, line].all()]
    if missing:
        raise SeggymError(
            f"{volume.name} lacks line {', '.join(map(str, missing))} of {acquisition.matrix} in some slice, which is "
            f"measured before the first action (acquisition.initial_lines={acquisition.initial_lines}): choose fewer, "
            "or leave out the volume"
        )
    # Raw data come in any unit. A power of two changes no digit, and it is taken from lines that are always measured.
    mean = hybrid[..., torch.from_numpy(initial)].abs().square().mean().sqrt().item()
    hybrid = measured.virtual_coils(hybrid * 2.0 ** -round(math.log2(mean)), acquisition.coils, initial)
    image = measured.full_image(hybrid)
    label = measured.labels_at(volume.label, samples, acquisition.matrix, acquisition.crop)
    pixels = (volume.spacing[1] * kspace.shape[2] / samples, volume.spacing[2] * kspace.shape[3] / acquisition.matrix)
    return {
        "images": [image],
        "labels": [torch.from_numpy(label)],
        "hybrid": [torch.view_as_real(hybrid.contiguous())],
        "available": [available],
        "data_range": [centre_crop(image, acquisition.crop, (-2, -1)).max().item()] * depth,
        "spacing": [(volume.spacing[0], *pixels)] * depth,
        **{name: [0.0] * depth for name in ("signal", "phase_amplitude", "echo_shift")},
    }


def turned(volume: np.ndarray, angle: float, order: int) -> np.ndarray:
    """The slices (Z, Y, X) turned by ``angle`` degrees about their centre by splines of ``order``, of the same dtype.

    It is done at the resolution of the file, before k-space is cropped to the matrix, so that the interpolation blurs
    what the matrix does not resolve anyway. Air comes in at the corners.
    """
    if angle == 0:
        return volume
    from scipy import ndimage  # seconds to import, which only those who turn something should pay

    image = volume.astype(np.float32, copy=False)
    result = ndimage.rotate(image, angle, axes=(1, 2), reshape=False, order=order)
    # A spline overshoots at edges; a magnitude is not negative.
    return np.clip(result, volume.min(), volume.max()).astype(volume.dtype)


def prepare_image(image: torch.Tensor, acquisition: Acquisition, wider: float = 1.0) -> torch.Tensor:
    """Pad (..., Y, X) to a square field of view and band-limit it to the grid: float32 (..., G, G).

    ``wider`` is the factor by which the field of view exceeds the smallest square around the image.
    """
    square = centre_crop(image, _square_side(image.shape[-2:], wider), (-2, -1))
    return _resample(square, acquisition.grid)


def prepare_label(label: np.ndarray, acquisition: Acquisition, wider: float = 1.0) -> np.ndarray:
    """Labels (Z, Y, X) at the pixels of the network's crop, by nearest neighbour: uint8 (Z, C, C)."""
    side = _square_side(label.shape[-2:], wider)
    offsets = np.arange(acquisition.crop) - acquisition.crop // 2
    nearest = np.floor(offsets * (side / acquisition.matrix) + 0.5).astype(int)
    sampled = np.zeros((len(label), acquisition.crop, acquisition.crop), np.uint8)
    rows, columns = (nearest + length // 2 for length in label.shape[-2:])
    inside_rows = (rows >= 0) & (rows < label.shape[-2])
    inside_columns = (columns >= 0) & (columns < label.shape[-1])
    picked = label[:, rows[inside_rows]][:, :, columns[inside_columns]]
    sampled[np.ix_(np.arange(len(label)), inside_rows, inside_columns)] = picked
    return sampled


def _square_side(shape: tuple[int, ...] | torch.Size, wider: float = 1.0) -> int:
    """Side of the padded square; even, so that its centre is a pixel of every even grid."""
    side = round(wider * max(shape))
    return side + side % 2


def _resample(image: torch.Tensor, size: int) -> torch.Tensor:
    """Crop or zero-pad the k-space of a real square image to ``size``, keeping its intensities."""
    side = image.shape[-1]
    spectrum = centre_crop(fftc(image.to(torch.complex64), (-2, -1)), size, (-2, -1))
    return ifftc(spectrum, (-2, -1)).real * (size / side)
