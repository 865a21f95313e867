"""mAP against what was annotated, of several experiments and seeds, and what random's last mAP costs the others.

Seeds are the unit that is resampled: a seed draws the first images, the weights and the batches. Everything is scored
on the same test images, whose sampling error no interval here has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from seggym.agents.maskal.records import RUN
from seggym.errors import SeggymError
from seggym.files import read_json

EFFORTS = ("images", "instances", "vertices")
METRICS = ("map", "ap50", "ap75")
_DRAWS = 2000


@dataclass(frozen=True)
class Curve:
    """One experiment, its S seeds: ``efforts`` by name and ``scores`` by metric, float64 (S, rounds) each.

    ``per_class`` float64 (S, rounds, C); NaN where a class has no object.
    """

    name: str
    strategy: str
    seeds: tuple[int, ...]
    efforts: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    per_class: np.ndarray


class Saving(NamedTuple):
    """The effort for the reference's last mAP, as a share of the effort that the reference spent on it.

    ``share`` is that of the mean curves, NaN where they do not reach it (then the true one is above ``beyond``);
    ``low`` and ``high`` a 95 % interval that resamples seeds, in which draws that do not reach it count as infinite;
    ``censored`` the share of draws that do not; ``per_seed`` the share in each seed, NaN where it is not reached.
    """

    share: float
    low: float
    high: float
    beyond: float
    censored: float
    per_seed: tuple[float, ...]


def load_curves(root: Path) -> list[Curve]:
    """The curves of all runs below ``root``, of the rounds that all seeds of an experiment have ended."""
    runs: dict[str, list[tuple[int, str, list[dict[str, Any]]]]] = {}
    for path in sorted(root.glob(f"*/seed*/{RUN}")):
        found = read_json(path, "the description of the run")
        experiment = found.get("experiment", {}) if isinstance(found, dict) else {}
        if not {"name", "seed", "strategy"} <= set(experiment):
            raise SeggymError(f"{path} describes no run of run_maskal.py: move its folder elsewhere")
        scores = [read_json(file) for file in sorted(path.parent.glob("scores_*.json"))]
        if scores:
            runs.setdefault(experiment["name"], []).append((experiment["seed"], experiment["strategy"], scores))
    if not runs:
        raise SeggymError(f"{root} holds no round that has ended; run agents/run_maskal.py first")
    return [_curve(name, sorted(found, key=lambda run: run[0])) for name, found in runs.items()]


def _curve(name: str, runs: Sequence[tuple[int, str, list[dict[str, Any]]]]) -> Curve:
    rounds = min(len(scores) for _, _, scores in runs)

    def table(key: str) -> np.ndarray:
        return np.array([[row[key] for row in scores[:rounds]] for _, _, scores in runs], np.float64)

    efforts = {"images": table("train_size"), **{key: table(key) for key in EFFORTS[1:]}}
    seeds = tuple(seed for seed, _, _ in runs)
    return Curve(name, runs[0][1], seeds, efforts, {key: table(key) for key in METRICS}, table("per_class"))


def band(values: np.ndarray) -> np.ndarray:
    """Mean over seeds and its 95 % t interval, (3, rounds) of ``values`` (S, rounds); NaN ends for a single seed."""
    count = len(values)
    mean = values.mean(0)
    if count < 2:
        return np.stack([mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)])
    reach = stats.t.ppf(0.975, count - 1) * values.std(0, ddof=1) / np.sqrt(count)
    return np.stack([mean, mean - reach, mean + reach])


def effort_to(efforts: np.ndarray, scores: np.ndarray, target: float) -> float:
    """The effort at which a curve first reaches ``target``, between its rounds on a straight line; NaN for never."""
    reached = np.flatnonzero(scores >= target)
    if not len(reached):
        return float("nan")
    place = int(reached[0])
    if place == 0:
        return float(efforts[0])
    share = (target - scores[place - 1]) / (scores[place] - scores[place - 1])
    return float(efforts[place - 1] + share * (efforts[place] - efforts[place - 1]))


def saving(curve: Curve, reference: Curve, effort: str, metric: str = "map") -> Saving:
    """What of ``reference``'s effort ``curve`` needs for the same last score; over the seeds that both have."""
    common = [seed for seed in curve.seeds if seed in reference.seeds]
    if not common:
        raise SeggymError(f"{curve.name} and {reference.name} share no seed, expected runs with the same seeds")
    mine, theirs = ([one.seeds.index(seed) for seed in common] for one in (curve, reference))
    rows = (curve.efforts[effort][mine], curve.scores[metric][mine])
    others = (reference.efforts[effort][theirs], reference.scores[metric][theirs])

    def share(chosen: np.ndarray) -> float:
        x, y = (part[chosen].mean(0) for part in rows)
        spent, target = (part[chosen, -1].mean() for part in others)
        return effort_to(x, y, float(target)) / float(spent)

    everything = np.arange(len(common))
    generator = np.random.default_rng(0)
    draws = np.array([share(generator.integers(len(common), size=len(common))) for _ in range(_DRAWS)])
    low = high = float("nan")
    if len(common) > 1:
        ordered = np.sort(np.where(np.isnan(draws), np.inf, draws))
        low, high = (float(ordered[int(np.floor(part * (_DRAWS - 1)))]) for part in (0.025, 0.975))
    beyond = float(rows[0][:, -1].mean() / others[0][:, -1].mean())
    per_seed = tuple(share(np.array([row])) for row in everything)
    return Saving(share(everything), low, high, beyond, float(np.isnan(draws).mean()), per_seed)
