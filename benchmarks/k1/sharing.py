"""Work that several processes may share, and that goes on where it was stopped."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from seggym.files import read_json, write_json

FINISHED = "finished.json"


@dataclass(frozen=True)
class Task:
    """Something that fills ``folder``; ``run`` may be called again after it was killed at any point."""

    folder: Path
    run: Callable[[], object]

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        return (self.folder / FINISHED).is_file()

    @property
    def seconds(self) -> float:
        """Wall time of the call that finished it."""
        return float(read_json(self.folder / FINISHED, "record of a finished task")["seconds"])


def work_through(tasks: Sequence[Task]) -> None:
    """Run all ``tasks`` that are not done; those of another process are waited for when nothing else is left."""
    waiting = list(tasks)
    while waiting:
        busy = []
        for task in waiting:
            lock = FileLock(task.folder.parent / f".{task.folder.name}.lock")
            task.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                busy.append(task)
                continue
            try:
                if not task.done:
                    print(f"K1: {task.folder.parent.name}/{task.folder.name}", flush=True)
                    started = time.monotonic()
                    task.run()
                    write_json(task.folder / FINISHED, {"seconds": round(time.monotonic() - started, 1)})
            finally:
                lock.release()
        if len(busy) == len(waiting):
            time.sleep(2)
        waiting = busy
