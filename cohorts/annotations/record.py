"""What a foreign format cannot say, kept in an entry of our own beside what it can.

COCO has no circles, CVAT's XML no group numbers. A writer that could not say everything adds a record; a reader
believes it only while the outlines beside it are still those that the record describes, so that a correction made in
another program wins.
"""

from typing import Any

import numpy as np

from seggym.cohorts.annotations.checking import Checked
from seggym.cohorts.annotations.model import KINDS, Instance, outline

KEY = "seggym"
# Pixels that a program may round by: CVAT writes two digits.
_ROUNDING = 0.011


def needed_record(instance: Instance, understood: Instance) -> dict[str, Any] | None:
    """The record of ``instance``, or None where ``understood``, what the format makes of it, is all of it."""
    if instance == understood:
        return None
    shapes = [{"kind": shape.kind, "points": shape.points.tolist()} for shape in instance.shapes]
    return {"group": instance.group, "score": instance.score, "shapes": shapes}


def with_record(checked: Checked, understood: Instance, record: Any, where: str) -> Instance:
    """``understood`` as its ``record`` tells it, where there is one and the outlines are still the same."""
    if record is None:
        return understood
    shapes = []
    for entry in checked.entry(record, "shapes", list, where):
        kind = checked.entry(entry, "kind", str, where)
        if kind not in KINDS:
            raise checked.fault(
                where, f"has a record of a {kind[:40]!r}, expected one of {', '.join(KINDS)}: remove it"
            )
        shapes.append(checked.shape(kind, checked.entry(entry, "points", list, where), where))
    outlines = [outline(shape) for shape in shapes], [outline(shape) for shape in understood.shapes]
    same = len(outlines[0]) == len(outlines[1]) and all(
        told.shape == seen.shape and np.allclose(told, seen, rtol=0, atol=_ROUNDING)
        for told, seen in zip(*outlines, strict=True)
    )
    if not same:
        return understood
    group = understood.group if understood.group is not None else checked.group(record.get("group"), where)
    score = understood.score if understood.score is not None else checked.score(record.get("score"), where)
    return Instance(understood.label, tuple(shapes), group, score)
