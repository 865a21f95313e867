"""Simulated measurement of prepared slices, and reconstruction from the lines measured so far.

The measurement is kept in *hybrid space*: readout samples are already transformed to the image domain, the columns are
still phase-encode lines. One more line is then a rank-1 update of each coil's complex image, and the central crop
needs only the rows of the crop. Measurements and images have an axis of J coils.
"""

import torch

from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.coils import birdcage
from seggym.kspace.keyed_random import complex_normal, uniform
from seggym.kspace.transforms import centre_crop, fftc, ifftc, polar

# Streams of an episode's key; the numbers are part of the definition of an episode and must not change.
PHASE_STREAM = 10
NOISE_STREAM = 11
CORRUPTION_STREAM = 12
ANGLE_STREAM = 13
AXIS_STREAM = 14
PATIENT_STREAM = 15

_PHASE_MODES = 4


def smooth_phase(keys: torch.Tensor, amplitude: torch.Tensor, echo_shift: torch.Tensor, size: int) -> torch.Tensor:
    """Phase maps in rad, (B, size, size) in the dtype of ``amplitude``.

    A sum of four plane waves with at most one cycle per field of view in each direction, scaled to [-amplitude,
    amplitude], plus the linear ramp along the columns that displaces the echo by ``echo_shift`` lines.
    """
    draws = uniform(keys, PHASE_STREAM, 4 * _PHASE_MODES, -1.0, 1.0).to(amplitude.dtype)
    weight, row_frequency, column_frequency, offset = draws.view(-1, 4, _PHASE_MODES).unbind(1)
    position = (torch.arange(size, device=keys.device, dtype=amplitude.dtype) - size // 2) / size
    row_angle = torch.pi * (2 * row_frequency[..., None] * position + offset[..., None])
    column_angle = 2 * torch.pi * column_frequency[..., None] * position
    strength = (0.75 + 0.25 * weight)[..., None]
    # cos(a + b) = cos a cos b - sin a sin b, summed over the modes: trigonometric functions of 2 x size instead of
    # size x size arguments. No product of matrices, for the reason that :func:`add_lines` has.
    rows = torch.cat([strength * row_angle.cos(), -strength * row_angle.sin()], 1)
    columns = torch.cat([column_angle.cos(), column_angle.sin()], 1)
    phase = rows[:, 0, :, None] * columns[:, 0, None, :]
    for term in range(1, rows.shape[1]):
        phase.addcmul_(rows[:, term, :, None], columns[:, term, None, :])
    low, high = (bound[:, None, None] for bound in torch.aminmax(phase.flatten(1), dim=1))
    phase.sub_((low + high) / 2).mul_(2 * amplitude[:, None, None] / (high - low))
    return phase.add_(2 * torch.pi * echo_shift[:, None, None] * position)


def rows_encoded(keys: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """Which of the episodes ``keys`` int64 (B,) encode phase along the rows of the stored image: bool (B,).

    Such a scan sees the image transposed, and its reconstruction is turned back (:func:`upright`).
    """
    if acquisition.phase_encode == "columns":
        return torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    return uniform(keys, AXIS_STREAM, 1)[:, 0] < 0.5


def upright(images: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:
    """``images`` (B, C, C) as stored: those in ``transposed`` bool (B,) with their axes exchanged."""
    return torch.where(transposed[:, None, None], images.mT, images)


def objects(
    stack: SliceStack,
    indices: torch.Tensor,
    keys: torch.Tensor,
    acquisition: Acquisition,
    dtype: torch.dtype,
    transposed: torch.Tensor,
    anew: bool = False,
) -> torch.Tensor:
    """What the coils see: complex images (B, J, G, G) of slices ``indices`` with the phase of ``keys``, int64 (B,).

    ``anew`` draws phase amplitude and echo shift from the keys as well, from the ranges of ``acquisition``, instead of
    once per patient.
    """
    grid = acquisition.grid
    amplitude, shift = stack.phase_amplitude[indices], stack.echo_shift[indices]
    if anew:
        drawn = uniform(keys, PATIENT_STREAM, 2)
        low, high = acquisition.phase
        amplitude = low + (high - low) * drawn[:, 0]
        shift = acquisition.echo_shift * (2 * drawn[:, 1] - 1)
    phase = smooth_phase(keys, amplitude.to(dtype), shift.to(dtype), grid)
    image = polar(upright(stack.images[indices].to(dtype), transposed), phase)[:, None]
    return image * birdcage(acquisition.coils, grid).to(image) if acquisition.coils > 1 else image


def encode(
    stack: SliceStack,
    indices: torch.Tensor,
    keys: torch.Tensor,
    acquisition: Acquisition,
    dtype: torch.dtype,
    transposed: torch.Tensor | None = None,
    anew: bool = False,
) -> torch.Tensor:
    """Noise-free hybrid space (B, J, M, M) of slices ``indices`` int64 (B,) with the phase of ``keys`` int64 (B,).

    ``transposed`` bool (B,) overrules which axis the keys encode phase along (:func:`rows_encoded`), ``anew`` draws
    what :func:`objects` draws once per patient. Of slices whose
    k-space was measured it is what was measured, and the keys decide nothing.
    """
    if stack.hybrid is not None:
        return torch.view_as_complex(stack.hybrid[indices].to(dtype))
    if transposed is None:
        transposed = rows_encoded(keys, acquisition)
    return hybrid_space(objects(stack, indices, keys, acquisition, dtype, transposed, anew), acquisition)


def hybrid_space(image: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """Hybrid space (B, J, M, M) of complex images (B, J, G, G)."""
    grid, matrix = acquisition.grid, acquisition.matrix
    # Phase encoding first: readouts need to be transformed for the lines of the matrix only.
    lines = centre_crop(fftc(image, (-1,)), matrix, (-1,))
    kspace = centre_crop(fftc(lines, (-2,)), matrix, (-2,))
    return ifftc(kspace, (-2,)).mul_(matrix / grid)


def thermal_noise(
    stack: SliceStack, indices: torch.Tensor, keys: torch.Tensor, acquisition: Acquisition
) -> torch.Tensor:
    """Noise of every line in hybrid space, complex64 (B, J, M, M); white, as the transforms are orthonormal.

    Zeros where the scan has none (``acquisition.snr`` is None).
    """
    shape = (acquisition.coils, acquisition.matrix, acquisition.matrix)
    if acquisition.snr is None:
        return torch.zeros(len(keys), *shape, dtype=torch.complex64, device=keys.device)
    sigma = stack.signal[indices] / acquisition.snr
    noise = complex_normal(keys, NOISE_STREAM, shape[0] * shape[1] * shape[2]).view(-1, *shape)
    return noise.mul_(sigma[:, None, None, None])


def corruption(
    keys: torch.Tensor, numbers: torch.Tensor, acquisition: Acquisition
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether measurements are corrupted, bool, and the factor of their samples, complex64; both (B, n).

    ``numbers`` int64 (n,) or (B, n) tells the measurements of an episode apart: view + V * how often it was measured.
    """
    corrupted = uniform(keys, CORRUPTION_STREAM, numbers) < acquisition.corruption
    angle = uniform(keys, ANGLE_STREAM, numbers, -torch.pi, torch.pi)
    return corrupted, polar(torch.ones_like(angle), torch.where(corrupted, angle, 0))


def line_phases(acquisition: Acquisition, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What a line adds along the columns of the crop: complex (M, C), row c is the inverse DFT of a unit at line c."""
    matrix = acquisition.matrix
    unit = torch.complex(torch.eye(matrix, dtype=dtype, device=device), torch.zeros((), dtype=dtype, device=device))
    return centre_crop(ifftc(unit, (-1,)), acquisition.crop, (-1,)).contiguous()


def line_factors(signal: torch.Tensor, phases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors that :func:`add_lines` multiplies, float (B, J * 2 * C, 2) and (B, 2, C).

    signal complex (B, J, C): the line as each coil measured it, at the rows of the crop, zero to add nothing; phases
    complex (B, C): its row of :func:`line_phases`.
    """
    real, imaginary = signal.real, signal.imag
    # (a + bi)(c + di): the real plane gets a c - b d, the imaginary one b c + a d.
    left = torch.stack([torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)], 2)
    return left.flatten(1, 3), torch.view_as_real(phases).transpose(1, 2).contiguous()


def add_lines(planes: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add one line per scan to its images in place: rank-1 updates in real numbers.

    planes float (B, J, 2, C, C): real and imaginary part of each coil's image; the rest from :func:`line_factors`.
    The parts lie apart, because a processor takes the magnitude of complex numbers half as fast. No matrix product is
    used: a GPU may be told to round the factors of one to 10 bits (TF32).
    """
    rows = planes.view(len(planes), -1, planes.shape[-1])
    rows.addcmul_(left[..., :1], right[:, :1]).addcmul_(left[..., 1:], right[:, 1:])


def to_planes(images: torch.Tensor) -> torch.Tensor:
    """Complex images (B, J, C, C) as real and imaginary planes: float (B, J, 2, C, C)."""
    return torch.view_as_real(images).movedim(-1, 2).contiguous()


def root_sum_of_squares(planes: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The magnitude image of all coils: float (B, C, C) from planes (B, J, 2, C, C); into ``out`` where it is given."""
    first, *others = planes.flatten(1, 2).unbind(1)
    total = torch.mul(first, first, out=out)
    for plane in others:
        total.addcmul_(plane, plane)
    return total.sqrt_()


def reconstruct(hybrid: torch.Tensor, acquired: torch.Tensor | None, acquisition: Acquisition) -> torch.Tensor:
    """Zero-filled complex images (B, J, C, C) from the lines in ``acquired`` bool (B, M), None for all of them.

    The direct transform, which the rank-1 updates of :func:`add_lines` are equal to.
    """
    rows = centre_crop(hybrid, acquisition.crop, (-2,))
    if acquired is not None:
        rows = rows * acquired[:, None, None, :]
    return centre_crop(ifftc(rows, (-1,)), acquisition.crop, (-1,))


def zero_filled(
    hybrid: torch.Tensor,
    acquired: torch.Tensor | None,
    acquisition: Acquisition,
    transposed: torch.Tensor | None = None,
) -> torch.Tensor:
    """The magnitude float (B, C, C) of :func:`reconstruct`, turned back where ``transposed`` bool (B,) says so."""
    magnitude = root_sum_of_squares(to_planes(reconstruct(hybrid, acquired, acquisition)))
    return magnitude if transposed is None else upright(magnitude, transposed)
