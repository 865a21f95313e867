"""The folder of a run: one folder per stage, made whole or not at all, and made again when what it stands on changes.

A stage writes its files and then ``finished.json``, which holds a hash of them and those of the stages before it. A
stage that was stopped has no such file and begins anew: it follows from the seed and from the stages before it alone,
so the result is the same to the bit. Whoever deletes the folder of a stage gets that stage again.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seggym.agents.comparison import differences
from seggym.errors import SeggymError
from seggym.files import read_json, write_json

RUN = "run.json"
FINISHED = "finished.json"
KIND = "rl4seg run"


class RunFolder:
    """The folder ``root`` of a run that ``content`` (plain JSON) describes: a new one, or one begun by the same."""

    def __init__(self, root: Path, content: dict[str, Any]) -> None:
        self.root = root
        content = {"format": 1, "kind": KIND, **content}
        path = root / RUN
        if path.is_file():
            known = read_json(path, "the description of the run")
            # Through JSON and back, as the known one went: tuples are lists there.
            changed = differences(known, read_json(write_json(root / ".now.json", content)))
            (root / ".now.json").unlink()
            if changed:
                raise SeggymError(
                    f"{root} holds a run with another {', '.join(changed[:4])}, expected the one to be resumed: choose "
                    "another out=, or the settings of that run"
                )
        elif root.is_dir() and any(entry.is_dir() for entry in root.iterdir()):
            raise SeggymError(
                f"{root} has folders but no {RUN}, expected the folder of a run of train_rl4seg.py, or none: choose "
                "another out="
            )
        else:
            write_json(path, content)

    def stage(self, name: str, after: Sequence[str], make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The facts of stage ``name``, which stands on the stages ``after``; ``make`` fills its folder.

        Raises:
            SeggymError: one of ``after`` is not finished.
        """
        inputs = {before: self.digest(before) for before in after}
        folder, known = self.root / name, self.facts(name)
        if known is not None and known["inputs"] == inputs and known["content"] == content_hash(folder):
            return known["facts"]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = time.perf_counter()
        facts = make(folder)
        record = {
            "stage": name,
            "inputs": inputs,
            "content": content_hash(folder),
            "seconds": round(time.perf_counter() - started, 2),
            "facts": facts,
        }
        write_json(folder / FINISHED, record)
        return read_json(folder / FINISHED)["facts"]

    def facts(self, name: str) -> dict[str, Any] | None:
        """The record of a finished stage; None where it is not finished."""
        path = self.root / name / FINISHED
        if not path.is_file():
            return None
        record = read_json(path, "the record of a stage")
        if not isinstance(record, dict) or not {"inputs", "content", "facts", "seconds"} <= set(record):
            raise SeggymError(f"{path} is no record of a stage: delete {path.parent}, then run the same command again")
        return record

    def digest(self, name: str) -> str:
        """Hash of what a finished stage has written."""
        record = self.facts(name)
        if record is None:
            raise SeggymError(f"stage {name} of {self.root} is not finished, expected it to be: run it first")
        return str(record["content"])


def content_hash(folder: Path) -> str:
    """SHA-256 of the names and the content of the files below ``folder``, its record apart (16 hexadecimal digits)."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FINISHED):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
