"""The outcome of an evaluation: means over patients with intervals, comparisons, tables, JSON and CSV."""

import csv
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from seggym.agents.scores import Cases, Scores, mean_over_classes
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.trajectories import NOUNS
from seggym.reward_models import statistics

LEVELS = ("volume", "slice")
TARGET = 0.95  # of the Dice at full k-space, for the number of lines that reach it
COLUMNS = ("policy", "net", "budget", "metric", "level", "mean", "low", "high", "n")


@dataclass(frozen=True)
class PolicyResult:
    """Raw scores of one policy.

    ``kind`` is "policy" (what the evaluation is about), "baseline" or "ceiling" (full k-space; one point). ``points``
    are the numbers of lines along the first axis of the scores; ``runs`` holds the scores of each training run.
    """

    name: str
    kind: str
    privileged: bool
    points: tuple[int, ...]
    runs: list[Scores]

    def values(self, net: str, level: str, metric: str) -> np.ndarray:
        """One number per run, point and case, float64 (R, T, cases): classes averaged, NaN where nothing is defined.

        ``metric`` is dice, hd95, assd, failure_rate, absent_area (summed over classes), dice_<index of the class>,
        hd95_<index of the class>, or of net "image" ssim and psnr.
        """
        return np.stack([_reduce(run, net, level, metric) for run in self.runs])

    def has(self, net: str, level: str, metric: str) -> bool:
        """Whether :meth:`values` has this metric."""
        name = {"failure_rate": "failed"}.get(metric, _of_class(metric)[0])
        return f"{net}/{level}/{name}" in self.runs[0]


def _of_class(metric: str) -> tuple[str, int | None]:
    """``dice_2`` as ("dice", 2); a metric of no single class as (metric, None)."""
    name, _, index = metric.rpartition("_")
    return (name, int(index)) if index.isdigit() and name in ("dice", "hd95") else (metric, None)


def _reduce(run: Scores, net: str, level: str, metric: str) -> np.ndarray:
    prefix = f"{net}/{level}/"
    if net == "image":
        return run[prefix + metric].astype(np.float64)
    if metric == "absent_area":
        return run[prefix + metric].sum(-1, dtype=np.float64)
    name, index = _of_class(metric)
    if index is not None:
        return run[prefix + name][..., index - 1].astype(np.float64)
    return mean_over_classes(run[prefix + {"failure_rate": "failed"}.get(metric, metric)])


