"""How an echo phantom is imaged: tissue on the polar grid of a sector, speckle, log compression, scan conversion.

Levels are amplitudes in dB below the brightest tissue. Speckle is the magnitude of complex Gaussian noise that a point
spread function has smoothed, wider across the beam than along it (Wagner et al., IEEE Trans. Sonics Ultrason. 1983).
"""

from dataclasses import dataclass

import numpy as np

from seggym.cohorts.echo_phantom_anatomy import Apical, Field, Positions

_BLOOD, _MUSCLE, _TISSUE, _PERICARDIUM, _VALVE = -42.0, -20.0, -24.0, -7.0, -10.0
_RANGE = 55.0  # dB between black and white


@dataclass(frozen=True)
class Sector:
    """The field of view: half its angle (radians), its depth in sides of the image, and the look of the images.

    ``gain`` shifts all levels (dB), ``haze`` is the level of clutter near the transducer, ``attenuation`` the loss from
    top to bottom (dB), ``contrast`` scales levels about those of muscle.
    """

    half_angle: float
    depth: float
    gain: float
    haze: float
    attenuation: float
    contrast: float


def draw_sector(rng: np.random.Generator) -> Sector:
    """The sector and the settings of one examination."""
    return Sector(
        half_angle=np.deg2rad(rng.uniform(36, 42)),
        depth=rng.uniform(0.96, 1.0),
        gain=rng.normal(0, 2.5),
        haze=rng.uniform(-34, -20),
        attenuation=rng.uniform(0, 8),
        contrast=rng.uniform(0.8, 1.15),
    )


def pixel_positions(size: int) -> Positions:
    """Positions of the pixel centres, complex64 (size, size)."""
    centre = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(size)
    return (centre[None, :] - np.float32(0.5) + 1j * centre[:, None]).astype(np.complex64)


def image_of(apical: Apical, view: str, sector: Sector, size: int, rng: np.random.Generator) -> Field:
    """The image, float32 (size, size) of whole numbers from 0 to 255, black outside of the sector."""
    from scipy import ndimage

    depths, beams = int(1.25 * size), size
    radius = (np.arange(depths, dtype=np.float32) + 0.5) / depths * np.float32(sector.depth)
    angle = np.linspace(-sector.half_angle, sector.half_angle, beams, dtype=np.float32)
    positions = (radius[:, None] * (np.sin(angle) + 1j * np.cos(angle))).astype(np.complex64)

    noise = rng.standard_normal((2, depths, beams), dtype=np.float32)
    speckle = ndimage.gaussian_filter(noise, (0, 0.9, 1.5), mode="nearest")
    envelope = np.hypot(speckle[0], speckle[1])
    level = _levels(apical, view, sector, positions, rng)
    decibels = level + 20 * np.log10(envelope / envelope.mean() + 1e-3)
    grey = np.clip((decibels + _RANGE) / _RANGE, 0, 1)

    pixels = pixel_positions(size)
    rows = np.abs(pixels) / sector.depth * depths - 0.5
    columns = (np.angle(1j * np.conj(pixels)) / sector.half_angle + 1) / 2 * (beams - 1)
    image = ndimage.map_coordinates(grey, [rows, columns], order=1, cval=0.0)
    return np.rint(255 * image).astype(np.float32)


def _levels(apical: Apical, view: str, sector: Sector, positions: Positions, rng: np.random.Generator) -> Field:
    """Level in dB of the tissue at ``positions`` (depths, beams)."""
    from scipy import ndimage

    shape = positions.shape
    coarse = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (shape[0] / 16, shape[1] / 10))
    coarse /= coarse.std()
    at = apical.distances(positions)
    level = _TISSUE + 4.5 * coarse
    if view == "4CH":
        # The right heart lies beyond the septum, on the left of the image; none of it is labelled.
        level = _blend(level, _right_heart(apical, positions), _BLOOD + 5)
    rim = np.exp(-(((at.epicardium - 0.012) / 0.012) ** 2)) * (at.mitral > -0.02)
    level = level + rim * (_PERICARDIUM - level) * rng.uniform(0.35, 0.75)
    level = _blend(level, at.epicardium, _MUSCLE + 2.5 * np.roll(coarse, shape[1] // 3, axis=1))
    level = _blend(level, at.atrium - 0.008, _MUSCLE + 2)
    level = _blend(level, at.atrium, _BLOOD + 3)
    level = _blend(level, at.ventricle, _BLOOD + rng.uniform(0, 7))
    opening = rng.uniform(0.1, 0.45)
    leaflets = np.abs(at.mitral - opening * np.clip(apical.width - np.abs(at.across), 0, None)) - 0.006
    level = _blend(level, np.maximum(leaflets, np.abs(at.across) - apical.width), _VALVE)

    depth = np.abs(positions) / sector.depth
    level = _MUSCLE + sector.contrast * (level - _MUSCLE) + sector.gain - sector.attenuation * (depth - 0.3)
    beams = np.linspace(-1, 1, shape[1], dtype=np.float32)
    shadow = ndimage.gaussian_filter1d(rng.standard_normal((shape[1],), dtype=np.float32), shape[1] / 14)
    level = level + 2.5 * shadow / shadow.std() - 10 * np.abs(beams) ** rng.uniform(4, 9)
    clutter = sector.haze + 16 * np.exp(-((depth / 0.1) ** 2)) - 22 * depth
    return 10 * np.log10(10 ** (level / 10) + 10 ** (clutter / 10))


def _right_heart(apical: Apical, positions: Positions) -> Field:
    """Distance from the outline of right ventricle and atrium, negative inside."""
    local = (positions - np.complex64(apical.mitral)) * np.complex64(np.conj(apical.axis))
    offset = apical.width + apical.wall
    ventricle = np.hypot(
        (local.real - 0.3 * apical.length) / (0.42 * apical.length), (local.imag + offset + 0.07) / 0.07
    )
    atrium = np.hypot((local.real + 0.13) / 0.11, (local.imag + offset + 0.05) / 0.08)
    return (np.minimum(ventricle, atrium) - 1) * np.float32(0.07)


def _blend(level: Field, distance: Field, value: Field | float) -> Field:
    """``level`` with ``value`` inside ``distance < 0``, with an edge of about a hundredth of the side."""
    return level + np.clip(0.5 - distance / np.float32(0.01), 0, 1) * (value - level)
