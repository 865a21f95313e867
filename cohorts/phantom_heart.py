"""The heart of a short-axis phantom: its shape in any slice and cardiac phase, and how it is painted.

Shapes are analytic and their sizes in mm follow textbook values; nothing is taken from patient data.
"""

from dataclasses import dataclass

import numpy as np

from seggym.cohorts.phantom_drawing import Field, Positions, Tissue, blob, harmonics, outline, paint
from seggym.cohorts.phantom_settings import Pathology, PhantomSettings


@dataclass(frozen=True)
class Phase:
    """The heart in one cardiac phase; lengths in mm."""

    base: float  # position of the base plane along the long axis, from the first slice
    length: float
    radial: float  # cavity radius relative to end-diastole
    shortening: float  # 1 - length / length at end-diastole
    right_width: float


@dataclass(frozen=True)
class HeartSlice:
    """The heart in one slice: signed distances in mm, (H, W) each."""

    cavity: Field
    epicardium: Field
    right: Field


class Heart:
    """The heart of one patient: its shape in any slice and phase, and how it is painted."""

    def __init__(self, rng: np.random.Generator, settings: PhantomSettings, group: Pathology, thickness: float):
        scale = rng.uniform(*settings.scale)
        self.angle = np.deg2rad(rng.uniform(*settings.orientation))
        # The middle between the ventricles, not the left one, lies near the centre of the image.
        self.centre = complex(rng.uniform(*settings.offset), rng.uniform(*settings.offset) - 8)
        self.centre -= 14 * scale * np.exp(1j * self.angle)
        # The long axis is oblique: the heart moves towards the apex by this much per mm.
        self.drift = complex(rng.uniform(0.0, 0.22), rng.uniform(-0.08, 0.12))
        self.radius = scale * rng.uniform(*group.radius)
        self.wall = scale * rng.uniform(*group.wall)
        self.sector = np.complex64(np.exp(-1j * rng.uniform(-np.pi, np.pi)))
        self.bump = rng.uniform(*group.bump)
        if self.bump > 0:
            self.sector = np.complex64(np.exp(-1j * rng.uniform(-0.5, 0.5)))  # hypertrophy is mostly septal
        self.akinesia = group.akinesia
        self.outline = harmonics(rng, 0.035)
        self.right_outline = harmonics(rng, 0.03, orders=4)
        self.right_lift = rng.uniform(-0.15, 0.15)
        self.pericardium = rng.uniform(2.5, 8.0)
        self.papillary = rng.uniform([1.0, -2.2, 2.6, 2.6], [2.0, -1.0, 5.0, 5.0])  # two angles, two radii
        self.trabeculae = rng.uniform(0.5, 1.1)

        ejection = rng.uniform(*group.ejection)
        shortening = 0.14 * ejection
        length = scale * rng.uniform(74, 88)
        base = thickness * rng.uniform(-1.3, 0.5)
        # The akinetic sector contracts less, so the rest has to contract more for the same ejection fraction.
        radial = np.sqrt((1 - ejection) / (1 - shortening)) - 0.2 * self.akinesia * ejection
        right = scale * rng.uniform(*group.right_width)
        right_es = right * (1 - 0.8 * rng.uniform(*group.right_ejection))
        self.phases = (
            Phase(base, length, 1.0, 0.0, right),
            Phase(base + shortening * length, (1 - shortening) * length, float(radial), shortening, right_es),
        )

    def slices_needed(self, thickness: float, rng: np.random.Generator) -> int:
        """Slices from the first one to the apex, plus none or one below it."""
        end = self.phases[0].base + self.phases[0].length
        return int(np.clip(np.ceil(end / thickness) + rng.integers(0, 2), 8, 10))

    def shape(self, positions: Positions, depth: float, phase: Phase) -> HeartSlice | None:
        """The heart at ``depth`` mm from the first slice; None above its base and below its apex."""
        along = (depth - phase.base) / phase.length
        if not 0 <= along < 0.99:
            return None
        centre = self.centre + self.drift * depth
        local = (positions - np.complex64(centre)) * np.complex64(np.exp(-1j * self.angle))
        radius = np.abs(local) + np.float32(1e-4)
        unit = local / radius
        bump = np.exp(3.0 * ((unit * self.sector).real - 1)) if self.bump else np.zeros_like(radius)
        profile = np.sqrt(max(0.0, 1 - (along / 0.93) ** 2.4))
        cavity = self.radius * profile * outline(unit, self.outline)
        thick = self.wall * (1 - 0.2 * along) * np.sqrt(min(1.0, (1 - along) / 0.07)) * (1 + self.bump * bump)
        # The volume of the muscle is conserved, so a wall thickens as the cavity shrinks.
        muscle = ((cavity + thick) ** 2 - cavity**2) / (1 - phase.shortening)
        cavity = cavity * (phase.radial + (1 - phase.radial) * self.akinesia * bump)
        epicardium = np.sqrt(cavity**2 + muscle)
        cavity_distance = radius - cavity if profile * self.radius * phase.radial > 2.5 else np.full_like(radius, 99)

        mean = float(epicardium.mean())
        reach = np.sqrt(max(0.0, 1 - (along / 0.88) ** 2))
        width = phase.right_width * reach
        right = np.full_like(radius, 99)
        if width > 6:
            # A wide ventricle lies further out; without that it would grow around the left one.
            offset = 0.5 + 0.3 * width / mean
            half = ((1 - offset) * mean + width, mean * (0.7 + 0.4 * reach))
            at = centre + mean * complex(offset, self.right_lift) * np.exp(1j * self.angle)
            right = np.maximum(blob(positions, at, half, self.angle, self.right_outline), 0.3 * mean - local.real)
        return HeartSlice(cavity_distance, radius - epicardium, np.maximum(right, epicardium - radius))

    def paint(self, signal: Field, shape: HeartSlice, depth: float, phase: Phase, tissue: Tissue, edge: float) -> None:
        """Cover ``signal`` with the heart in one slice: fat, right ventricle, muscle, blood, papillary muscles."""
        whole = np.minimum(shape.epicardium, shape.right - 3.0)
        fat_depth = self.pericardium * np.clip(0.5 + 0.6 * tissue.coarse, 0, 1.3)
        paint(signal, whole - fat_depth - 1.2, 0.1, edge)
        paint(signal, whole - fat_depth, -tissue.fat, edge)
        paint(signal, whole, tissue.muscle, edge)
        paint(signal, shape.right, tissue.right_blood, edge)
        # Trabeculae: strands of muscle within 9 mm of the right wall, finer ones within 5 mm of the left.
        strands = np.where(shape.right > -9, 1.1 - tissue.fine, 9).astype(np.float32)
        paint(signal, np.maximum(strands, shape.right), tissue.muscle, 1.5)
        paint(signal, shape.epicardium, tissue.muscle, edge)
        paint(signal, shape.cavity, tissue.blood, edge)
        inside = -shape.cavity
        strands = np.where(inside < 5, self.trabeculae + 0.35 * inside - tissue.fine, 9).astype(np.float32)
        paint(signal, np.maximum(strands, shape.cavity), tissue.muscle, 1.5)
        along = (depth - phase.base) / phase.length
        if 0.2 < along < 0.8:
            centre = self.centre + self.drift * depth
            for angle, size in zip(self.papillary[:2], self.papillary[2:], strict=True):
                at = centre + 0.66 * self.radius * phase.radial * np.exp(1j * (self.angle + angle))
                muscle = blob(tissue.positions, at, (size * 1.3, size), self.angle + angle, self.outline * 3)
                paint(signal, np.maximum(muscle, shape.cavity), tissue.muscle, edge)

    def paint_above(self, signal: Field, depth: float, tissue: Tissue, edge: float) -> None:
        """Above the base plane: atria, aortic root and the fat between them, all without a label."""
        turn = np.exp(1j * self.angle)
        centre = self.centre + self.drift * depth
        parts = (
            (centre - 4 * turn, 0.95 * self.radius, tissue.blood),
            (centre + (0.9 * self.radius + 4) * turn * np.exp(-0.7j), 13.5, tissue.blood),
            (centre + (1.3 * self.radius + 12) * turn * np.exp(0.35j), 19.0, tissue.right_blood),
        )
        shapes = [blob(tissue.positions, at, (r * 1.1, r * 0.92), self.angle, self.right_outline) for at, r, _ in parts]
        paint(signal, np.minimum.reduce(shapes) - self.pericardium - 3, -tissue.fat, edge)
        for distance, (_, _, blood) in zip(shapes, parts, strict=True):
            paint(signal, distance - 2.2, tissue.muscle, edge)
            paint(signal, distance, blood, edge)
