"""What every batched engine shares: records of tensors, read and written for some of their rows."""

from collections.abc import Iterator
from typing import Any

import torch

# Rows of a batch: indices int64 (B,), or slice(None) for all of them, which copies nothing.
Rows = torch.Tensor | slice


def pieces(rows: torch.Tensor | slice, size: int) -> Iterator[Any]:
    """``rows``, indices or a slice from start to stop, in pieces of at most ``size``."""
    if isinstance(rows, torch.Tensor):
        yield from rows.split(size) if len(rows) else ()
        return
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


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
