"""A picture of an adaptation episode: the image, the label map that was given, and its reward map."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seggym.envs.adaptation.engine import AdaptationEngine
from seggym.envs.kspace.rendering import BACKGROUND, INK, MARGIN, grey, overlay
from seggym.errors import SeggymError

# Side of a panel and height of a line of text, in pixels.
_PANEL, _TEXT = 192, 20


class Canvas:
    """Draws one episode of an engine; it only reads the engine. The picture has one size."""

    def __init__(self) -> None:
        self._panels: list[tuple[str, np.ndarray]] = []

    def restart(self, engine: AdaptationEngine, slot: int) -> None:
        """A new episode has begun in environment ``slot``."""
        self.add(engine, slot)

    def add(self, engine: AdaptationEngine, slot: int) -> None:
        """A step has been made in environment ``slot``."""
        sample = int(engine.samples[slot])
        image = grey(engine.images[sample, 0].cpu().numpy())
        mask, reward = engine.actions[slot].cpu().numpy(), engine.maps[slot].cpu().numpy()
        self._panels = [
            (engine.names[sample], image),
            ("segmentation", overlay(image, mask)),
            (f"reward {float(engine.quality[slot]):.3f}", np.repeat((255 * reward).astype(np.uint8)[..., None], 3, 2)),
        ]

    def draw(self) -> np.ndarray:
        """The picture, a fresh uint8 (height, width, 3)."""
        if not self._panels:
            raise SeggymError("there is nothing to render yet: call reset(), or step() after load_state_dict()")
        width = len(self._panels) * (_PANEL + MARGIN) + MARGIN
        picture = Image.new("RGB", (width, _PANEL + _TEXT + 2 * MARGIN), BACKGROUND)
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
        for index, (title, panel) in enumerate(self._panels):
            left = MARGIN + index * (_PANEL + MARGIN)
            draw.text((left, 2), title[-26:], INK, font)
            picture.paste(Image.fromarray(panel).resize((_PANEL, _PANEL), Image.Resampling.NEAREST), (left, _TEXT))
        return np.asarray(picture).copy()
