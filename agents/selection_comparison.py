"""Active-learning runs compared with each other: what ``seggym compare`` prints for ``selection.json``."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seggym.agents.comparison import differences
from seggym.agents.selection_results import FILE, SelectionResult, joined_seeds, load_selection
from seggym.agents.selection_statistics import (
    aubc,
    detectable_difference,
    foreground_efficiency,
    mean_ranks,
    penalty_matrix,
    smallest_p,
)
from seggym.errors import SeggymError
from seggym.reward_models import statistics

ENDPOINTS = ("aubc", "final")


def selection_files(runs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The selection results in ``runs``: of a folder its own, or else those of the folders in it.

    None where no run has any. Raises :class:`SeggymError` where only some have.
    """
    found: list[Path] = []
    without: list[Path] = []
    for run in runs:
        path = Path(run).expanduser()
        own = path if path.name == FILE else path / FILE
        files = [own] if own.is_file() else sorted(path.glob(f"*/{FILE}"))
        found += files
        without += [] if files else [path]
    if found and without:
        raise SeggymError(
            f"{without[0]} holds no {FILE}, as {found[0].parent} does: compare active-learning runs with each other "
            "only"
        )
    return found


@dataclass(frozen=True)
class SelectionTable:
    """Every number of a comparison of the first of ``results`` with the others; ``axis`` is that of the area.

    The results have the same seeds in the same order, volumes and budgets; ``names`` tell them apart.
    """

    names: tuple[str, ...]
    results: tuple[SelectionResult, ...]
    axis: str = "samples"

    def values(self, result: SelectionResult, endpoint: str) -> np.ndarray:
        """The endpoint by seed and volume, (S, V)."""
        if endpoint == "final":
            return result.dice[:, -1]
        return aubc(np.moveaxis(result.dice, 1, -1), result.samples, self.axis)

    def _by_seed(self, values: np.ndarray) -> np.ndarray:
        """Mean over the volumes of a patient, then over patients, of (S, V): (S,)."""
        first = self.results[0]
        return np.asarray([statistics.bootstrap_interval(row, first.patients, draws=1).mean for row in values])

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Each strategy's own numbers: area, final Dice (95 % interval over patients and seeds), efficiency, rank."""
        efficiency = self._efficiency()
        ranks = {
            endpoint: mean_ranks(
                {
                    name: self._by_seed(self.values(result, endpoint))
                    for name, result in zip(self.names, self.results, strict=True)
                }
            )
            for endpoint in ENDPOINTS
        }
        return [
            {
                "strategy": name,
                "privileged": result.privileged,
                **{end: self._interval(self.values(result, end))._asdict() for end in ENDPOINTS},
                **{f"rank_{end}": ranks[end][name] for end in ENDPOINTS},
                "foreground_efficiency": efficiency[name],
                "cost": float(result.cost[:, -1].mean()),
            }
            for name, result in zip(self.names, self.results, strict=True)
        ]

    @cached_property
    def contrasts(self) -> list[dict[str, Any]]:
        """Paired differences, first strategy minus every other.

        The interval resamples patients and seeds; p is that of the exact sign-flip test over seeds, and Holm's family
        are the strategies without privilege, by endpoint.
        """
        found: list[dict[str, Any]] = []
        for endpoint in ENDPOINTS:
            entries = []
            for name, other in zip(self.names[1:], self.results[1:], strict=True):
                cells = self.values(self.results[0], endpoint) - self.values(other, endpoint)
                by_seed = self._by_seed(cells)
                exact = statistics.paired_difference(
                    by_seed, np.zeros(len(by_seed)), list(self.results[0].seeds), draws=1
                )
                entries.append(
                    {
                        "other": name,
                        "privileged": other.privileged,
                        "endpoint": endpoint,
                        **self._interval(cells)._asdict(),
                        "p": exact.p_value,
                        "detectable": detectable_difference(by_seed),
                    }
                )
            adjusted = statistics.holm({entry["other"]: entry["p"] for entry in entries if not entry["privileged"]})
            found += [{**entry, "p_holm": adjusted.get(entry["other"])} for entry in entries]
        return found

    @cached_property
    def penalties(self) -> np.ndarray:
        """:func:`~seggym.agents.selection_statistics.penalty_matrix` of all strategies."""
        return penalty_matrix({n: r.curves for n, r in zip(self.names, self.results, strict=True)})

    def _interval(self, values: np.ndarray) -> statistics.Interval:
        first = self.results[0]
        runs = np.repeat(first.seeds, len(first.volumes)).tolist()
        return statistics.bootstrap_interval(values.ravel(), first.patients * len(first.seeds), runs=runs)

    def _efficiency(self) -> dict[str, float]:
        full = self._by_seed(self.results[0].full[None])[0]
        named = dict(zip(self.names, self.results, strict=True))
        return foreground_efficiency(
            {name: result.foreground for name, result in named.items()},
            {name: result.curves for name, result in named.items()},
            float(full),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "axis": self.axis,
            "samples": self.results[0].samples.tolist(),
            "seeds": list(self.results[0].seeds),
            "smallest_p": smallest_p(len(self.results[0].seeds)),
            "results": self.rows,
            "contrasts": self.contrasts,
            "penalties": {"strategies": list(self.names), "matrix": self.penalties.tolist()},
        }


