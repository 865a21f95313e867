"""The reward networks of K1: who scores whom.

Cross-fitted, for cohorts with few patients. In outer fold k the patients of fold k are tested, all others train or
validate. Networks A and B of the test patients exclude fold k. A training or validation patient of fold j is scored by
a network that excludes both j and k; the same network serves outer fold j for the patients of fold k. So n folds need
n (n - 1) / 2 networks of pairs, n ``full`` ones and n independent ones: 20 for five folds.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from benchmarks.k1.protocol import Protocol
from benchmarks.k1.sharing import Task
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import Split, make_split, split_cohort
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.files import write_json
from seggym.reward_models.checkpoints import INDEX, open_reward_model
from seggym.reward_models.fitting import Plan, fit_member, fit_reward_model, vouch_for_bf16
from seggym.reward_models.frozen import resolve_device

MEMBERS = "members.json"


@dataclass(frozen=True)
class Member:
    """One network: the folds whose patients it never saw, and whether it is an independent one."""

    excluded: tuple[int, ...]
    independent: bool = False

    @property
    def name(self) -> str:
        """Folder of the network: named by who is excluded."""
        folds = "-".join(str(fold) for fold in self.excluded)
        return f"without-{folds}{'-independent' if self.independent else ''}"


def members(number: int) -> list[Member]:
    """All networks that ``number`` folds need, those of the outer folds first."""
    outer = [Member((fold,)) for fold in range(number)]
    pairs = [Member(pair) for pair in combinations(range(number), 2)]
    return [*outer, *pairs, *(Member((fold,), True) for fold in range(number))]


def scoring_members(number: int, outer: int) -> dict[str, Member]:
    """The networks of the reward model of an outer fold, by their names in it; ``fold{i}`` is the i-th other fold."""
    others = other_folds(number, outer)
    pairs = {f"fold{i}": Member((min(j, outer), max(j, outer))) for i, j in enumerate(others)}
    return {"full": Member((outer,)), **pairs, "independent": Member((outer,), True)}


def other_folds(number: int, outer: int) -> list[int]:
    """All folds but ``outer``, in order."""
    return [fold for fold in range(number) if fold != outer]


def member_split(member: Member, folds: Sequence[Sequence[str]], groups: dict[str, str], seed: int) -> Split:
    """Who trains a network and who chooses its best weights; nobody of the excluded folds does either."""
    seen = {p: groups[p] for fold, patients in enumerate(folds) if fold not in member.excluded for p in patients}
    return make_split(seen, (0.85, 0.15, 0.0), seed)


def network_tasks(protocol: Protocol) -> list[Task]:
    """What has to be trained before policies can be."""
    kind, place = protocol.content["reward"]["kind"], protocol.out / "networks"
    if kind == "given":
        return []
    if kind == "population":
        return [Task(place / "population", lambda: _fit_population(protocol, place / "population"))]
    return [Task(place / member.name, lambda m=member: _fit(protocol, m, place / m.name)) for member in _all(protocol)]


def reward_model(protocol: Protocol, outer: int) -> Path | str:
    """The reward model of an outer fold, put together from finished networks where it is cross-fitted."""
    reward = protocol.content["reward"]
    if reward["kind"] == "given":
        return reward["name"]
    if reward["kind"] == "population":
        return protocol.out / "networks" / "population" / "model"
    return _assemble(protocol, outer)


def _all(protocol: Protocol) -> list[Member]:
    return members(len(protocol.folds))


def _scan(protocol: Protocol) -> KSpaceSettings:
    return KSpaceSettings(
        cohort=protocol.cohort.name, reward_model="none", acquisition=protocol.content["acquisition"], budget=1
    )


def _fit(protocol: Protocol, member: Member, folder: Path) -> None:
    which = "independent" if member.independent else "network"
    # A seed of its own for every network: B and A must not share one either.
    seed = 1000 * protocol.content["reward"]["seed"] + _all(protocol).index(member)
    split = member_split(member, protocol.folds, dict(protocol.cohort.groups), seed)
    scan, device = _scan(protocol).scan, resolve_device(protocol.device)
    recipe = protocol.recipe(which, seed)
    fit_member(folder, protocol.cohort, list(split.train), split, scan, recipe, device)
    if protocol.content["env"]["kwargs"].get("precision") == "auto":
        vouch_for_bf16(folder, protocol.cohort, split, scan, device)
    write_json(folder / MEMBERS, {"train": split.train, "val": split.val, "excluded_folds": member.excluded})


def _fit_population(protocol: Protocol, folder: Path) -> None:
    """Networks of a population of phantoms apart, whose patients are others: one model for all folds."""
    reward = protocol.content["reward"]
    cohort = open_cohort(protocol.cohort.name, protocol.datadir, **reward["population"])
    both = sorted(set(cohort.patients) & set(protocol.cohort.patients))
    if both:
        raise SeggymError(
            f"reward.population={reward['population']} holds {len(both)} patients of the protocol ({both[0]} is one), "
            "expected others: give it another seed"
        )
    plan = Plan(protocol.recipe("network", reward["seed"]), protocol.recipe("independent", reward["seed"]), folds=0)
    device = resolve_device(protocol.device)
    fit_reward_model(folder / "model", cohort, split_cohort(cohort), _scan(protocol).scan, plan, device)


def _assemble(protocol: Protocol, outer: int) -> Path:
    """A reward model in the house's format, made of links to the networks; complete or not there at all."""
    folder = protocol.out / "reward_models" / f"fold{outer}"
    number = len(protocol.folds)
    if not (folder / INDEX).is_file():
        for name, member in scoring_members(number, outer).items():
            source, target = protocol.out / "networks" / member.name, folder / name
            target.mkdir(parents=True, exist_ok=True)
            for file in ("model.safetensors", "model.json", "precision.json"):
                if (source / file).is_file() and not (target / file).is_file():
                    _link(source / file, target / file)
        index = {
            "folds": [list(protocol.folds[fold]) for fold in other_folds(number, outer)],
            "cohort": protocol.cohort.name,
            "fingerprint": protocol.cohort.fingerprint,
            "acquisition": protocol.content["acquisition"],
        }
        write_json(folder / INDEX, index)
    open_reward_model(folder)  # refuses a network that was trained on whom it should score
    return folder


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copy2(source, partial)
    os.replace(partial, target)
