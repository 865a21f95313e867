"""Drawing with signed distances: anti-aliased shapes, coloured noise, and the steps from tissue to a magnitude image.

Positions are complex numbers, x + iy in mm, x to the right and y downwards, with 0 at the centre of the image. A canvas
holds a *signed* signal: water is positive, fat negative. Its magnitude is taken last, so that a pixel shared by fat and
water is dark, the black boundary that a balanced steady-state cine shows around every organ in fat.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]
Positions = NDArray[np.complexfloating]


@dataclass(frozen=True)
class Tissue:
    """Signals of one slice relative to blood, textured where they are arrays (H, W); and the fields they came from."""

    positions: Positions
    coarse: Field
    fine: Field
    blood: Field
    right_blood: Field
    muscle: Field
    liver: Field
    fat: Field
    lung: Field


def pixel_positions(height: int, width: int, pixel: float) -> Positions:
    """Positions in mm of the pixel centres, complex64 (height, width); ``pixel`` is the spacing in mm."""
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) * np.float32(pixel)
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) * np.float32(pixel)
    return (x[None, :] + 1j * y[:, None]).astype(np.complex64)


def coloured_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], exponent: float, longest: float, shortest: float = 2.0
) -> Field:
    """Independent 2-D fields (n, H, W) float32 with mean 0, standard deviation 1 and amplitude ~ frequency^-exponent.

    Wavelengths (in pixels) above ``longest`` are flattened and those below ``shortest`` removed.
    """
    # Imported here, because it takes 0.2 s and phantoms that lie on disk need none of it.
    from scipy import fft

    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    rows = fft.fftfreq(shape[1])[:, None]
    columns = fft.rfftfreq(shape[2])[None, :]
    frequency = np.hypot(rows, columns)
    gain = np.maximum(frequency, 1 / longest) ** -exponent * np.exp(-((frequency * shortest / 1.4) ** 4))
    gain[0, 0] = 0
    noise = fft.irfft2(spectrum * gain.astype(np.float32), s=shape[1:])
    return noise / noise.std(axis=(1, 2), keepdims=True)


def harmonics(rng: np.random.Generator, amplitude: float, orders: int = 5) -> Positions:
    """Complex weights of the angular orders 2 to ``orders`` of an outline, smaller for finer ones; for :func:`blob`."""
    order = np.arange(2, orders + 1)
    weights = rng.standard_normal(order.size) + 1j * rng.standard_normal(order.size)
    return (amplitude * weights / order).astype(np.complex64)


def outline(unit: Positions, weights: Positions) -> Field:
    """1 + the sum of ``weights`` times cos and sin of the angle's multiples; ``unit`` is e^(i angle), any shape."""
    total = np.ones(unit.shape, np.float32)
    power = unit * unit
    for weight in weights:
        total += (weight * power).real
        power = power * unit
    return total


def blob(positions: Positions, centre: complex, radii: tuple[float, float], angle: float, weights: Positions) -> Field:
    """Signed distance in mm (negative inside, to first order) from an ellipse whose outline is bent by ``weights``.

    ``positions`` are those of :func:`pixel_positions`; ``radii`` are the half axes in mm along and across the direction
    ``angle`` (radians). More than 15 mm away the distance is a constant 99, because only the
    window around the shape is computed.
    """
    reach = max(radii) * (1 + float(np.abs(weights).sum())) + 15
    step = float(positions[0, 1].real - positions[0, 0].real)
    corner = (centre - complex(positions[0, 0])) / step
    top, left = int(corner.imag - reach / step), int(corner.real - reach / step)
    bottom, right = int(corner.imag + reach / step) + 2, int(corner.real + reach / step) + 2
    window = (slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0)))

    local = (positions[window] - np.complex64(centre)) * np.complex64(np.exp(-1j * angle))
    scaled = local.real / np.float32(radii[0]) + 1j * (local.imag / np.float32(radii[1]))
    radius = np.abs(scaled) + np.float32(1e-6)
    slope = np.hypot(scaled.real / np.float32(radii[0]), scaled.imag / np.float32(radii[1])) / radius + 1e-6
    distance = np.full(positions.shape, 99, np.float32)
    distance[window] = (radius - outline(scaled / radius, weights)) / slope
    return distance


def coverage(distance: Field, softness: float) -> Field:
    """The share of a pixel that lies inside (0 to 1), from its signed distance and the width of the edge in mm."""
    return np.clip(0.5 - distance / np.float32(softness), 0, 1)


def paint(signal: Field, distance: Field, value: Field | float, softness: float) -> None:
    """Cover ``signal`` (H, W) in place with ``value`` inside ``distance < 0``, blending across the edge."""
    signal += coverage(distance, softness) * (value - signal)


def magnitude(
    signal: Field, sensitivity: Field, noise: float, rng: np.random.Generator, clip_percentile: float
) -> Field:
    """Magnitude (Z, H, W) of the signed signal under receive ``sensitivity`` and complex noise, scaled to 0..1000.

    As in ACDC's public copies the brightest pixels are clipped and the volume is min-max scaled to whole numbers.
    """
    real = signal * sensitivity + noise * rng.standard_normal(signal.shape, dtype=np.float32)
    image = np.hypot(real, noise * rng.standard_normal(signal.shape, dtype=np.float32))
    low, high = image.min(), np.percentile(image, clip_percentile)
    return np.rint(np.clip((image - low) / (high - low), 0, 1) * 1000).astype(np.float32)
