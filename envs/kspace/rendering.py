"""A picture of a scan so far: k-space, images, segmentation and the curve of quality against lines."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from seggym.envs.kspace.engine import KSpaceEngine
from seggym.errors import SeggymError
from seggym.kspace.trajectories import NOUNS

# Side of a panel, height of its title, of the curve below the panels and of the margins, in pixels.
_PANEL, _TITLE, _CURVE, MARGIN = 256, 22, 150, 10
BACKGROUND, INK, _FAINT, NEWEST = (18, 18, 22), (235, 235, 235), (95, 95, 105), (255, 140, 0)
# Colours that people with a colour vision deficiency can tell apart (Okabe and Ito, 2008); class 0 is not drawn.
_CLASS_COLOURS = [(86, 180, 233), (240, 228, 66), (213, 94, 0), (0, 158, 115), (204, 121, 167), (0, 114, 178)]
_OPACITY = 0.45
# Of the image's values: the brightest half per cent (fat, flow) would leave the heart dark.
_WHITE_QUANTILE = 0.995
# Decades of signal between black and white in k-space.
_DECADES = 3.0

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Canvas:
    """Draws one scan of an engine; it only reads the engine.

    With a network the panels are k-space, image, prediction and truth, without one they are k-space, image and the
    image at full k-space. The size of the picture depends on that alone: it is the same for every step and episode.
    """

    def __init__(self) -> None:
        self._panels: dict[str, np.ndarray] = {}

    def restart(self, engine: KSpaceEngine, slot: int) -> None:
        """A new episode has begun in environment ``slot``."""
        scanner = engine.scanner
        self._full = scanner.full(torch.tensor([slot], device=engine.device))[0].cpu().numpy()
        self._trajectory = scanner.trajectory
        kspace = self._trajectory.kspace(scanner.signal[slot : slot + 1])[0]
        self._spectrum = _log_magnitude(kspace.abs().square().sum(0).sqrt().cpu().numpy())
        self._noun = NOUNS[engine.acquisition.trajectory]
        self._labels = engine.stack.labels[engine.samples[slot]].cpu().numpy()
        self._names = _class_names(engine)
        self._acquired = np.zeros(engine.num_lines, bool)
        self._first = len(self._trajectory.initial)
        self._budget = int(engine.budgets[slot])
        self._curve: list[tuple[int, float]] = []
        self._show(engine, slot, newest=np.zeros(engine.num_lines, bool))

    def add(self, engine: KSpaceEngine, slot: int) -> None:
        """A step has been made in environment ``slot``."""
        if not self._panels:
            self.restart(engine, slot)  # a run that was resumed in the middle of an episode
            return
        self._show(engine, slot, newest=engine.acquired[slot].cpu().numpy() & ~self._acquired)

    def _show(self, engine: KSpaceEngine, slot: int, newest: np.ndarray) -> None:
        self._acquired = engine.acquired[slot].cpu().numpy().copy()
        self._remaining = max(int(engine.remaining[slot]), 0)
        image = grey(engine.magnitude[slot].cpu().numpy())
        name = "zero-filled" if not engine.scanner.needs_refresh else "reconstruction"
        self._panels = {
            "k-space": self._kspace_panel(engine.acquisition.matrix, newest),
            f"{name}, {self._acquired.sum()} of {engine.num_lines} {self._noun}": image,
        }
        full = grey(self._full)
        if engine.segmentation is None:
            self._measure, value = "quality", float(engine.quality[slot])
            self._panels["full k-space"] = full
        else:
            self._measure, value = "Dice", _nan_mean(engine.dice()[0][slot].cpu().numpy())
            self._panels["prediction"] = overlay(image, engine.segmentation.labels[slot].cpu().numpy())
            self._panels["truth, full k-space"] = overlay(full, self._labels)
        self._curve.append((int(self._acquired.sum()), value))

    def _kspace_panel(self, matrix: int, newest: np.ndarray) -> np.ndarray:
        """Measured k-space in grey, the newest view coloured, the rest background: uint8 (M, M, 3)."""
        # A measured line of noise must differ from one that is not measured, and the newest must catch the eye.
        panel = np.zeros((matrix * matrix, 3))
        for chosen, floor, colour in ((self._acquired & ~newest, 0.25, (255, 255, 255)), (newest, 0.7, NEWEST)):
            shown = chosen[self._trajectory.views]
            level = self._spectrum[shown] * (1 - floor) + floor
            panel[self._trajectory.pixels[shown]] = level[:, None] * np.array(colour)
        return panel.reshape(matrix, matrix, 3).astype(np.uint8)

    def draw(self) -> np.ndarray:
        """The picture, a fresh uint8 (height, width, 3)."""
        if not self._panels:
            raise SeggymError("there is nothing to render yet: call reset(), or step() after load_state_dict()")
        count = len(self._panels)
        width = count * _PANEL + (count + 1) * MARGIN
        height = _TITLE + _PANEL + 2 * _TITLE + _CURVE + 2 * MARGIN
        picture = Image.new("RGB", (width, height), BACKGROUND)
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
        for index, (title, panel) in enumerate(self._panels.items()):
            left = MARGIN + index * (_PANEL + MARGIN)
            draw.text((left, 4), title, INK, font)
            picture.paste(Image.fromarray(panel).resize((_PANEL, _PANEL), Image.Resampling.NEAREST), (left, _TITLE))
        top = _TITLE + _PANEL + 4
        draw.text((MARGIN, top), self._status(), INK, font)
        if self._measure == "Dice":
            self._draw_legend(draw, font, MARGIN + 2 * (_PANEL + MARGIN), top)
        self._draw_curve(draw, font, (MARGIN + 34, top + _TITLE + 4, width - MARGIN, height - _TITLE))
        return np.asarray(picture).copy()

    def _status(self) -> str:
        value = self._curve[-1][1]
        shown = "no class in this slice" if np.isnan(value) else f"{self._measure} {value:.3f}"
        return f"{shown}   budget: {self._remaining} of {self._budget} {self._noun} left"

    def _draw_legend(self, draw: ImageDraw.ImageDraw, font: Font, left: int, top: int) -> None:
        for name, colour in zip(self._names, _colours(len(self._names)), strict=True):
            draw.rectangle((left, top + 3, left + 10, top + 13), fill=tuple(colour))
            draw.text((left + 15, top), name, INK, font)
            left += 30 + int(draw.textlength(name, font))

    def _draw_curve(self, draw: ImageDraw.ImageDraw, font: Font, box: tuple[int, int, int, int]) -> None:
        """The curve so far; both axes are fixed for the episode as long as the values lie in 0..1."""
        left, top, right, bottom = box
        points = [(lines, value) for lines, value in self._curve if not np.isnan(value)]
        low = min([0.0, *(value for _, value in points)])
        high = max([1.0, *(value for _, value in points)])

        def position(lines: float, value: float) -> tuple[float, float]:
            across = (lines - self._first) / self._budget
            return left + across * (right - left), bottom - (value - low) / (high - low) * (bottom - top)

        for value in np.linspace(low, high, 5):
            y = position(self._first, value)[1]
            draw.line((left, y, right, y), _FAINT if value > low else INK)
            draw.text((left - 34, y - 8), f"{value:.4g}", INK, font)
        for lines in np.unique(np.linspace(self._first, self._first + self._budget, 7).round().astype(int)):
            draw.text((position(lines, low)[0], bottom + 3), str(lines), INK, font, anchor="ma")
        draw.text((right, top - 2), self._noun, _FAINT, font, anchor="ra")
        if len(points) > 1:
            draw.line([position(*point) for point in points], NEWEST, 2)
        for x, y in (position(*point) for point in points):
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=NEWEST)


def _log_magnitude(kspace: np.ndarray) -> np.ndarray:
    """0..1 over the decades below the largest value."""
    with np.errstate(divide="ignore"):
        level = 1 + np.log10(kspace / max(kspace.max(), np.finfo(np.float32).tiny)) / _DECADES
    return np.clip(level, 0, 1)


def grey(image: np.ndarray) -> np.ndarray:
    """A magnitude image (C, C) in shades of grey: uint8 (C, C, 3)."""
    white = max(float(np.quantile(image, _WHITE_QUANTILE)), float(np.finfo(np.float32).tiny))
    return np.repeat((np.clip(image / white, 0, 1) * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Label colours over a grey image: uint8 (C, C, 3)."""
    labels = labels.astype(int)
    colours = np.concatenate([np.zeros((1, 3)), _colours(int(labels.max(initial=0)))])[labels]
    blend = np.where((labels > 0)[:, :, None], (1 - _OPACITY) * image + _OPACITY * colours, image)
    return blend.astype(np.uint8)


def _colours(count: int) -> np.ndarray:
    return np.resize(_CLASS_COLOURS, (count, 3))


def _class_names(engine: KSpaceEngine) -> list[str]:
    """Names of the foreground classes, where the network has a card that says them."""
    card = getattr(engine.networks[0], "card", None) if engine.networks else None
    names = card.class_names[1:] if card is not None else []
    return names or [f"class {label}" for label in range(1, engine.stack.num_classes)]


def _nan_mean(values: np.ndarray) -> float:
    """Mean of the values that are no NaN; NaN where there is none, without a warning."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
