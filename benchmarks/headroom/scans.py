"""The scans that are compared: one feature at a time over a plain scan; the options, and results that are kept."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seggym import __version__
from seggym.agents.bench import settings_of
from seggym.configs.checking import build
from seggym.envs import ENVIRONMENTS
from seggym.envs.kspace.sources import load_cohort
from seggym.errors import SeggymError
from seggym.files import read_json, write_json
from seggym.reward_models.checkpoints import open_reward_model

VERSION = 4  # to be raised when the same options give other numbers

_PLAIN: dict[str, Any] = {
    "phase": [0.0, 0.0],
    "echo_shift": 0.0,
    "orientation": 0.0,
    "field_of_view": [1.0, 1.0],
    "phase_encode": "columns",
    "corruption": 0.0,
}
_CORRUPTED = {"remeasure": "any", "corruption_flagged": True}
_HIDDEN = {"remeasure": "any", "corruption_flagged": False}

# name -> (fields of the acquisition, keyword arguments of the environment) that differ from the plain scan
FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "phase 0.5-3 rad": ({"phase": [0.5, 3.0]}, {}),
    "echo shift 4": ({"echo_shift": 4.0}, {}),
    "echo shift 12": ({"echo_shift": 12.0}, {}),
    "orientation and field of view": ({"orientation": 45.0, "field_of_view": [1.0, 1.25]}, {}),
    "either axis, drawn": ({"phase_encode": "random"}, {}),
    "either axis, chosen": ({}, {"choose_axis": True}),
    "corruption 0.1, flagged": ({"corruption": 0.1}, _CORRUPTED),
    "corruption 0.1, hidden": ({"corruption": 0.1}, _HIDDEN),
    "corruption 0.25, flagged": ({"corruption": 0.25}, _CORRUPTED),
    "corruption 0.25, hidden": ({"corruption": 0.25}, _HIDDEN),
    "4 lines per step": ({}, {"lines_per_step": 4}),
    "all together": (
        {
            "phase": [0.5, 3.0],
            "echo_shift": 12.0,
            "orientation": 45.0,
            "field_of_view": [1.0, 1.25],
            "phase_encode": "random",
            "corruption": 0.25,
        },
        _CORRUPTED,
    ),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    cohort: str
    reward_model: str
    datadir: str | None = None
    split: str | None = None
    features: str | None = None
    budget: int = 24
    every: int = 1
    volumes: int | None = None
    slices: int = 64
    population_greedy: bool = False
    greedy_window: int = 0
    steps: int = 0
    generations: int = 24
    seeds: int = 1
    out: str = "runs/headroom"
    device: str = "auto"

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of lines at which images are segmented."""
        return (*range(self.every, self.budget, self.every), self.budget)

    @property
    def chosen(self) -> list[str]:
        """The names of the features to run."""
        names = list(FEATURES) if self.features is None else self.features.split(";")
        unknown = [name for name in names if name not in FEATURES]
        if unknown:
            raise SeggymError(f"features={unknown} are unknown, expected some of {'; '.join(FEATURES)}")
        return names


def environment(options: Options, name: str, observation: Sequence[str], **more: Any) -> tuple[str, dict[str, Any]]:
    """Id and keyword arguments of the environment with the feature ``name``."""
    env_id = {"phantom": "KSpaceSeg-Phantom-Hard-v0", "acdc": "KSpaceSeg-ACDC-Hard-v0"}.get(options.cohort)
    if env_id is None:
        raise SeggymError(f"cohort={options.cohort!r} has no Hard environment, expected phantom or acdc")
    scan, kwargs = FEATURES[name]
    trained = open_reward_model(options.reward_model).acquisition
    size = {key: trained.get(key, ENVIRONMENTS[env_id][2]["acquisition"][key]) for key in ("matrix", "crop")}
    return env_id, {
        "acquisition": {**size, **_PLAIN, **scan},
        "reward_model": options.reward_model,
        "data_root": options.datadir,
        "split": options.split,
        "budget": options.budget,
        "remeasure": "never",
        "observation": list(observation),
        "device": options.device,
        **kwargs,
        **more,
    }


def parsed(arguments: Sequence[str], kind: type) -> Any:
    """``key=value`` arguments as a ``kind``, whose defaults say what is a number."""
    given = dict(argument.split("=", 1) for argument in arguments)
    values: dict[str, Any] = {}
    for key, value in given.items():
        values[key] = int(value) if value.isdigit() else {"true": True, "false": False}.get(value, value)
    return build(kind, values)


def kept(path: Path, key: dict[str, Any], find: Any) -> dict[str, Any]:
    """What ``find()`` returns, from ``path`` where it is there with this ``key``."""
    if path.is_file():
        content = read_json(path, "benchmark result")
        if content.get("key") == key:
            return content
    started = time.perf_counter()
    content = {**find(), "key": key, "seconds": round(time.perf_counter() - started, 1)}
    write_json(path, content)
    return content


def key_of(options: Options, name: str) -> dict[str, Any]:
    """What the numbers of a feature depend on."""
    free = ("out", "device", "features", "policies", "datadir", "reward_model", "split")
    own = {field: value for field, value in asdict(options).items() if field not in free}
    cards = open_reward_model(options.reward_model).cards
    cohort, split = load_cohort(settings_of(*environment(options, name, ("acquired",))))
    return {
        **own,
        "fingerprint": cohort.fingerprint,
        "split": {role: list(getattr(split, role)) for role in ("train", "test")},
        "version": VERSION,
        "seggym": __version__,
        "feature": [name, *FEATURES[name]],
        "weights": {member: card.weights for member, card in cards.items()},
    }
