"""Fingerprints of data folders, without reading again what has not changed.

The content hash of every file is remembered in ``$SEGGYM_HOME/cache/fingerprints``, one JSON per data folder, and
reused while path, size, modification time, change time and inode are the same. Like git with its index, a file that
was touched just before it was hashed is not remembered: a second write within the resolution of the file system's
clock would leave the same times. The change time also tells files whose modification time was set back by hand; only
what writes to the disk below the file system goes unseen. A hash costs nothing but time to make again, so a cache that
is damaged or cannot be written is no error.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from seggym.cohorts.cohort import seggym_home
from seggym.errors import SeggymError
from seggym.files import read_json, write_json

# FAT, the coarsest of the common file systems, keeps times to two seconds.
_RACY_NS = 2_000_000_000
_CHUNK = 1 << 20

# Size, modification and change time in ns, inode.
Stamp = list[int]


def fingerprint_files(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the relative names and contents of ``files`` (16 hexadecimal digits)."""
    memory = _memory_file(root)
    known = _read_memory(memory)
    found: dict[str, tuple[Stamp, str]] = {}
    digest = hashlib.sha256()
    for path in sorted(files):
        name = os.path.relpath(path, root)  # a split file may lie elsewhere
        digest.update(name.encode())
        if name in known and known[name][0] == _stamp(path.stat()):
            content = known[name][1]
        else:
            content, stamp = _hash_file(path)
            if stamp is not None:
                found[name] = (stamp, content)
        digest.update(bytes.fromhex(content))
    if found:
        present = {name: entry for name, entry in known.items() if (root / name).exists()}
        with contextlib.suppress(SeggymError):
            write_json(memory, {**present, **found})
    return digest.hexdigest()[:16]


def _hash_file(path: Path) -> tuple[str, Stamp | None]:
    """SHA-256 of the content, and the stamp under which it may be remembered: None for a file touched just now."""
    begun = time.time_ns()
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        after = os.fstat(file.fileno())
    settled = max(before.st_mtime_ns, before.st_ctime_ns) < begun - _RACY_NS
    trusted = settled and _stamp(before) == _stamp(after)
    return digest.hexdigest(), _stamp(before) if trusted else None


def _stamp(status: os.stat_result) -> Stamp:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _memory_file(root: Path) -> Path:
    place = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:16]
    return seggym_home() / "cache" / "fingerprints" / f"{place}.json"


def _read_memory(path: Path) -> dict[str, tuple[Stamp, str]]:
    """What is remembered of a data folder; nothing where the file is missing, damaged or not ours."""
    try:
        content = read_json(path)
        entries = {name: (stamp, digest) for name, (stamp, digest) in content.items()}
    except (SeggymError, AttributeError, TypeError, ValueError):
        return {}
    return {name: entry for name, entry in entries.items() if _is_digest(entry[1])}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