def compare_selection(files: Sequence[Path], axis: str = "samples") -> SelectionTable:
    """The strategies of ``files`` on the seeds that all of them have, the first one against every other.

    Files of one strategy with different seeds count as one. Raises :class:`SeggymError` where there are fewer than two
    strategies, no common seed, or data, split, learner, volumes or budgets differ.
    """
    merged: dict[tuple[str, str], tuple[Path, SelectionResult]] = {}
    for path in files:
        result = load_selection(path)
        if merged:
            here, first = next(iter(merged.values()))
            _require_comparable(first, result, here, path)
        label = (result.strategy, repr(sorted(result.options.items())))
        if label in merged:
            place, before = merged[label]
            merged[label] = (place, joined_seeds(before, result))
        else:
            merged[label] = (path, result)
    if len(merged) < 2:
        raise SeggymError(
            f"compare needs at least two strategies, found {len(merged)} in {len(files)} selection results: name "
            "another run folder"
        )
    results = [result for _, result in merged.values()]
    common = [seed for seed in results[0].seeds if all(seed in result.seeds for result in results)]
    if not common:
        raise SeggymError(
            "the selection results share no seed, expected runs that start from the same samples: run the same seeds"
        )
    chosen = tuple(_with_seeds(result, common) for result in results)
    return SelectionTable(tuple(strategy_names(results)), chosen, axis)


def strategy_names(results: Sequence[SelectionResult]) -> list[str]:
    """The strategies of ``results``, which differ in name or options; equal names with the options that differ."""
    found = []
    for result in results:
        others = [other.options for other in results if other.strategy == result.strategy]
        keys = dict.fromkeys(key for options in (result.options, *others) for key in options)
        told = [key for key in keys if any(other.get(key) != result.options.get(key) for other in others)]
        shown = ", ".join(f"{key}={result.options.get(key)}" for key in told)
        found.append(f"{result.strategy} ({shown})" if shown else result.strategy)
    return found


def selection_text(table: SelectionTable) -> str:
    """The table as text: each strategy's own numbers, the first minus every other, who beats whom."""
    first, seeds = table.results[0], len(table.results[0].seeds)
    unit = first.cost_unit
    rows = [["strategy", "AUBC", "final Dice", "rank by AUBC", "FG-eff", f"cost ({unit})"]]
    rows += [
        [
            row["strategy"] + (" *" if row["privileged"] else ""),
            _cell(row["aubc"]),
            _cell(row["final"]),
            f"{row['rank_aubc']:.2f}",
            f"{row['foreground_efficiency']:.3g}",
            f"{row['cost']:.4g}",
        ]
        for row in table.rows
    ]
    pairs = [[f"{table.names[0]} minus", "AUBC, p (Holm)", "final Dice, p (Holm)", "detectable AUBC"]]
    for name in table.names[1:]:
        own = {entry["endpoint"]: entry for entry in table.contrasts if entry["other"] == name}
        pairs.append([name, *(_contrast(own[end]) for end in ENDPOINTS), f"{own['aubc']['detectable']:.4f}"])
    matrix = [["row beats column", *table.names]]
    matrix += [
        [name, *(f"{value:.2f}" for value in row)] for name, row in zip(table.names, table.penalties, strict=True)
    ]
    budgets = ", ".join(str(number) for number in first.samples)
    note = (
        f"{len(set(first.patients))} patients, {len(first.volumes)} volumes, {seeds} seeds, {budgets} of {first.pool} "
        f"samples; area over {table.axis} with the start; mean [95 % interval over patients and seeds]; p exact over "
        f"seeds, at least {smallest_p(seeds):.2g} with {seeds}; detectable: by a paired t-test with probability 0.8; "
        "shares of rounds with p (t-test over seeds, Holm) below 0.05; * sees labels of the pool"
    )
    return "\n".join([*_aligned(rows), "", *_aligned(pairs), "", *_aligned(matrix), "", note])


def _require_comparable(first: SelectionResult, second: SelectionResult, here: Path, there: Path) -> None:
    changed = differences(first.key, second.key)
    for name in ("samples", "pool", "volumes", "patients", "cost_unit"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            changed.append(name)
    if changed:
        shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise SeggymError(
            f"{here} and {there} were run with different {shown}, expected the same data, split, learner and budgets: "
            "run one of them again as the other was"
        )


def _with_seeds(result: SelectionResult, seeds: Sequence[int]) -> SelectionResult:
    """``result`` with these of its seeds, in this order."""
    rows = [result.seeds.index(seed) for seed in seeds]
    return replace(
        result,
        seeds=tuple(seeds),
        selected=tuple(result.selected[row] for row in rows),
        **{name: getattr(result, name)[rows] for name in ("pixels", "foreground", "cost", "dice")},
    )


def _cell(entry: dict[str, Any], sign: str = "") -> str:
    return f"{entry['mean']:{sign}.4f} [{entry['low']:{sign}.4f}, {entry['high']:{sign}.4f}]"


def _contrast(entry: dict[str, Any]) -> str:
    p = "privileged" if entry["p_holm"] is None else f"{entry['p_holm']:.3g}"
    return f"{_cell(entry, '+')}, {p}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
