"""What a K1 result depends on, frozen before anything is computed: presets, folds, and protocol.json."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seggym import __version__
from seggym.agents.algorithms.masked_dqn import MASK
from seggym.agents.algorithms.networks import find_algorithm
from seggym.agents.baselines import offered
from seggym.agents.bench import settings_of
from seggym.agents.comparison import differences
from seggym.agents.evaluation import check_range
from seggym.agents.fixed_sets import EVALUATIONS
from seggym.agents.models import TrainSettings
from seggym.agents.pooling import ENDPOINTS
from seggym.agents.results import TARGET
from seggym.cohorts.cohort import Cohort, open_cohort
from seggym.cohorts.splits import ROLES, Split, cross_validation, make_folds, save_split
from seggym.configs.checking import build, plain
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.files import read_json, write_json
from seggym.reward_models.training import Recipe

VERSION = 2
"""To be raised whenever the same preset would give another result: results of two versions are not compared."""
PRESETS = Path(__file__).parents[2] / "configs" / "k1"
AGENTS = Path(__file__).parents[2] / "configs" / "agent"
PROTOCOL = "protocol.json"
RUNTIME = {
    "preset": "tiny", "out": None, "datadir": None, "device": "auto", "threads": 1, "docs": None, "stage": "all",
    "progress": True,
}  # fmt: skip
"""Options that change no result, with their defaults; all others belong to the preset and so to the protocol."""
STAGES = ("networks", "policies", "evaluation", "table", "all")
_OPEN = ("env.kwargs", "agent_overrides", "reward.network", "reward.independent", "reward.training")
REWARDS = ("cross_fitted", "population", "given")


@dataclass(frozen=True)
class Protocol:
    """A frozen K1 run: ``content`` is protocol.json, the rest is where and how fast."""

    content: dict[str, Any]
    out: Path
    cohort: Cohort
    folds: list[tuple[str, ...]]
    splits: list[Split]
    datadir: str | None
    device: str
    threads: int
    progress: bool

    @property
    def budget(self) -> int:
        """The largest budget: lines after the initial ones."""
        return int(self.content["evaluation"]["budget"])

    def env_kwargs(self, fold: int, reward_model: Path | str) -> dict[str, Any]:
        """Arguments of the environment of an outer fold."""
        kwargs = {
            **self.content["env"]["kwargs"],
            "split": str(self.split_file(fold)),
            "reward_model": str(reward_model),
            "device": self.device,
        }
        return kwargs if self.datadir is None else {**kwargs, "data_root": self.datadir}

    def split_file(self, fold: int) -> Path:
        """Who trains, validates and tests in an outer fold."""
        return self.out / "splits" / f"fold{fold}.json"

    def seeds(self, fold: int) -> list[int]:
        """Seeds of the policies of a fold."""
        return list(self.content["seeds"][fold])

    def recipe(self, which: str, seed: int) -> Recipe:
        """How network A ("network") or B ("independent") is trained."""
        reward = self.content["reward"]
        return build(Recipe, {**reward["training"], **reward[which], "seed": seed}, f"reward.{which}.")


def read_options(arguments: Sequence[str]) -> tuple[dict[str, Any], DictConfig]:
    """Runtime options and the preset with the overrides of the command line."""
    given = OmegaConf.from_dotlist(list(arguments))
    runtime = {name: given.pop(name) if name in given else default for name, default in RUNTIME.items()}
    if runtime["stage"] not in STAGES:
        raise SeggymError(f"stage={runtime['stage']!r} is unknown, expected one of {', '.join(STAGES)}")
    name = str(runtime["preset"])
    path = Path(name) if name.endswith(".yaml") else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in PRESETS.glob("*.yaml") if file.stem != "default")
        raise SeggymError(f"preset={name} is unknown, expected one of {', '.join(known)} or the path of a .yaml file")
    default = OmegaConf.load(PRESETS / "default.yaml")
    OmegaConf.set_struct(default, True)
    for key in _OPEN:
        OmegaConf.set_struct(OmegaConf.select(default, key), False)
    try:
        merged = OmegaConf.merge(default, OmegaConf.load(path), given)
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise SeggymError(
            f"preset {name} or an option is no part of the protocol ({reason}): see configs/k1/default.yaml for the "
            f"keys, and {', '.join(RUNTIME)}"
        ) from None
    assert isinstance(merged, DictConfig)
    return {**runtime, "preset": path.stem, "changed": sorted(str(key) for key in given)}, merged


def freeze(arguments: Sequence[str]) -> Protocol:
    """The protocol of ``arguments``, written to its folder first; one that differs from what is there is refused."""
    runtime, preset = read_options(arguments)
    values = plain(preset)
    env = values["env"]
    observed = agent_settings(values)
    if find_algorithm(observed["algorithm"]).observes_mask and MASK not in env["kwargs"]["observation"]:
        env["kwargs"]["observation"] = [*env["kwargs"]["observation"], MASK]
    settings = _check(values)
    cohort = open_cohort(settings.cohort, runtime["datadir"], **settings.cohort_options)
    number, seed = values["folds"]["number"], values["folds"]["seed"]
    folds = make_folds(cohort.patients, cohort.groups, number, seed)
    splits = [
        cross_validation(cohort.groups, number, fold, seed, values["folds"]["val_fraction"]) for fold in range(number)
    ]
    first, others = values["seeds"]["first_fold"], values["seeds"]["other_folds"]
    content = {
        "protocol": "K1",
        "version": VERSION,
        "preset": runtime["preset"],
        "endpoint": {"primary": ENDPOINTS[0], "second": ENDPOINTS[1], "target": TARGET, "net": "B", "level": "volume"},
        "data": {"cohort": cohort.name, "fingerprint": cohort.fingerprint, "patients": len(cohort.patients)},
        "folds": {**values["folds"], "splits": [{role: getattr(split, role) for role in ROLES} for split in splits]},
        "env": env,
        "acquisition": settings.scan.as_dict(),
        "reward": values["reward"],
        "agent": {"name": values["agent"], **observed},
        "training": values["training"],
        "seeds": [[100 * fold + run for run in range(others if fold else first)] for fold in range(number)],
        "evaluation": values["evaluation"],
    }
    content = json.loads(json.dumps(content))
    out = Path(str(runtime["out"] or Path("runs") / "k1" / runtime["preset"])).expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".protocol.lock"):
        path = out / PROTOCOL
        frozen = read_json(path, "K1 protocol") if path.exists() else None
        if content["evaluation"]["baselines"] is None:
            # All that there are when the protocol is frozen: another version may know more, or other ones.
            known = offered(settings.scan.trajectory)
            content["evaluation"]["baselines"] = known if frozen is None else frozen["evaluation"]["baselines"]
        if frozen is not None:
            changed = differences(frozen, content)
            if changed:
                raise SeggymError(
                    f"{path} was frozen with other {', '.join(changed)}, expected the same protocol: give back its "
                    "values, or choose another out="
                )
        else:
            for fold, split in enumerate(splits):
                save_split(split, out / "splits" / f"fold{fold}.json")
            write_json(path, content)
    return Protocol(
        content, out, cohort, folds, splits, runtime["datadir"], runtime["device"], runtime["threads"],
        runtime["progress"],
    )  # fmt: skip


def agent_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The agent of configs/agent with the overrides of the preset, as far as :class:`TrainSettings` knows its keys."""
    path = AGENTS / f"{values['agent']}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in AGENTS.glob("*.yaml")))
        raise SeggymError(f"agent={values['agent']} is unknown, expected one of {known}")
    config = OmegaConf.merge(OmegaConf.load(path), OmegaConf.create(values["agent_overrides"]))
    assert isinstance(config, DictConfig)
    agent = plain(config)
    unknown = sorted(set(agent) - set(TrainSettings.__dataclass_fields__))
    if unknown:
        raise SeggymError(f"agent {values['agent']} has {', '.join(unknown)}, which a training run does not know")
    return agent


