"""From the loose values of a file to shapes, with a sentence for everything that may be wrong in it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seggym.cohorts.annotations.limits import (
    MAX_COORDINATE,
    MAX_NAME,
    MAX_PIXELS,
    MAX_SHAPES,
    MAX_TOTAL_VERTICES,
    MAX_VERTICES,
)
from seggym.cohorts.annotations.model import Kind, Shape
from seggym.errors import SeggymError


class Checked:
    """Reads values of the file ``path``; counts its shapes and points, so that no file can ask for too much."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shapes = self._vertices = 0

    def fault(self, where: str, message: str) -> SeggymError:
        """The error that ``where`` in the file is not as expected; ``message`` says what was, and what to do."""
        return SeggymError(f"{self.path}: {where} {message}")

    def entry(self, holder: Any, key: str, kind: type, where: str) -> Any:
        """``holder[key]`` of type ``kind``."""
        found = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(found, kind):
            state = "is missing" if found is None else f"is of type {type(found).__name__}"
            names: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
            raise self.fault(f"{key!r} of {where}", f"{state}, expected {names[kind]}: export the file again")
        return found

    def label(self, found: object, where: str) -> str:
        """The name of a class."""
        if not isinstance(found, str) or not found.strip() or len(found) > MAX_NAME or not found.isprintable():
            raise self.fault(where, f"has no class name of 1 to {MAX_NAME} printable letters: label the object")
        return found

    def number(self, found: object, where: str) -> float:
        """A coordinate, a score or a radius: a finite number of at most 1e6."""
        if isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) <= MAX_COORDINATE:
            return float(found)
        raise self.fault(where, f"has {str(found)[:40]!r} for a number, expected one up to {MAX_COORDINATE:g}: mend it")

    def text_number(self, text: str | None, where: str) -> float:
        """:meth:`number` in a file that holds texts."""
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        return self.number(value if math.isfinite(value) else (text or "nothing"), where)

    def size(self, width: object, height: object) -> tuple[int, int]:
        """(width, height) of the image in pixels."""
        sides = [int(side) if isinstance(side, (int, float)) and side == side // 1 else 0 for side in (width, height)]
        if min(sides) < 1 or sides[0] * sides[1] > MAX_PIXELS:
            raise self.fault(
                "the size of the image",
                f"is {str(width)[:20]} x {str(height)[:20]}, expected whole pixels, at most {MAX_PIXELS:,}: mend it",
            )
        return sides[0], sides[1]

    def group(self, found: object, where: str) -> int | None:
        """The number that ties the parts of an object together."""
        if found is None or (isinstance(found, int) and not isinstance(found, bool)):
            return found
        raise self.fault(where, f"has {str(found)[:40]!r} as its group, expected a whole number: mend it")

    def score(self, found: object, where: str) -> float | None:
        """The score of a prediction."""
        if found is None:
            return None
        value = self.number(found, where)
        if not 0 <= value <= 1:
            raise self.fault(where, f"has the score {value:g}, expected 0 to 1: mend it")
        return value

    def shape(self, kind: Kind, points: Sequence[Any] | np.ndarray, where: str) -> Shape:
        """A shape of (x, y) pairs."""
        self._shapes += 1
        self._vertices += len(points)
        if self._shapes > MAX_SHAPES or len(points) > MAX_VERTICES or self._vertices > MAX_TOTAL_VERTICES:
            raise self.fault(
                where,
                f"exceeds {MAX_VERTICES:,} points a shape, {MAX_SHAPES:,} shapes or {MAX_TOTAL_VERTICES:,} points a "
                "file: simplify the outlines",
            )
        pairs = []
        for point in points:
            if not isinstance(point, (list, tuple, np.ndarray)) or len(point) != 2:
                raise self.fault(where, f"has the point {str(point)[:40]}, expected x and y: export the file again")
            pairs.append((self.number(point[0], where), self.number(point[1], where)))
        try:
            return Shape(kind, np.array(pairs, np.float64).reshape(-1, 2))
        except ValueError as error:
            raise self.fault(where, f"is no {kind} ({error}): draw it again") from None
