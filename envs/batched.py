"""What every batched engine shares: what a step did, legal and illegal actions, and records of tensors, by rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from seggym.errors import SeggymError

# Rows of a batch: indices int64 (B,), or slice(None) for all of them, which copies nothing.
Rows = torch.Tensor | slice


@dataclass(frozen=True)
class StepResult:
    """What a step did, each (N,): reward parts by name, ended episodes, illegal actions."""

    parts: dict[str, torch.Tensor]
    terminated: torch.Tensor
    illegal: torch.Tensor


def pieces(rows: torch.Tensor | slice, size: int) -> Iterator[Any]:
    """``rows``, indices or a slice from start to stop, in pieces of at most ``size``."""
    if isinstance(rows, torch.Tensor):
        yield from rows.split(size) if len(rows) else ()
        return
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def judge(
    actions: torch.Tensor, mask: torch.Tensor, active: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``actions`` int64 (N,) with 0 in place of what is no action, and which are legal and illegal, bool (N,) each.

    ``mask`` bool (N, A) are the legal actions; a scan that is not ``active`` bool (N,) does neither.
    """
    inside = (actions >= 0) & (actions < mask.shape[1])
    chosen = torch.where(inside, actions, 0)
    legal = mask.gather(1, chosen[:, None])[:, 0] & inside & active
    return chosen, legal, active & ~legal


def refuse(illegal: torch.Tensor, actions: torch.Tensor, reason: str) -> None:
    """Raise :class:`SeggymError` for the first of ``actions`` (N,) that is ``illegal`` bool (N,)."""
    if bool(illegal.any()):
        slot = int(illegal.nonzero()[0])
        raise SeggymError(
            f"action {int(actions[slot])} of environment {slot} is illegal: {reason}; choose among info['action_mask']"
        )


def read_rows(record: Any, rows: Rows) -> Any:
    """Rows of a tensor, or of all tensors of a dataclass or named tuple; None stays None."""
    if record is None:
        return None
    if isinstance(record, torch.Tensor):
        return record[rows]
    return type(record)(**{key: read_rows(value, rows) for key, value in _fields(record).items()})


def write_rows(record: Any, rows: Rows, part: Any, count: int) -> Any:
    """Put ``part`` into ``rows`` of ``record``, which is made of zeros for ``count`` rows where it is None."""
    if part is None:
        return None
    if isinstance(part, torch.Tensor):
        if record is None:
            record = part.new_zeros(count, *part.shape[1:])
        record[rows] = part
        return record
    parts = _fields(part)
    return type(part)(**{key: write_rows(getattr(record, key, None), rows, parts[key], count) for key in parts})


def _fields(record: Any) -> dict[str, Any]:
    return record._asdict() if hasattr(record, "_asdict") else vars(record)
