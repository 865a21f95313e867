"""Intervals and contrasts over patients that were tested in different folds, by policies trained several times.

Every patient is tested in one fold. In each fold the runs (training seeds) are others, and their number may differ; a
draw of the bootstrap resamples the patients of all folds, and independently the runs of each fold. A fold with a single
run adds nothing for the choice of the seed, so where only some folds have several runs the intervals are a little too
narrow; those folds' own spread is shown apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from seggym.agents.curves import Curves
from seggym.errors import SeggymError
from seggym.reward_models import statistics

ENDPOINTS = ("lines_to_95", "area")
"""The primary endpoint, fewer lines being better, and the second one, more area being better."""
DRAWS = 2000


class Estimate(NamedTuple):
    """A mean, its 95 % percentile interval and the number of patients."""

    mean: float
    low: float
    high: float
    patients: int


@dataclass(frozen=True)
class Resampling:
    """The same bootstrap draws for every number of a table.

    ``patients`` and ``folds`` (V,) of the volumes whose values are resampled.
    """

    patients: Sequence[str]
    folds: Sequence[int]
    draws: int = DRAWS
    seed: int = 0

    def estimate(self, values: np.ndarray) -> Estimate:
        """The mean of ``values`` (R, V) over runs, then volumes of a patient, then patients."""
        cells = self._cells(values)
        known = ~np.isnan(cells).all(1)
        return _estimate(_mean(cells), self._means(cells), int(known.sum()))

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Estimate:
        """The ratio of the means of ``above`` and ``below``, (R, V) each, over the patients that have both."""
        above, below = self._cells(above), self._cells(below)
        missing = np.isnan(above).all(1) | np.isnan(below).all(1)
        above[missing], below[missing] = np.nan, np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.float64(_mean(above)) / _mean(below)
            draws = self._means(above) / self._means(below)
        return _estimate(float(ratio), draws, int((~missing).sum()))

    @cached_property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(self.patients))

    @cached_property
    def _fold_of(self) -> np.ndarray:
        found = dict(zip(self.patients, self.folds, strict=True))
        return np.asarray([found[name] for name in self._names])

    @cached_property
    def _patient_weights(self) -> np.ndarray:
        count = len(self._names)
        return np.random.default_rng([self.seed, 0]).multinomial(count, np.full(count, 1 / count), self.draws)

    def _run_weights(self, fold: int, runs: int) -> np.ndarray:
        # Of the fold and the number of runs alone: methods with as many runs share their draws, which pairs them.
        generator = np.random.default_rng([self.seed, 1, fold, runs])
        return generator.multinomial(runs, np.full(runs, 1 / runs), self.draws)

    def _cells(self, values: np.ndarray) -> np.ndarray:
        """(P, R) means over the volumes of a patient, NaN where there is none."""
        if np.isinf(values).any():
            raise SeggymError("values must be finite or NaN, found infinite ones; mark them as NaN")
        cells = np.full((len(self._names), len(values)), np.nan)
        patients = np.asarray(self.patients)
        for row, name in enumerate(self._names):
            own = values[:, patients == name]
            count = (~np.isnan(own)).sum(1)
            total = np.nansum(own, axis=1)
            cells[row] = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
        return cells

    def _means(self, cells: np.ndarray) -> np.ndarray:
        """Mean over patients in every draw, (draws,); NaN where a draw holds no value."""
        means = np.full((self.draws, len(cells)), np.nan)
        for fold in np.unique(self._fold_of):
            rows = np.flatnonzero(self._fold_of == fold)
            own = cells[rows][:, ~np.isnan(cells[rows]).all(0)]
            if not own.size:
                continue
            weights = self._run_weights(int(fold), own.shape[1])
            seen = weights @ (~np.isnan(own)).T
            total = weights @ np.nan_to_num(own).T
            means[:, rows] = np.divide(total, seen, out=np.full(total.shape, np.nan), where=seen > 0)
        weights = self._patient_weights * ~np.isnan(means)
        count = weights.sum(1)
        total = (weights * np.nan_to_num(means)).sum(1)
        return np.divide(total, count, out=np.full(self.draws, np.nan), where=count > 0)


def _mean(cells: np.ndarray) -> float:
    """Mean over runs, then patients."""
    known = ~np.isnan(cells)
    count = known.sum(1)
    per_patient = np.where(known, cells, 0).sum(1)[count > 0] / count[count > 0]
    return float(per_patient.mean()) if len(per_patient) else float("nan")


def _estimate(mean: float, draws: np.ndarray, patients: int) -> Estimate:
    usable = draws[np.isfinite(draws)]
    if patients < 2 or not len(usable):
        return Estimate(mean, float("nan"), float("nan"), patients)
    low, high = np.quantile(usable, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), patients)


@dataclass(frozen=True)
class PooledTable:
    """Every number of a comparison of ``subject`` with all other methods of ``curves``.

    ``controls`` are methods that explain rather than compete: they are listed, but stand outside Holm's families. The
    normalised score puts ``zero`` at 0 and ``one`` at 1.
    """

    curves: Curves
    subject: str
    controls: tuple[str, ...] = ()
    zero: str = "random"
    one: str = "one_step_greedy"

    def values(self, name: str, net: str, endpoint: str) -> np.ndarray:
        """The endpoint of every run and volume, (R, V)."""
        if endpoint == "area":
            return self.curves.area(name, net)
        lines, reached = self.curves.lines(name, net)
        return np.where(np.isnan(lines), np.nan, reached) if endpoint == "reached_95" else lines

    @cached_property
    def resampling(self) -> Resampling:
        """The draws that all intervals share."""
        return Resampling(self.curves.patients, self.curves.folds)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Mean and interval of each endpoint, and the share of volumes that reached 95 %, by method and net."""
        return [
            {
                "method": method.name,
                "privileged": method.privileged,
                "net": net,
                "endpoint": endpoint,
                **self.resampling.estimate(self.values(method.name, net, endpoint))._asdict(),
            }
            for method in self.curves.methods
            for net in self.curves.nets
            for endpoint in (*ENDPOINTS, "reached_95")
        ]

    @cached_property
    def contrasts(self) -> list[dict[str, Any]]:
        """Paired differences, subject minus other: Holm's family is all honest methods, by endpoint and net."""
        found: list[dict[str, Any]] = []
        for net in self.curves.nets:
            for endpoint in ENDPOINTS:
                entries = [self._contrast(other.name, net, endpoint) for other in self._others()]
                honest = {m.name for m in self._others() if not m.privileged and m.name not in self.controls}
                adjusted = statistics.holm({e["other"]: e["p"] for e in entries if e["other"] in honest})
                found += [{**entry, "p_holm": adjusted.get(entry["other"])} for entry in entries]
        return found

    def _others(self) -> list[Any]:
        return [method for method in self.curves.methods if method.name != self.subject]

    def _contrast(self, other: str, net: str, endpoint: str) -> dict[str, Any]:
        mine, theirs = self.values(self.subject, net, endpoint), self.values(other, net, endpoint)
        difference = paired(mine, theirs, self.curves.folds)
        patients = list(self.curves.patients)
        runs = np.repeat(np.arange(len(difference)), len(patients)).tolist()
        tested = statistics.paired_difference(
            difference.ravel(), np.zeros(difference.size), patients * len(difference), runs=runs, draws=1
        )
        return {
            "subject": self.subject,
            "other": other,
            "privileged": self.curves.method(other).privileged,
            "control": other in self.controls,
            "net": net,
            "endpoint": endpoint,
            **self.resampling.estimate(difference)._asdict(),
            "p": tested.p_value,
        }

    @cached_property
    def normalised(self) -> list[dict[str, Any]]:
        """How far each method is on the way from ``zero`` to ``one``, by net and endpoint; empty where one lacks."""
        names = [method.name for method in self.curves.methods]
        if self.zero not in names or self.one not in names:
            return []
        found = []
        for net in self.curves.nets:
            for endpoint in ENDPOINTS:
                zero, one = (self.values(name, net, endpoint) for name in (self.zero, self.one))
                for name in names:
                    mine = self.values(name, net, endpoint)
                    above = paired(mine, zero, self.curves.folds)
                    below = paired(one, zero, self.curves.folds)[:1]
                    missing = np.isnan(above) | np.isnan(below)
                    above, below = np.where(missing, np.nan, above), np.where(missing, np.nan, below)
                    estimate = self.resampling.ratio(above, below)
                    found.append({"method": name, "net": net, "endpoint": endpoint, **estimate._asdict()})
        return found

    def find(self, rows: Sequence[dict[str, Any]], **keys: Any) -> dict[str, Any] | None:
        """The first of ``rows`` with these values."""
        return next((row for row in rows if all(row[name] == value for name, value in keys.items())), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "subject": self.subject,
            "controls": list(self.controls),
            "patients": sorted(set(self.curves.patients)),
            "volumes": len(self.curves.volumes),
            "results": self.rows,
            "contrasts": self.contrasts,
            "normalised": self.normalised,
        }


def paired(first: np.ndarray, second: np.ndarray, folds: Sequence[int]) -> np.ndarray:
    """``first - second``, (R, V) each, run by run; a method with a single run in a fold is paired with every run there.

    Runs of which only one of the two has several are left out.
    """
    runs = max(len(first), len(second))
    return _spread(first, runs, folds) - _spread(second, runs, folds)


def _spread(values: np.ndarray, runs: int, folds: Sequence[int]) -> np.ndarray:
    """(runs, V): where a fold has one run only, it stands for all of them."""
    result = np.full((runs, values.shape[1]), np.nan)
    result[: len(values)] = values
    labels = np.asarray(folds)
    for fold in np.unique(labels):
        own = labels == fold
        if runs > 1 and np.isnan(result[1:, own]).all():
            result[1:, own] = result[0, own]
    return result