def _check(values: Mapping[str, Any]) -> KSpaceSettings:
    """The settings of the environment; raises :class:`SeggymError` for what would only fail hours later."""
    reward, training, evaluation = values["reward"], values["training"], values["evaluation"]
    if reward["kind"] not in REWARDS:
        raise SeggymError(f"reward.kind={reward['kind']!r} is unknown, expected one of {', '.join(REWARDS)}")
    if reward["kind"] == "given" and reward["name"] is None:
        raise SeggymError("reward.name is missing: reward.kind=given needs the folder or name of a reward model")
    if reward["kind"] == "population" and not reward["population"]:
        raise SeggymError("reward.population is missing: it holds the options of the cohort that networks train on")
    if reward["kind"] != "given":
        a, b = (reward[which].get("architecture") for which in ("network", "independent"))
        if a == b:
            raise SeggymError(f"reward.independent.architecture={b} is network A's own: choose another")
    if values["folds"]["number"] < 3 and reward["kind"] == "cross_fitted":
        raise SeggymError(
            "folds.number must be at least 3 for reward.kind=cross_fitted: a network leaves out two folds"
        )
    settings = settings_of(
        values["env"]["id"], {**values["env"]["kwargs"], "reward_model": reward["name"] or "phantom"}
    )
    check_range([1, evaluation["budget"]], settings)
    for name in ("first_fold", "other_folds"):
        if values["seeds"][name] < 1:
            raise SeggymError(f"seeds.{name}={values['seeds'][name]} must be at least 1")
    if training["total_steps"] < 1 or evaluation.get("set_evaluations", EVALUATIONS) < 0:
        raise SeggymError("training.total_steps must be at least 1 and evaluation.set_evaluations at least 0")
    return settings


def provenance(protocol: Protocol) -> dict[str, Any]:
    """Command, commit, versions and machine."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else ""

    # What the tables are made from; documents may change meanwhile.
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "command": f"bash benchmarks/k1.sh {' '.join(sys.argv[1:])}".strip(),
        "commit": (git("rev-parse", "HEAD") or "unknown") + (" with local changes" if changed else ""),
        "versions": {
            "seggym": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {protocol.threads} thread(s), {_device(protocol)}",
    }


def _device(protocol: Protocol) -> str:
    cuda = torch.cuda.is_available() and protocol.device != "cpu"
    return torch.cuda.get_device_name() if cuda else "processor"
