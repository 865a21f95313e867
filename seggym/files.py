"""Writing files so that a crash, a kill or a full disk never leaves half of one behind."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seggym.errors import SeggymError

# Bytes that a disk with room for them is not called full.
_PROBE = 1 << 20


def write_atomic(path: str | os.PathLike[str], write: bytes | Callable[[Path], object]) -> Path:
    """Write ``path`` through a temporary file in the same folder, fsync and rename.

    ``write`` is the content, or a function that writes the file whose path it is given. The previous file, if there
    is one, stays untouched until the new one is safely on disk. Raises :class:`SeggymError` when writing fails.
    """
    path = Path(path)
    write_together({path: write})
    return path


def write_together(contents: Mapping[Path, bytes | Callable[[Path], object]]) -> None:
    """:func:`write_atomic` for files that belong together: none is replaced before all of them are safely on disk."""
    temporaries: dict[Path, Path] = {}
    path = Path()
    try:
        for path, write in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # The suffix is kept because some writers (np.savez, nibabel) choose the format by it.
            handle, name = tempfile.mkstemp(prefix=".partial-", suffix="".join(path.suffixes[-2:]), dir=path.parent)
            os.close(handle)
            temporary = temporaries[path] = Path(name)
            if isinstance(write, bytes):
                temporary.write_bytes(write)
            else:
                _call_writer(write, temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SeggymError(
            f"cannot write {path}: {reason}; the previous file, if any, is unchanged: free some space or choose "
            "another folder, then run the same command again"
        ) from error
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _call_writer(write: Callable[[Path], object], path: Path) -> None:
    """Let ``write`` write ``path``; a disk that refuses it is an :class:`OSError`, whatever the writer makes of it."""
    try:
        write(path)
    except OSError:
        raise
    except Exception:
        # Writers in C++ (torch.save) report a full disk as a RuntimeError of their own making, so the disk is asked.
        with open(path, "ab") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
        raise


def write_json(path: str | os.PathLike[str], content: Any) -> Path:
    """Write ``content`` as indented JSON, atomically. NaN is written as null: JSON has no NaN."""
    return write_atomic(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """``content`` as :func:`write_json` writes it."""
    return (json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n").encode()


def read_json(path: str | os.PathLike[str], what: str = "file") -> Any:
    """Read JSON; a missing or damaged file is a :class:`SeggymError` that calls it ``what``."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise SeggymError(f"{what} {path} does not exist; mend the path or make the file") from None
    except (OSError, ValueError) as error:
        raise SeggymError(f"{what} {path} is not readable JSON ({error}); restore it or make it again") from None


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and content != content:
        return None
    return content
