"""A picture of a volume that is being scanned: a row of slices with what the network sees in them, and the truth."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seggym.envs.kspace.rendering import BACKGROUND, INK, MARGIN, NEWEST, grey, overlay
from seggym.envs.kspace.volumes.engine import VolumeEngine
from seggym.errors import SeggymError

# Side of a slice, width of the row titles, height of a line of text and of the strip of measured lines, in pixels.
_SIDE, _LEFT, _TITLE, _STRIP = 96, 76, 20, 14


class VolumeCanvas:
    """Draws one volume of an engine; it only reads the engine. Its size is the same for every step and episode."""

    def __init__(self) -> None:
        self._picture: np.ndarray | None = None

    def restart(self, engine: VolumeEngine, slot: int) -> None:
        """A new episode has begun in environment ``slot``."""
        self._show(engine, slot, np.zeros((engine.num_slots, engine.num_lines), bool))

    def add(self, engine: VolumeEngine, slot: int) -> None:
        """A step has been made in environment ``slot``."""
        known = self._picture is not None
        self._show(engine, slot, self._acquired if known else self._acquired_of(engine, slot))

    def draw(self) -> np.ndarray:
        """The picture, a fresh uint8 (height, width, 3)."""
        if self._picture is None:
            raise SeggymError("there is nothing to render yet: call reset(), or step() after load_state_dict()")
        return self._picture.copy()

    @staticmethod
    def _acquired_of(engine: VolumeEngine, slot: int) -> np.ndarray:
        scans = slice(slot * engine.num_slots, (slot + 1) * engine.num_slots)
        return (engine.slices.acquired[scans] & engine.real[slot][:, None]).cpu().numpy()

    def _show(self, engine: VolumeEngine, slot: int, before: np.ndarray) -> None:
        self._acquired = self._acquired_of(engine, slot)
        newest = self._acquired & ~before if before.any() else np.zeros_like(before)
        per_row = engine.num_slots // (2 if engine.settings.pair else 1)
        bands = engine.num_slots // per_row
        band = _STRIP + 2 * _SIDE + MARGIN
        width, height = _LEFT + per_row * (_SIDE + 2) + MARGIN, _TITLE + bands * band + MARGIN
        picture = Image.new("RGB", (width, height), BACKGROUND)
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
        draw.text((MARGIN, 3), self._status(engine, slot), INK, font)
        for index in range(bands):
            top = _TITLE + index * band
            for text, y in (("lines", top), ("predicted", top + _STRIP + 40), ("truth", top + _STRIP + _SIDE + 40)):
                draw.text((MARGIN, y), text, INK, font)
        for place, scan in enumerate(range(slot * engine.num_slots, (slot + 1) * engine.num_slots)):
            if not bool(engine.real[slot, place]):
                continue
            left, top = _LEFT + place % per_row * (_SIDE + 2), _TITLE + place // per_row * band
            image = grey(engine.slices.magnitude[scan].cpu().numpy())
            assert engine.segmentation is not None
            predicted = engine.segmentation.labels[scan].cpu().numpy()
            true = engine.stack.labels[engine.slices.samples[scan]].cpu().numpy()
            picture.paste(_strip(self._acquired[place], newest[place]), (left, top + 2))
            for row, labels in enumerate((predicted, true)):
                panel = Image.fromarray(overlay(image, labels)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
                picture.paste(panel, (left, top + _STRIP + row * _SIDE))
        self._picture = np.asarray(picture).copy()

    @staticmethod
    def _status(engine: VolumeEngine, slot: int) -> str:
        dice = engine.dice()[0][slot].nanmean()
        left = max(int(engine.remaining[slot]), 0)
        text = f"{engine.episode_names[int(engine.samples[slot])]}   Dice of the volume {float(dice):.3f}   "
        text += f"budget: {left} of {int(engine.budgets[slot])} {engine.budget_unit} left"
        if engine.settings.pair:
            predicted, true = (float(value[slot]) for value in engine.ejection_fractions())
            text += f"   LVEF {predicted:.0f} % (truth {true:.0f} %)"
        return text


def _strip(acquired: np.ndarray, newest: np.ndarray) -> Image.Image:
    """Measured lines of a slice as a bar: white, the newest coloured."""
    colours = np.zeros((len(acquired), 3), np.uint8)
    colours[acquired] = 200
    colours[newest] = NEWEST
    return Image.fromarray(np.repeat(colours[None], _STRIP - 4, 0)).resize(
        (_SIDE, _STRIP - 4), Image.Resampling.NEAREST
    )
