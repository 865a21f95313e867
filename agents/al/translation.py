"""Files of other programs as arguments of ours: every key is translated, set aside with a note, or refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from seggym.errors import SeggymError


class Keys:
    """The keys of one group of a file. Each must be asked for; what nobody asked for is unknown."""

    def __init__(self, path: Path, group: str, values: Any, notes: list[str]) -> None:
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise SeggymError(f"{path}: {group or 'the file'} is a {type(values).__name__}, expected keys and values")
        self.path, self.group, self._values, self._notes = path, group, dict(values), notes
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def take(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, ``default`` where it is absent or null."""
        self._known.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """:meth:`take` of a number (YAML reads 1e-3 as text)."""
        value = self.take(key, default)
        try:
            return value if value is None or isinstance(value, (int, float)) else float(value)
        except (TypeError, ValueError):
            raise self.refused(key, "a number") from None

    def group_of(self, key: str) -> "Keys":
        """The group within this one."""
        return Keys(self.path, f"{self.group}.{key}".strip("."), self.take(key), self._notes)

    def choose(self, key: str, default: Any, allowed: Mapping[Any, Any]) -> Any:
        """What ``allowed`` makes of the value of ``key``; another value is refused."""
        value = self.take(key, default)
        try:
            return allowed[value]
        except (KeyError, TypeError):
            raise self.refused(key, f"one of {', '.join(map(str, allowed))}") from None

    def set_aside(self, why: str, *keys: str) -> None:
        """Note that those of ``keys`` that are there have no effect, and ``why``."""
        self._known.update(keys)
        there = [key for key in keys if key in self]
        if there:
            names = ", ".join(f"{self.group}.{key}={self._values[key]!r}".lstrip(".") for key in there)
            self._notes.append(f"note: {names} of {self.path.name}: {why}")

    def require(self, why: str, allowed: Sequence[Any], *keys: str) -> None:
        """Refuse those of ``keys`` that are there with another value than ``allowed``, and say ``why``."""
        for key in keys:
            if self.take(key, allowed[0]) not in allowed:
                raise self.refused(key, f"{' or '.join(map(str, allowed))}: {why}")

    def refused(self, key: str, expected: str) -> SeggymError:
        """The sentence about a value that cannot be had."""
        return SeggymError(
            f"{self.path}: {self.group}.{key}={self._values.get(key)!r}, expected {expected}".replace(": .", ": ")
        )

    def finish(self) -> None:
        """Raise :class:`SeggymError` for the first key that nobody asked for, with the nearest ones."""
        from seggym.agents.strategies.naming import nearest  # loads torch

        for key in self._values:
            if key not in self._known:
                where = f" in {self.group}" if self.group else ""
                raise SeggymError(
                    f"{self.path} has the key {key!r}{where}, which is unknown; {nearest(str(key), self._known)}"
                )


def read_yaml(path: Path, notes: list[str]) -> Keys:
    """The file at ``path``; no code in it is run."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise SeggymError(f"{path} does not exist; mend the path") from None
    except Exception as error:  # whatever the YAML library makes of it
        reason = " ".join(str(error).split())
        raise SeggymError(f"{path} is not readable YAML ({reason}); mend the file") from None
    return Keys(path, "", content, notes)


def argument(key: str, value: Any) -> str:
    """``key=value`` for the command line of Hydra, adding the key where no preset has it."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return f"++{key}={text}"


def translated(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """``arguments`` with those of the files that they name, and notes on what has no effect here.

    ``exp_dir=DIR`` names CoreCLR's ``DIR/exp.yml``, ``model_config=FILE`` and ``al_config=FILE`` those of the
    simulation. What is said on the command line itself counts more than a file.
    """
    named = {key: value for key, _, value in (text.partition("=") for text in arguments)}
    files = {key: named[key] for key in ("exp_dir", "model_config", "al_config") if named.get(key, "null") != "null"}
    if not files:
        return list(arguments), []
    if "exp_dir" in files and len(files) > 1:
        raise SeggymError(
            "exp_dir and model_config or al_config are given, expected one kind of experiment; leave one out"
        )
    notes: list[str] = []
    if "exp_dir" in files:
        from seggym.agents.al.coreclr_files import translate

        folder = Path(files["exp_dir"]).expanduser()
        found = [*translate(read_yaml(folder / "exp.yml", notes)), f"run_dir={folder / 'seggym'}"]
    else:
        from seggym.agents.al.simulation_files import translate_both

        models = read_yaml(Path(files["model_config"]).expanduser(), notes) if "model_config" in files else None
        loop = read_yaml(Path(files["al_config"]).expanduser(), notes) if "al_config" in files else None
        found = translate_both(models, loop)
    # Hydra takes a preset of a group once; a value may be set again, and the last one counts.
    mine = [text for text in found if text.startswith("++") or text.partition("=")[0] not in named]
    return [*mine, *arguments], [f"{', '.join(files)}: read as {' '.join(found)}", *notes]
