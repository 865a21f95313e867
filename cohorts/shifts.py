"""Domain shifts: the same images as another scanner or another sonographer might have made them, reproducibly.

A shift changes how images look and leaves every structure where it is, so a cohort and its shifted copy are a pair of
source and target domain with known labels in both. Lengths are shares of the image's side: a shift means the same at
every resolution.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seggym.configs.checking import build
from seggym.errors import SeggymError

Image = NDArray[np.floating]
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Shift:
    """The change from one domain to another.

    ``kinds`` are keys of :data:`KINDS`, applied in that order; ``severity`` is 1 (slight) to 5; ``seed`` draws what all
    images of the domain have in common, such as whether it is brighter or darker. Each image also has a part of its
    own, drawn from ``seed`` and its name, so that the same image is always changed in the same way.
    """

    kinds: tuple[str, ...]
    severity: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise SeggymError(f"shift kinds={list(self.kinds)} are not known, expected some of {', '.join(KINDS)}")
        if self.severity not in SEVERITIES:
            raise SeggymError(f"shift severity={self.severity}, expected a whole number from 1 (slight) to 5")
        if self.seed < 0:
            raise SeggymError(f"shift seed={self.seed}, expected a whole number >= 0")

    def apply(self, image: Image, name: str) -> Image:
        """The image called ``name`` in the new domain: float32 (H, W) in [0, 1] both before and after."""
        if image.ndim != 2:
            raise SeggymError(f"{name}: an image of shape {image.shape} cannot be shifted, expected (height, width)")
        shifted = np.asarray(image, np.float32)
        for kind in self.kinds:
            domain, own = (_generator(self.seed, kind, part) for part in ("", f"/{name}"))
            shifted = np.clip(KINDS[kind](shifted, self.severity - 1, domain, own), 0, 1).astype(np.float32)
        return shifted

    def as_dict(self) -> dict[str, Any]:
        """The shift as JSON has it; :meth:`from_dict` reads it back."""
        return {**asdict(self), "kinds": list(self.kinds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Shift":
        """The shift of :meth:`as_dict`; an unknown key or a wrong type raises :class:`SeggymError` that names it."""
        if "kinds" not in values:
            raise SeggymError(f"a shift of {dict(values)} has no kinds, expected some of {', '.join(KINDS)}")
        return build(cls, values, "shift.")


def _gain(image: Image, level: int, domain: np.random.Generator, own: np.random.Generator) -> Image:
    """Brighter or darker, up to saturation."""
    factor = (1.25, 1.5, 1.8, 2.2, 2.7)[level] * own.uniform(0.93, 1.07)
    return image * factor if domain.random() < 0.5 else image / factor


def _gamma(image: Image, level: int, domain: np.random.Generator, own: np.random.Generator) -> Image:
    """Another curve from amplitude to grey."""
    exponent = (1.25, 1.5, 1.85, 2.3, 2.9)[level] * own.uniform(0.93, 1.07)
    return image**exponent if domain.random() < 0.5 else image ** (1 / exponent)


def _speckle(image: Image, level: int, domain: np.random.Generator, own: np.random.Generator) -> Image:
    """Multiplicative noise, as coarse in all of the domain; a share of it does not depend on the signal."""
    from scipy import ndimage

    grain = image.shape[0] * domain.uniform(0.004, 0.009)
    noise = ndimage.gaussian_filter(own.standard_normal(image.shape), (grain, 1.6 * grain))
    strength = (0.12, 0.2, 0.3, 0.42, 0.56)[level]
    return image + strength * noise / noise.std() * (image + 0.06 * (image > 0))


def _attenuation(image: Image, level: int, domain: np.random.Generator, own: np.random.Generator) -> Image:
    """Loss of signal with the depth below the upper edge."""
    rate = (0.5, 0.9, 1.4, 2.0, 2.8)[level] * own.uniform(0.9, 1.1)
    depth = (np.arange(image.shape[0], dtype=np.float32) + 0.5) / image.shape[0]
    return image * np.exp(-rate * depth)[:, None]


def _sector(image: Image, level: int, domain: np.random.Generator, own: np.random.Generator) -> Image:
    """A narrower and less deep field of view with its apex in the middle of the upper edge; black outside."""
    half_angle = np.deg2rad((38, 34, 30, 26, 22)[level]) * own.uniform(0.97, 1.03)
    depth = (0.98, 0.95, 0.91, 0.86, 0.8)[level]
    tilt = np.deg2rad(2 + level) * domain.uniform(-1, 1)
    rows, columns = _grid(image.shape)
    angle = np.arctan2(columns - 0.5, rows) - tilt
    return image * ((np.abs(angle) < half_angle) & (np.hypot(rows, columns - 0.5) < depth))


def _blur(image: Image, level: int, domain: np.random.Generator, own: np.random.Generator) -> Image:
    """A lower resolution, worse across the beam than along it."""
    from scipy import ndimage

    width = image.shape[0] * (0.007, 0.011, 0.016, 0.022, 0.03)[level] * own.uniform(0.9, 1.1)
    return ndimage.gaussian_filter(image, (width * domain.uniform(0.6, 1.0), width))


def _bias(image: Image, level: int, domain: np.random.Generator, own: np.random.Generator) -> Image:
    """A smooth field of gain: a slope in the domain's direction and a bend of the image's own."""
    strength = (0.25, 0.45, 0.7, 1.0, 1.35)[level]
    direction = np.exp(1j * (domain.uniform(0, 2 * np.pi) + own.normal(0, 0.2)))
    rows, columns = _grid(image.shape)
    slope = 2 * ((columns - 0.5) * direction.real + (rows - 0.5) * direction.imag)
    bend = np.cos(np.pi * (columns - own.uniform(0, 1))) * np.cos(np.pi * (rows - own.uniform(0, 1)))
    return image * np.exp(strength * (slope + 0.4 * bend))


def _inversion(image: Image, level: int, domain: np.random.Generator, own: np.random.Generator) -> Image:
    """Grey levels above a threshold are inverted (solarised): the brightest only, or with severity 5 all of them.

    What is exactly black, the outside of a field of view, stays black.
    """
    threshold = (0.8, 0.6, 0.4, 0.2, 0.0)[level]
    return np.where((image >= threshold) & (image > 0), 1 - image, image)


KINDS: dict[str, Callable[[Image, int, np.random.Generator, np.random.Generator], Image]] = {
    "gain": _gain,
    "gamma": _gamma,
    "speckle": _speckle,
    "attenuation": _attenuation,
    "sector": _sector,
    "blur": _blur,
    "bias": _bias,
    "inversion": _inversion,
}
"""What a shift may be made of: (image, severity - 1, generator of the domain, generator of the image) -> image."""


def _generator(seed: int, kind: str, part: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{kind}{part}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _grid(shape: tuple[int, ...]) -> tuple[Image, Image]:
    """Rows and columns of the pixel centres in sides of the image, broadcastable to ``shape``."""
    rows, columns = ((np.arange(length, dtype=np.float32) + 0.5) / length for length in shape)
    return rows[:, None], columns[None, :]
