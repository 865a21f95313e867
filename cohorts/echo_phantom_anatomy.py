"""The left heart of an echo phantom in an apical view: analytic shapes, nothing is taken from patient data.

Positions are complex numbers, x + iy in units of the image's side: 0 is the middle of the upper edge (the transducer),
x points to the right and y downwards. Lengths are in the same unit.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]
Positions = NDArray[np.complexfloating]

BACKGROUND, VENTRICLE, MYOCARDIUM, ATRIUM = range(4)
# Where a ventricle is widest, as a share of its length from the mitral plane.
_WIDEST = 0.35
_ATRIUM_WIDEST = 0.5


@dataclass(frozen=True)
class Distances:
    """Distances from the outlines of the structures, negative inside, float (...); across the axis, not Euclidean."""

    ventricle: Field
    epicardium: Field
    atrium: Field
    mitral: Field  # from the mitral plane, positive towards the apex
    across: Field  # from the long axis, positive to the left of the image


@dataclass(frozen=True)
class Apical:
    """One view of one patient at one instant.

    ``mitral`` is the middle of the mitral plane and ``tilt`` (radians) turns the long axis from upright to the right.
    ``length`` and ``width`` (a half) are those of the cavity, ``wall`` and ``wall_apex`` those of the myocardium.
    ``taper`` narrows the base, ``bend`` and ``ripple`` (amplitude, phase of each side) deform the outline, ``slant``
    tilts the mitral plane against the axis and ``legs`` the ends of the two walls. ``atrium`` is its length and half
    width.
    """

    mitral: complex
    tilt: float
    length: float
    width: float
    wall: float
    wall_apex: float
    taper: float
    bend: float
    ripple: tuple[float, float, float]
    slant: float
    legs: tuple[float, float]
    atrium: tuple[float, float]

    @property
    def axis(self) -> complex:
        """Unit vector from the mitral plane to the apex."""
        return complex(-1j * np.exp(1j * self.tilt))

    def distances(self, positions: Positions) -> Distances:
        """The outlines' distances at ``positions``, of the same shape."""
        local = (positions - np.complex64(self.mitral)) * np.complex64(np.conj(self.axis))
        along = local.real
        share = along / self.length
        across = local.imag - self.bend * 4 * share * (1 - share) * (share > 0)
        mitral = along - self.slant * local.imag
        amplitude, left, right = self.ripple
        waves = np.where(across < 0, np.sin(6 * share + left), np.sin(6 * share + right))
        cavity = self.width * self._profile(share) * (1 + amplitude * waves)
        outer = (self.width + self.wall) * self._profile(along / (self.length + self.wall_apex))
        # A wall never gets thinner than a third of what it is elsewhere.
        outer = np.where(share < 1, np.maximum(outer, cavity + self.wall / 3), outer)
        base = self.width * (1 - self.taper)
        beside = np.abs(across) - base
        leg = mitral + np.where(across < 0, *self.legs) * beside
        ventricle = np.maximum(np.abs(across) - cavity, -mitral)
        epicardium = np.maximum(np.abs(across) - outer, -leg)
        # The ripple may widen the cavity beyond its base; none of it is to lie open between wall and atrium.
        return Distances(ventricle, epicardium, self._atrium(mitral, across, (1 + amplitude) * base), mitral, across)

    def label(self, positions: Positions) -> NDArray[np.uint8]:
        """Label map at ``positions``: 0 background, 1 left ventricle, 2 myocardium, 3 left atrium."""
        distances = self.distances(positions)
        label = np.zeros(positions.shape, np.uint8)
        label[distances.epicardium < 0] = MYOCARDIUM
        label[distances.atrium < 0] = ATRIUM
        label[distances.ventricle < 0] = VENTRICLE
        return label

    def contracted(self, ejection: float) -> "Apical":
        """The end-systolic instant: ``ejection`` is the share of the cavity's area that is lost."""
        shortening = 0.35 * ejection
        narrowing = 1 - (1 - ejection) / (1 - shortening)
        descent = shortening * self.length
        return replace(
            self,
            mitral=self.mitral + descent * self.axis,
            length=self.length - descent,
            width=self.width * (1 - narrowing),
            # The area of the muscle is nearly kept, so a wall thickens as the cavity shrinks.
            wall=self.wall * (1 + 0.7 * ejection),
            wall_apex=self.wall_apex * (1 + 0.3 * ejection),
            atrium=(self.atrium[0] * 1.12 + 0.5 * descent, self.atrium[1] * 1.12),
        )

    def _profile(self, share: Field) -> Field:
        """Half width relative to the widest place, at ``share`` of the length: a bullet with a rounded apex."""
        base = 1 - self.taper * (np.clip(_WIDEST - share, 0, _WIDEST) / _WIDEST) ** 2
        tip = np.clip((share - _WIDEST) / (1 - _WIDEST), 0, 1)
        return base * np.sqrt(1 - tip**2.3)

    def _atrium(self, mitral: Field, across: Field, base: float) -> Field:
        length, width = self.atrium
        share = np.clip(-mitral / length, 0, 1)
        neck = base + (width - base) * (1 - (np.clip(_ATRIUM_WIDEST - share, 0, None) / _ATRIUM_WIDEST) ** 2)
        end = np.clip((share - _ATRIUM_WIDEST) / (1 - _ATRIUM_WIDEST), 0, 1)
        return np.maximum(np.abs(across) - neck * np.sqrt(1 - end**2), mitral)


def draw_apical(rng: np.random.Generator, heart: dict[str, float], view: str) -> Apical:
    """One view at end-diastole; ``heart`` holds what both views share, see :func:`draw_heart`."""
    tilt = np.deg2rad(rng.normal(7 if view == "4CH" else -7, 6))
    length = heart["length"] * rng.uniform(0.94, 1.06)
    width = heart["width"] * rng.uniform(0.88, 1.12)
    apex = complex(rng.normal(0, 0.03), rng.uniform(0.14, 0.22))
    axis = complex(-1j * np.exp(1j * tilt))
    taper = rng.uniform(0.05, 0.3)
    # A thinner wall around so wide a cavity would break the rule of their widths wherever pixels are coarse.
    wall = max(heart["wall"] * rng.uniform(0.9, 1.1), 0.38 * width)
    return Apical(
        mitral=apex - (length + 0.04) * axis,
        tilt=float(tilt),
        length=length,
        width=width,
        wall=wall,
        wall_apex=wall * rng.uniform(0.6, 0.95),
        taper=taper,
        bend=rng.normal(0, 0.012),
        ripple=(rng.uniform(0.0, 0.06), rng.uniform(0, 6.28), rng.uniform(0, 6.28)),
        slant=rng.normal(0, 0.08),
        legs=(rng.uniform(-0.3, 0.5), rng.uniform(-0.3, 0.5)),
        atrium=(heart["atrium"] * rng.uniform(0.9, 1.1), width * (1 - taper) * rng.uniform(1.0, 1.25)),
    )


def draw_heart(rng: np.random.Generator) -> dict[str, float]:
    """Sizes of a patient's heart, the same in all views, and its ``ejection`` fraction by area."""
    dilated = rng.random() < 0.25
    return {
        "length": rng.uniform(0.40, 0.52),
        "width": rng.uniform(0.13, 0.17) if dilated else rng.uniform(0.095, 0.135),
        "wall": rng.uniform(0.045, 0.07),
        "atrium": rng.uniform(0.17, 0.30),
        "ejection": rng.uniform(0.12, 0.3) if dilated else rng.uniform(0.28, 0.46),
    }
