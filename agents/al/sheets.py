"""Contact sheets: the samples that were chosen in a round, each beside what the annotator gave of it."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from seggym.envs.kspace.rendering import BACKGROUND, INK, MARGIN, grey, overlay
from seggym.envs.selection.engine import SelectionEngine
from seggym.reward_models.learners import UNLABELLED

# Samples on a sheet and in a row of it, side of a tile and height of its caption, in pixels.
_MOST, _COLUMNS, _TILE, _TEXT = 48, 6, 112, 14


def contact_sheet(engine: SelectionEngine, samples: Sequence[int], slot: int = 0) -> bytes:
    """PNG of the annotated ``samples`` in the order in which they were chosen; the first 48 where there are more.

    A volume or a patient shows its middle slice; an image with one label has the label in its caption.
    """
    shown = list(samples)[:_MOST]
    pairs = 1 if engine.settings.classification else 2
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    cell = pairs * _TILE + MARGIN
    sheet = Image.new("RGB", (columns * cell + MARGIN, rows * (_TILE + _TEXT + MARGIN) + MARGIN), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, sample in enumerate(shown):
        left = MARGIN + number % columns * cell
        top = MARGIN + number // columns * (_TILE + _TEXT + MARGIN)
        tiles, caption = _tiles(engine, sample, slot)
        for place, tile in enumerate(tiles):
            scaled = Image.fromarray(tile).resize((_TILE, _TILE), Image.Resampling.NEAREST)
            sheet.paste(scaled, (left + place * _TILE, top))
        draw.text((left, top + _TILE), caption[-(pairs * _TILE // 6) :], INK, font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="png")
    return buffer.getvalue()


def _tiles(engine: SelectionEngine, sample: int, slot: int) -> tuple[list[np.ndarray], str]:
    """Image and annotation of a sample, uint8 (H, W, 3) each, and its caption."""
    pool = engine.pool
    number = pool.shown[sample, pool.shown.shape[1] // 2]
    plane = pool.images[number].cpu().numpy()
    image = grey(plane[0]) if len(plane) == 1 else (plane[:3].transpose(1, 2, 0) * 255).astype(np.uint8)
    given = engine.oracle.targets(torch.tensor([sample], device=engine.device), engine.labelled[slot])[0]
    name = pool.table.names[sample]
    if engine.settings.classification:
        return [image], f"{pool.class_names[int(given[0])]}: {name.rpartition('/')[2]}"
    annotation = given[int((pool.slices[sample] == number).nonzero()[0])].cpu().numpy()
    return [image, overlay(image, np.where(annotation == UNLABELLED, 0, annotation))], name