@dataclass
class EvaluationResult:
    """All that an evaluation found: raw scores in ``policies``; ``to_json()``, ``to_csv()`` and ``table()`` show them.

    The area of a policy is the mean of its Dice over the budgets of ``eval_range``. Intervals are 95 % percentile
    intervals from resampling patients (and training runs, where there are several).
    """

    env_id: str
    eval_range: tuple[int, int]
    protocol: str
    repeats: int
    settings: dict[str, Any]
    provenance: dict[str, Any]
    cases: Cases
    policies: list[PolicyResult]
    key: dict[str, Any]  # what another evaluation must share to be compared with this one

    @property
    def nets(self) -> list[str]:
        """The scoring networks that were there: A, B or none."""
        return [net for net in ("A", "B") if self.policies[0].has(net, "slice", "dice")]

    @property
    def headline(self) -> tuple[str, str, str]:
        """(net, level, metric) that ranks the policies: volume Dice by the independent network where there is one."""
        return (self.nets[-1], "volume", "dice") if self.nets else ("image", "slice", "ssim")

    @property
    def ceiling(self) -> PolicyResult:
        """Full k-space."""
        return next(policy for policy in self.policies if policy.kind == "ceiling")

    def _measures(self) -> list[tuple[str, str, str]]:
        classes = [f"{name}_{index}" for name in ("dice", "hd95") for index in range(1, len(self.cases.class_names))]
        per_level = {
            "volume": ["dice", *classes, "hd95", "assd", "failure_rate"],
            "slice": ["dice", *classes, "absent_area", "hd95", "failure_rate"],
        }
        measures = [(net, level, metric) for net in self.nets for level in LEVELS for metric in per_level[level]]
        return [*measures, *(("image", level, metric) for level in LEVELS for metric in ("ssim", "psnr"))]

    def _metric_name(self, metric: str) -> str:
        name, index = _of_class(metric)
        return name if index is None else f"{name}_{self.cases.class_names[index]}"

    def area_values(self, policy: PolicyResult, net: str, level: str, metric: str = "dice") -> np.ndarray:
        """Area of every run and case, (R, cases); the ceiling's is its value."""
        curves = np.moveaxis(policy.values(net, level, metric), 1, -1)
        return curves[..., 0] if policy.kind == "ceiling" else statistics.area(curves)

    def lines_values(self, policy: PolicyResult, net: str) -> tuple[np.ndarray, np.ndarray]:
        """Lines to 95 % of the Dice at full k-space of every run and volume, and whether it was reached: (R, V) each.

        Where it was not reached the number is one more than the largest budget.
        """
        curves = np.moveaxis(policy.values(net, "volume", "dice"), 1, -1)
        full = np.broadcast_to(self.ceiling.values(net, "volume", "dice")[:, 0], curves.shape[:-1])
        found = statistics.lines_to(curves, full, TARGET)
        lines = np.asarray([*policy.points, self.eval_range[1] + 1], dtype=np.float64)
        defined = ~np.isnan(found.lines)
        index = np.where(defined, found.lines, 0).astype(int)
        return np.where(defined, lines[index], np.nan), found.reached

    def interval(self, values: np.ndarray, level: str) -> tuple[statistics.Interval, int]:
        """Mean with interval of ``values`` (R, cases), and the number of patients that have one."""
        flat, patients, runs = self._flat(values, level)
        known = {patient for patient, value in zip(patients, flat, strict=True) if not np.isnan(value)}
        return statistics.bootstrap_interval(flat, patients, runs=runs), len(known)

    def _flat(self, values: np.ndarray, level: str) -> tuple[np.ndarray, list[str], list[int] | None]:
        patients = self.cases.patients_at(level)
        runs = np.repeat(np.arange(len(values)), values.shape[1]).tolist() if len(values) > 1 else None
        return values.ravel(), patients * len(values), runs

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Every mean with its interval: dicts with the keys :data:`COLUMNS`; n is the number of patients.

        ``budget`` is the number of lines after the initial ones, "full", "area" or "curve" (lines_to_95, reached_95).
        """
        return [row for policy in self.policies for row in self._policy_rows(policy)]

    def _policy_rows(self, policy: PolicyResult) -> list[dict[str, Any]]:
        rows = []

        def add(net: str, budget: int | str, metric: str, level: str, values: np.ndarray) -> None:
            found, count = self.interval(values, level)
            entry = (policy.name, net, budget, self._metric_name(metric), level, *found, count)
            rows.append(dict(zip(COLUMNS, entry, strict=True)))

        for net, level, metric in self._measures():
            values = policy.values(net, level, metric)
            for index, point in enumerate(policy.points):
                if not np.isnan(values[:, index]).all():
                    add(net, "full" if policy.kind == "ceiling" else point, metric, level, values[:, index])
            if metric in ("dice", "ssim", "psnr"):
                add(net, "area", metric, level, self.area_values(policy, net, level, metric))
        if policy.kind != "ceiling":
            for net in self.nets:
                lines, reached = self.lines_values(policy, net)
                add(net, "curve", "lines_to_95", "volume", lines)
                add(net, "curve", "reached_95", "volume", np.where(np.isnan(lines), np.nan, reached))
        return rows

    def find(self, policy: str, net: str, budget: int | str, metric: str, level: str) -> dict[str, Any] | None:
        """The row of :attr:`rows` with these keys, None where there is none."""
        return self._index.get((policy, net, budget, metric, level))

    @cached_property
    def _index(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {tuple(row[key] for key in COLUMNS[:5]): row for row in self.rows}

    @cached_property
    def contrasts(self) -> list[dict[str, Any]]:
        """Paired differences in area, first policy minus every other: mean, interval, p and Holm-adjusted p.

        One Holm family per network and level, over the policies that are not privileged; the privileged reference is
        listed without a p-value.
        """
        subject = self.policies[0]
        if subject.kind != "policy":
            return []
        others = [policy for policy in self.policies[1:] if policy.kind != "ceiling"]
        measures = [(net, level, "dice") for net in self.nets for level in LEVELS] or [("image", "slice", "ssim")]
        found = []
        for net, level, metric in measures:
            family: dict[str, float] = {}
            entries = []
            for other in others:
                pair = [self.area_values(policy, net, level, metric) for policy in (subject, other)]
                runs = max(len(values) for values in pair)
                (first, patients, groups), (second, _, _) = (
                    self._flat(np.broadcast_to(values, (runs, values.shape[1])), level) for values in pair
                )
                difference = statistics.paired_difference(first, second, patients, runs=groups)
                if not other.privileged:
                    family[other.name] = difference.p_value
                entries.append((other, difference))
            adjusted = statistics.holm(family)
            for other, difference in entries:
                found.append(
                    {
                        "policy": subject.name,
                        "other": other.name,
                        "privileged": other.privileged,
                        "net": net,
                        "level": level,
                        "metric": metric,
                        **dict(zip(("mean", "low", "high"), difference[:3], strict=True)),
                        "p": family.get(other.name),
                        "p_holm": adjusted.get(other.name),
                        "patients": difference.patients,
                    }
                )
        return found

    def ranked(self) -> list[PolicyResult]:
        """Policies by falling area of the headline measure: honest ones, then privileged ones, then the ceiling."""
        net, level, metric = self.headline

        def order(policy: PolicyResult) -> tuple[bool, bool, float]:
            row = self.find(policy.name, net, "area", metric, level)
            return policy.kind == "ceiling", policy.privileged, -row["mean"] if row else 0.0

        return sorted(self.policies, key=order)

    @property
    def acquisition(self) -> Acquisition:
        """How the scans were made."""
        return Acquisition(**self.settings["acquisition"])

    @property
    def noun(self) -> str:
        """What an action measures: "lines", "spokes" or "points"."""
        return NOUNS[self.acquisition.trajectory]

    @property
    def origin(self) -> str:
        """Where k-space is from: "measured" by a scanner, or "simulated"."""
        return "measured" if self.provenance.get("measured") else "simulated"

    def table_rows(self) -> tuple[list[str], list[tuple[PolicyResult, list[str]]]]:
        """Headings and, per ranked policy, cells of the summary table."""
        measures = [(net, level, "dice") for level in LEVELS for net in self.nets]
        headings = [f"area of {level} Dice, net {net}" for net, level, _ in measures] + ["area of SSIM"]
        headings += [f"{self.noun} to 95 %, net {net}" for net in self.nets]
        body = []
        for policy in self.ranked():
            cells = [_cell(self.find(policy.name, net, "area", m, level)) for net, level, m in measures]
            cells.append(_cell(self.find(policy.name, "image", "area", "ssim", "slice")))
            for net in self.nets:
                lines = self.find(policy.name, net, "curve", "lines_to_95", "volume")
                reached = self.find(policy.name, net, "curve", "reached_95", "volume")
                missed = "" if lines is None or reached is None else f" ({1 - reached['mean']:.0%} not reached)"
                cells.append("" if lines is None else f"{lines['mean']:.1f}{missed}")
            body.append((policy, cells))
        return headings, body

    def table(self) -> str:
        """The summary as text: areas with intervals, best first; privileged references and full k-space set apart."""
        headings, body = self.table_rows()
        rows = [["policy", *headings]]
        rows += [[policy.name + (" *" if policy.privileged else ""), *cells] for policy, cells in body]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        rule = "-" * max(len(line) for line in lines)
        apart = next(
            (i for i, (policy, _) in enumerate(body) if policy.privileged or policy.kind == "ceiling"), len(body)
        )
        text = [lines[0], rule, *lines[1 : 1 + apart], rule, *lines[1 + apart :]]
        notes = [
            f"{self.env_id}, {self.settings['role']} patients ({len(set(self.cases.patients))}), budgets "
            f"{self.eval_range[0]}..{self.eval_range[1]}, {self.protocol}; mean [95 % interval over patients]; "
            f"k-space is {self.origin}",
        ]
        if any(policy.privileged for policy in self.policies):
            notes.append("* sees the labels of the slice it scans: a reference, no competitor and no upper bound")
        return "\n".join([*text, *notes])

    def gains(self) -> str:
        """The paired differences of the headline measure as text: first policy minus every other."""
        net, level, metric = self.headline
        own = [
            entry for entry in self.contrasts if (entry["net"], entry["level"], entry["metric"]) == (net, level, metric)
        ]
        lines = [
            f"{entry['policy']} - {entry['other']}: {entry['mean']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"
            + ("" if entry["p_holm"] is None else f", p (Holm) {entry['p_holm']:.4f}")
            for entry in own
        ]
        return "\n".join([f"gain in area of {metric} per {level}, net {net}, {self.env_id}:", *lines])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: settings, provenance, rows, contrasts."""
        return {
            "env_id": self.env_id,
            "eval_range": list(self.eval_range),
            "protocol": self.protocol,
            "repeats": self.repeats,
            "simulated_kspace": True,
            "settings": self.settings,
            "provenance": self.provenance,
            "patients": sorted(set(self.cases.patients)),
            "slices": len(self.cases),
            "volumes": len(self.cases.volumes),
            "policies": [
                {"name": p.name, "kind": p.kind, "privileged": p.privileged, "runs": len(p.runs),
                 "illegal_actions": [int(run["illegal"]) for run in p.runs if "illegal" in run]}
                for p in self.policies
            ],
            "results": self.rows,
            "contrasts": self.contrasts,
        }  # fmt: skip

    def to_csv(self) -> str:
        """:attr:`rows` as CSV text."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
