"""The cache of prepared slices on disk, ``$SEGGYM_HOME/cache/slices``.

An entry is one safetensors file, named after a hash of all that decides its content, with the rest of the record (a
:class:`~seggym.kspace.acquisition.SliceStack`, say) in its header. It is mapped into memory, not copied: processes on
one machine share it. Its checksum is verified when it is opened, and a damaged entry is prepared again. One of several
processes prepares an entry while the others wait for it. Where the folder cannot be written, slices are prepared for
the process alone, with one warning.

Entries that the same data folder had under another fingerprint are removed when a new one is written. Then those
longest unused go, until the folder holds no more than ``$SEGGYM_SLICE_CACHE_GB`` gigabytes (default 10; 0 keeps none).
"""

import contextlib
import json
import math
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from seggym.cohorts.cohort import Cohort, seggym_home
from seggym.errors import SeggymError
from seggym.files import write_atomic

# A dataclass of tensors and plain values.
Record = TypeVar("Record")

LIMIT_VARIABLE = "SEGGYM_SLICE_CACHE_GB"
_DEFAULT_LIMIT_GB = 10.0
# A process that has held the lock this long is suspended or stuck; the others then help themselves.
_PATIENCE_S = 1800
# Temporary files older than this belong to writers that were killed.
_ABANDONED_S = 3600
# Folders that this process has warned of.
_warned: set[Path] = set()


def cached_stack(cohort: Cohort, key: str, record: type[Record], make: Callable[[], Record]) -> Record:
    """The entry ``key``, or else what ``make`` makes of the ``cohort``, kept under ``key`` from then on.

    ``record`` is the dataclass that ``make`` returns, of tensors, plain values and flat tuples. ``key``
    must change with anything that changes the result of ``make``. The tensors are mapped privately: the file cannot be
    changed through them.
    """
    if _limit_bytes() == 0:
        return make()
    path = seggym_home() / "cache" / "slices" / f"{key}.safetensors"
    stack = _read(path, record)
    if stack is not None:
        return stack
    with _locked(path) as writable:
        # Another process may have prepared it while this one waited.
        stack = _read(path, record) if writable else None
        if stack is None:
            stack = make()
            # Files that were changed after the cohort was opened must not be kept as what they were before.
            if writable and cohort.is_unchanged():
                _write(path, stack, cohort)
                # From now on mapped, as in every other process: the copy in memory is released.
                stack = _read(path, record) or stack
    return stack


def _limit_bytes() -> float:
    text = os.environ.get(LIMIT_VARIABLE)
    try:
        limit = float(text) if text else _DEFAULT_LIMIT_GB
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise SeggymError(
            f"{LIMIT_VARIABLE} is {text!r}, expected a number of gigabytes (0 keeps nothing on disk); mend or unset it"
        )
    return limit * 1e9


def _read(path: Path, record: type[Record]) -> Record | None:
    """The entry at ``path``, None where it is missing or not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        stack = record(**tensors, **{name: _frozen(value) for name, value in json.loads(header["stack"]).items()})
        if header["checksum"] != _checksum(tensors, header["stack"]):
            return None
    # RuntimeError: torch's, where another process removes the entry between its header and its tensors.
    except (OSError, RuntimeError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    # The time of last use, by which entries are removed; where it cannot be set they go by age.
    with contextlib.suppress(OSError):
        os.utime(path)
    return stack


def _write(path: Path, stack: Any, cohort: Cohort) -> None:
    values = {field.name: getattr(stack, field.name) for field in fields(stack)}
    tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, torch.Tensor)}
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > _limit_bytes():
        _warn_once(path.parent, f"they take {size / 1e9:.1f} GB, more than {LIMIT_VARIABLE} allows")
        return
    rest = json.dumps({name: value for name, value in values.items() if name not in tensors})
    header = {
        "stack": rest,
        "checksum": _checksum(tensors, rest),
        "data": _data_folder(cohort),
        "fingerprint": cohort.fingerprint,
    }
    try:
        write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    except SeggymError as error:
        _warn_once(path.parent, str(error))
    _tidy(path, header)


def _tidy(newest: Path, header: Mapping[str, str]) -> None:
    """Remove what a killed writer left, what the data of ``newest`` had before they changed, and the longest unused."""
    for partial in newest.parent.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if partial.stat().st_mtime < time.time() - _ABANDONED_S:
                partial.unlink()
    used = []
    # The temporary files of writers at work begin with a dot.
    for path in newest.parent.glob("[!.]*.safetensors"):
        with contextlib.suppress(OSError):
            if path != newest and _is_stale(path, header):
                _remove(path)
            else:
                used.append((path == newest, path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, _, size, _ in used)
    for is_newest, _, size, path in sorted(used):
        if is_newest or total <= _limit_bytes():
            break
        _remove(path)
        total -= size


def _is_stale(path: Path, header: Mapping[str, str]) -> bool:
    """Whether the entry is of the data folder in ``header`` as it was before, or is no entry at all."""
    try:
        with safe_open(path, framework="pt") as file:
            other = file.metadata() or {}
    except SafetensorError:
        return True
    return other.get("data") == header["data"] and other.get("fingerprint") != header["fingerprint"]


def _remove(path: Path) -> None:
    # With its lock file: whoever holds that at this moment loses no more than the time to prepare the entry.
    for file in (path, _lock_file(path)):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the entry's lock; False, after a warning, where the folder cannot be written or the lock is not released."""
    lock = FileLock(_lock_file(path), timeout=_PATIENCE_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        _warn_once(path.parent, str(error))
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock_file(path: Path) -> Path:
    return path.with_suffix(".lock")


def _warn_once(folder: Path, reason: str) -> None:
    if folder not in _warned:
        _warned.add(folder)
        warnings.warn(
            f"prepared slices cannot be kept in {folder} ({reason}): every process makes them again", stacklevel=2
        )


def _data_folder(cohort: Cohort) -> str:
    """What may have other content at another time; generated cohorts, told apart by their fingerprints, never do."""
    generated = "" if cohort.fingerprint_now is not None else f" {cohort.fingerprint}"
    return f"{cohort.name} {os.path.realpath(cohort.root)}{generated}"


def _checksum(tensors: Mapping[str, torch.Tensor], rest: str) -> str:
    """CRC-32 of all that makes up the stack; a thousand slices take 30 ms, a cryptographic hash two or three times."""
    value = zlib.crc32(rest.encode())
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].numpy().data, value)
    return f"{value:08x}"


def _frozen(value: Any) -> Any:
    """Tuples, which JSON turns into lists, as tuples again."""
    return tuple(value) if isinstance(value, list) else value
