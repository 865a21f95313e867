"""A picture of a selection episode: the samples annotated last, and the learning curve."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from seggym.envs.kspace.rendering import BACKGROUND, INK, MARGIN, NEWEST, grey, overlay
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.observation import prediction
from seggym.errors import SeggymError
from seggym.reward_models.learners import UNLABELLED

# Samples on the contact sheet, side of a tile, height of a line of text and of the curve, in pixels.
_TILES, _TILE, _TEXT, _CURVE = 8, 112, 18, 150
_FAINT = (95, 95, 105)


class Canvas:
    """Draws one episode of an engine; it only reads the engine, and of labels only those that are annotated.

    Rows are image, annotation and what the learner made of it, of the last samples, newest last. The size of the
    picture is the same for every step and episode.
    """

    def __init__(self) -> None:
        self._tiles: list[tuple[str, list[np.ndarray]]] = []
        self._curve: list[tuple[int, float]] = []

    def restart(self, engine: SelectionEngine, slot: int) -> None:
        """A new episode has begun in environment ``slot``."""
        self._curve = []
        self._budget = int(engine.budgets[slot])
        self.add(engine, slot)

    def add(self, engine: SelectionEngine, slot: int) -> None:
        """A step has been made in environment ``slot``."""
        if not hasattr(self, "_budget"):
            self._budget = int(engine.budgets[slot])
        self._remaining = max(int(engine.remaining[slot]), 0)
        self._metric = engine.settings.metric
        self._minutes = float(engine.minutes[slot])
        self._curve.append((int(engine.steps[slot]), float(engine.quality[slot])))
        count = int(engine.count[slot])
        newest = engine.order[slot, max(0, count - _TILES) : count]
        self._tiles = [(engine.pool.table.names[int(sample)], self._column(engine, slot, sample)) for sample in newest]

    def _column(self, engine: SelectionEngine, slot: int, sample: torch.Tensor) -> list[np.ndarray]:
        """Image, annotation and prediction of the middle slice of an annotated sample, uint8 (H, W, 3) each."""
        pool = engine.pool
        number = pool.shown[sample, pool.shown.shape[1] // 2]
        plane = pool.images[number].cpu().numpy()
        image = grey(plane[0]) if len(plane) == 1 else (plane[:3].transpose(1, 2, 0) * 255).astype(np.uint8)
        given = engine.oracle.targets(sample[None], engine.labelled[slot])[0]
        if engine.settings.classification:
            believed = engine.learner.predict(torch.tensor([slot], device=engine.device), number[None, None])
            answers = (given[0], believed.flatten().argmax())
            return [image, *(_words(pool.class_names[int(label)]) for label in answers)]
        annotation = given[int((pool.slices[sample] == number).nonzero()[0])].cpu().numpy()
        drawn = np.where(annotation == UNLABELLED, 0, annotation)
        found = prediction(engine, slot, number[None])[0].cpu().numpy()
        return [image, overlay(image, drawn), overlay(image, found)]

    def draw(self) -> np.ndarray:
        """The picture, a fresh uint8 (height, width, 3)."""
        if not self._curve:
            raise SeggymError("there is nothing to render yet: call reset(), or step() after load_state_dict()")
        width = _TILES * (_TILE + MARGIN) + MARGIN
        height = 3 * (_TILE + 4) + 3 * _TEXT + _CURVE + 2 * MARGIN
        picture = Image.new("RGB", (width, height), BACKGROUND)
        draw, font, small = ImageDraw.Draw(picture), ImageFont.load_default(13), ImageFont.load_default(9)
        draw.text((MARGIN, 2), "annotated last: image, annotation, prediction", INK, font)
        for index, (name, column) in enumerate(self._tiles):
            left = MARGIN + index * (_TILE + MARGIN)
            for row, tile in enumerate(column):
                shown = Image.fromarray(tile).resize((_TILE, _TILE), Image.Resampling.NEAREST)
                picture.paste(shown, (left, _TEXT + row * (_TILE + 4)))
            draw.text((left, _TEXT + 3 * (_TILE + 4)), name[-20:], _FAINT, small)
        top = 2 * _TEXT + 3 * (_TILE + 4)
        status = f"{self._metric} {self._curve[-1][1]:.3f}   budget: {self._remaining} of {self._budget} left   "
        draw.text((MARGIN, top), f"{status}{self._minutes:.0f} minutes of annotation", INK, font)
        self._draw_curve(draw, font, (MARGIN + 34, top + _TEXT + 4, width - MARGIN, height - _TEXT))
        return np.asarray(picture).copy()

    def _draw_curve(
        self, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, box: tuple[int, ...]
    ) -> None:
        """Quality against picks; both axes are fixed for the episode."""
        left, top, right, bottom = box

        def position(picks: float, value: float) -> tuple[float, float]:
            value = 0.0 if np.isnan(value) else min(max(value, 0.0), 1.0)
            return left + picks / self._budget * (right - left), bottom - value * (bottom - top)

        for value in np.linspace(0, 1, 5):
            y = position(0, value)[1]
            draw.line((left, y, right, y), _FAINT if value else INK)
            draw.text((left - 34, y - 8), f"{value:.2f}", INK, font)
        for picks in np.unique(np.linspace(0, self._budget, 7).round().astype(int)):
            draw.text((position(picks, 0)[0], bottom + 3), str(picks), INK, font, anchor="ma")
        points = [position(*point) for point in self._curve]
        if len(points) > 1:
            draw.line(points, NEWEST, 2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=NEWEST)


def _words(text: str) -> np.ndarray:
    """``text`` on a tile, for images that have a class instead of a mask."""
    tile = Image.new("RGB", (_TILE, _TILE), BACKGROUND)
    ImageDraw.Draw(tile).text((4, _TILE // 2), text[:18], INK, ImageFont.load_default(13), anchor="lm")
    return np.asarray(tile).copy()
