"""The folder of a run: what was chosen, trained and scored in each round, so that a kill at any moment loses nothing.

``round_N/query.json`` says who was chosen and is written before anybody is annotated; ``round_N/state.pt`` holds the
episode with its networks, of the last round only; ``round_N/scores.json`` ends the round. All are written atomically.
A run that lost its networks trains them again: they follow from queries and seed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from seggym.agents.al.trial import Trial, comparison_key
from seggym.agents.comparison import differences
from seggym.cohorts.cohort import seggym_home
from seggym.envs.selection.engine import SelectionEngine
from seggym.errors import SeggymError
from seggym.files import read_json, write_atomic, write_json

RUN, QUERY, SCORES, STATE, UTILITIES = "run.json", "query.json", "scores.json", "state.pt", "utilities.csv"


class RunFolder:
    """The folder ``root`` of a run on ``trial``: a new one, or one that the same settings have begun."""

    def __init__(self, root: Path, trial: Trial) -> None:
        self.root, self.trial = root, trial
        content = {
            "format": 1,
            "kind": "selection run",
            "settings": trial.settings.identity(),
            "content": trial.content,
            "counts": list(trial.counts),
            "key": comparison_key(trial),
        }
        if (root / RUN).is_file():
            known = read_json(root / RUN, "the description of the run")
            changed = differences(known, content) if isinstance(known, dict) else ["everything"]
            if changed:
                raise SeggymError(
                    f"{root} holds a run with another {', '.join(changed[:4])}, expected the one to be resumed: "
                    "choose another run_dir, or the settings of that run"
                )
        elif any(root.glob("round_*")):
            raise SeggymError(
                f"{root} has rounds but no {RUN}, expected the folder of a run of run_al.py, or none: choose another "
                "run_dir"
            )
        else:
            write_json(root / RUN, content)
        self._check_rounds()

    def round(self, number: int) -> Path:
        """The folder of a round."""
        return self.root / f"round_{number}"

    def query(self, number: int) -> list[int] | None:
        """Samples chosen in a round, in order; None where nobody has chosen yet."""
        path = self.round(number) / QUERY
        if not path.is_file():
            return None
        content = self._read(path)
        place = {name: sample for sample, name in enumerate(self.trial.names)}
        names = content.get("selected")
        before = self.trial.counts[number - 1] if number else 0
        wanted = self.trial.counts[number] - before
        if not isinstance(names, list) or len(names) != wanted or len(set(names)) != wanted or set(names) - set(place):
            raise self._damaged(path, f"it must name {wanted} different samples of the pool")
        return [place[name] for name in names]

    def write_query(self, number: int, samples: list[int], utilities: list[float | None]) -> None:
        """Keep what was chosen."""
        names = [self.trial.names[sample] for sample in samples]
        write_json(self.round(number) / QUERY, {"round": number, "selected": names, "utilities": utilities})

    def scores(self, number: int) -> dict[str, Any] | None:
        """What a round scored; None where it has not ended."""
        path = self.round(number) / SCORES
        if not path.is_file():
            return None
        content = self._read(path)
        found = content.get("samples")
        if found != self.trial.counts[number] + self.trial.counted or not {"val", "test", "pixels"} <= set(content):
            raise self._damaged(path, f"it has samples={found}")
        return content

    def settle(self, number: int, scores: dict[str, Any]) -> dict[str, Any]:
        """Keep what a round scored, or compare it with what it scored before its networks were lost."""
        path = self.round(number) / SCORES
        known = self.scores(number)
        if known is None:
            write_json(path, scores)
            known = self._read(path)
        elif known != read_json(write_json(self.root / ".again.json", scores)):
            raise SeggymError(
                f"{path} is not what round {number} scores when it is trained again, expected equal bits: it was made "
                "on another machine, or by another version; begin again in another run_dir"
            )
        (self.root / ".again.json").unlink(missing_ok=True)
        return known

    def restore(self) -> int:
        """Bring the engine to where the run stopped; the last round whose networks are there, -1 for none."""
        for number in reversed(range(len(self.trial.counts))):
            path = self.round(number) / STATE
            if not path.is_file():
                continue
            if any(self.scores(earlier) is None for earlier in range(number)) or self.query(number) is None:
                raise self._damaged(path, "what was chosen and scored before it is missing")
            try:
                load_state(path, self.trial.engine)
            except SeggymError as error:
                raise self._damaged(path, str(error)) from None
            annotated = self.trial.engine.order[0, : self.trial.counts[number]].tolist()
            if annotated != [sample for earlier in range(number + 1) for sample in self.query(earlier) or []]:
                raise self._damaged(path, "other samples are annotated in it than were chosen")
            return number
        return -1

    def keep_state(self, number: int) -> None:
        """Keep the engine as it is after the training of a round."""
        save_state(self.round(number) / STATE, self.trial.engine)

    def forget_state(self, number: int) -> None:
        """Remove the networks of a round that a later one has replaced."""
        (self.round(number) / STATE).unlink(missing_ok=True)

    def _check_rounds(self) -> None:
        """Every round but the last has its query and scores."""
        last = max((n for n in range(len(self.trial.counts)) if self.query(n) is not None), default=-1)
        chosen: list[int] = []
        for number in range(last + 1):
            here = self.query(number)
            if here is None or (number < last and self.scores(number) is None):
                raise self._damaged(self.round(number), f"it has no {SCORES if here else QUERY}, as round {last} has")
            if set(here) & set(chosen):
                raise self._damaged(self.round(number) / QUERY, "it names a sample that was annotated before")
            chosen += here
            self.scores(number)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = read_json(path)
        except SeggymError as error:
            raise self._damaged(path, str(error).partition(";")[0]) from None
        if not isinstance(content, dict):
            raise self._damaged(path, f"it holds a {type(content).__name__}")
        return content

    def _damaged(self, path: Path, why: str) -> SeggymError:
        number = path.relative_to(self.root).parts[0]
        return SeggymError(
            f"{path} is damaged ({why}): delete {self.root / number} and the rounds after it, then run the same "
            "command again; what is lost is trained again, with the same result"
        )


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other processes out of the folder of a run, for as long as this one lives."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SeggymError(f"{root} is in use by another process: wait for it, or choose another run_dir") from None
    except NotImplementedError:
        # A file system without locks.
        yield
        return
    try:
        yield
    finally:
        lock.release()


def save_state(path: Path, engine: SelectionEngine) -> Path:
    """Write the state of ``engine``: tensors, and containers of tensors."""
    return write_atomic(path, lambda temporary: torch.save(engine.state_dict(), temporary))


def load_state(path: Path, engine: SelectionEngine) -> None:
    """Go on from what :func:`save_state` wrote; no code in the file is run."""
    try:
        state = torch.load(path, map_location=engine.device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise SeggymError(f"cannot read it: {str(error).partition(chr(10))[0][:80]}") from None
    if not isinstance(state, dict) or "budgets" not in state or "learner" not in state:
        raise SeggymError("it holds no state of an engine")
    engine.load_state_dict(state)


def shared(
    key: str, suffix: str, read: Callable[[Path], Any], make: Callable[[], Any], write: Callable[[Path], Any]
) -> Any:
    """What ``read`` finds in ``$SEGGYM_HOME/cache/al`` under ``key``; else ``make()``, written for whoever comes next.

    One of several processes makes it while the others wait. A damaged file is made again; where nothing can be
    written, it is made for this process alone.
    """
    path = seggym_home() / "cache" / "al" / f"{key}{suffix}"
    made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.is_file():
                try:
                    return read(path)
                except SeggymError:
                    pass  # damaged
            found, made = make(), True
            write(path)
            return found
    except (OSError, NotImplementedError):
        # NotImplementedError: a file system without locks.
        return found if made else make()
