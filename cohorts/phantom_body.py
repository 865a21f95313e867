"""The body around the heart of a short-axis phantom: chest wall, lung, abdomen, spine and great vessels."""

import numpy as np

from seggym.cohorts.phantom_drawing import Field, Positions, Tissue, blob, harmonics, outline, paint
from seggym.cohorts.phantom_settings import PhantomSettings


class Body:
    """Everything around the heart of one patient."""

    def __init__(self, rng: np.random.Generator, settings: PhantomSettings, extent: tuple[float, float]):
        height, width = extent
        self.extent = extent
        self.centre = complex(rng.uniform(-0.04, 0.06) * width, rng.uniform(0.04, 0.1) * height)
        self.radii = (rng.uniform(0.42, 0.52) * width, rng.uniform(0.40, 0.46) * height)
        self.outline = harmonics(rng, 0.05, orders=4)
        self.fat_depth = rng.uniform(6, 17)
        self.chest_wall = rng.uniform(7, 13)
        self.diaphragm = rng.uniform(30, 46)
        self.tilt = rng.uniform(-0.35, 0.1)
        self.spine = complex(rng.uniform(-25, 10), 0.36 * height + rng.uniform(-8, 6))
        self.aorta = self.spine + complex(rng.uniform(20, 32), rng.uniform(-22, -8))
        self.cava = complex(self.spine.real - rng.uniform(18, 34), rng.uniform(48, 66))
        self.ribs = rng.uniform(-np.pi, np.pi) + np.arange(11) * 2 * np.pi / 11 + rng.uniform(-0.12, 0.12, 11)
        self.shapes = [harmonics(rng, 0.12) for _ in range(14)]
        self.organs = rng.uniform(-1, 1, (14, 4))
        self.arm = rng.uniform(0.55, 0.75) * width if rng.random() < 0.4 else None

    def paint(self, signal: Field, along: float, tissue: Tissue, edge: float) -> None:
        """Cover ``signal`` with the body; ``along`` runs from 0 at the first slice to 1 at the last one."""
        positions, fat, muscle = tissue.positions, tissue.fat, tissue.muscle
        radii = (self.radii[0] * (1 - 0.1 * along), self.radii[1])
        body = blob(positions, self.centre, radii, 0.0, self.outline) + 2.0 * tissue.coarse
        paint(signal, body, -fat, 1.5 * edge)
        paint(signal, body + 1.6, -fat, edge)
        wall = body + self.fat_depth * (1 + 0.25 * tissue.coarse)
        paint(signal, wall, muscle * 0.8, edge)
        cavity = body + self.fat_depth + self.chest_wall
        paint(signal, np.abs(wall + 0.45 * self.chest_wall + tissue.coarse) - 0.8, -0.6 * fat, edge)
        self._paint_ribs(signal, radii, tissue, edge)
        paint(signal, cavity, tissue.lung, edge)

        slope = positions.imag - self.tilt * positions.real - (self.diaphragm - 16 * along) + 5 * tissue.coarse
        abdomen = np.maximum(-slope, cavity)
        paint(signal, abdomen, -0.7 * fat, edge)
        for number, (organ, shape) in enumerate(zip(self.organs, self.shapes, strict=True)):
            self._paint_organ(signal, number, organ, shape, along, abdomen, tissue, edge)
        self._paint_spine(signal, cavity, tissue, edge)
        if self.arm is not None:
            arm = blob(positions, complex(self.arm, 10), (26, 60), 0.2, self.shapes[0])
            paint(signal, arm, -fat, edge)
            paint(signal, arm + 9, muscle, edge)

    def _paint_ribs(self, signal: Field, radii: tuple[float, float], tissue: Tissue, edge: float) -> None:
        for angle in self.ribs:
            depth = self.fat_depth + 0.6 * self.chest_wall
            unit = np.array([np.exp(1j * angle)], np.complex64)
            stretch = float(outline(unit, self.outline)[0])
            at = self.centre + complex(
                (radii[0] * stretch - depth) * np.cos(angle), (radii[1] * stretch - depth) * np.sin(angle)
            )
            rib = blob(tissue.positions, at, (8, 4), angle + np.pi / 2, self.outline)
            paint(signal, rib - 1.2, 0.06, edge)
            paint(signal, rib, -0.55 * tissue.fat, edge)

    def _paint_organ(
        self,
        signal: Field,
        number: int,
        organ: Field,
        shape: Positions,
        along: float,
        limit: Field,
        tissue: Tissue,
        edge: float,
    ) -> None:
        """Number 0 is the liver, 1 the stomach, 2 the spleen, the rest are loops of bowel between them."""
        width, height = self.extent[1], self.extent[0]
        if number == 0:
            at, radii = (
                complex(-0.22 * width + 8 * organ[0], 0.30 * height + 6 * organ[1]),
                (0.30 * width, 0.19 * height),
            )
        elif number == 1:
            at, radii = complex(0.18 * width + 8 * organ[0], 0.24 * height + 8 * organ[1]), (30 + 6 * organ[2], 21)
        elif number == 2:
            at, radii = complex(0.33 * width, 0.33 * height + 8 * organ[1]), (18, 34)
        else:
            at = complex(width * (0.14 + 0.26 * organ[0]), height * (0.29 + 0.12 * organ[1]))
            radii = (10 + 4 * organ[2], 8 + 3 * organ[3])
        distance = np.maximum(blob(tissue.positions, at, radii, organ[2] * 0.6, shape), limit + 2)
        inner: Field | float = tissue.liver * (1.0 + 0.25 * organ[3])
        paint(signal, distance, inner, edge)
        if number == 0:
            vessels = np.maximum(np.abs(tissue.coarse) * 9 - 0.9, distance + 5)
            paint(signal, vessels, 0.75 * tissue.right_blood, 2 * edge)
        elif number != 2:
            content = tissue.blood * (0.75 if organ[2] > 0.2 else 0.08)
            paint(signal, distance + 3.5 + 1.5 * tissue.fine, content, edge)

    def _paint_spine(self, signal: Field, limit: Field, tissue: Tissue, edge: float) -> None:
        positions, muscle = tissue.positions, tissue.muscle
        for side in (-1, 1):
            back = blob(positions, self.spine + complex(30 * side, 26), (24, 15), -0.3 * side, self.shapes[3])
            paint(signal, back, muscle * 0.8, edge)
        paint(signal, blob(positions, self.spine, (20, 16), 0.0, self.shapes[4] * 0.4), 0.05, edge)
        paint(signal, blob(positions, self.spine, (18.5, 14.5), 0.0, self.shapes[4] * 0.4), 1.1 * tissue.liver, edge)
        canal = blob(positions, self.spine + 23j, (10, 8), 0.0, self.shapes[5] * 0.3)
        paint(signal, canal, 0.9 * tissue.blood, edge)
        paint(signal, canal + 4, 0.45 * tissue.blood, edge)
        for at, size in ((self.aorta, 10.5), (self.cava, 9.5)):
            vessel = blob(positions, at, (size, size * 0.92), 0.4, self.shapes[6] * 0.3)
            paint(signal, vessel - 1.6, muscle, edge)
            paint(signal, vessel, tissue.blood, edge)
