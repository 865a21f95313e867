"""One self-contained page of one run or of several seeds: table, differences, curves, reliability, pictures."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seggym.agents.report import STYLE, figure, html_table
from seggym.agents.rl4seg.figures import Evaluations, curve, number, reliability
from seggym.agents.rl4seg.results import CORRECTED, EVALUATION, EXAMPLE, SUBJECT, pooled, read_evaluations
from seggym.errors import SeggymError
from seggym.files import write_atomic, write_json
from seggym.reward_models import statistics

# Name in a summary: the metric, and the part that it is of.
_COMPARED = {
    "dice": ("dice", "test"),
    "hd95": ("hd95", "test"),
    "valid": ("valid", "test"),
    "corrected_dice": ("dice", CORRECTED),
    "corrected_valid": ("valid", CORRECTED),
}


def finished_runs(root: Path) -> list[Path]:
    """Folders at and below ``root`` that hold an evaluation; raises :class:`SeggymError` for none."""
    found = sorted(path.parent for path in root.rglob(EVALUATION) if (path.parent / "run.json").is_file())
    if not found:
        raise SeggymError(f"{root} holds no finished run ({EVALUATION}); run agents/train_rl4seg.py first")
    return found


def write_report(runs: Sequence[Path], folder: Path) -> Path:
    """Write ``comparison.json``, figures and ``report.html`` of ``runs`` (seeds of one experiment) to ``folder``."""
    evaluations = read_evaluations(runs)
    summary = summarise(evaluations)
    write_json(folder / "comparison.json", summary)
    figures = {
        **{f"{metric}_by_iteration": curve(evaluations, metric) for metric in ("dice", "validity", "reward_region")},
        **({"reliability": reliability(evaluations)} if evaluations[0]["uncertainty"] else {}),
    }
    for name, content in figures.items():
        write_atomic(folder / "figures" / f"{name}.png", content)
    return write_atomic(folder / "report.html", _page(runs, evaluations, summary, figures).encode())


def summarise(evaluations: Evaluations) -> dict[str, Any]:
    """Means with 95 % intervals over patients and seeds, and RL4Seg minus every method (Holm: label-free ones)."""
    first = evaluations[0]
    methods = [name for name in first["methods"] if all(name in content["methods"] for content in evaluations)]
    structures = first["class_names"][1:]
    metrics = {**_COMPARED, **{name: (name, "test") for name in ("failed", *(f"dice/{key}" for key in structures))}}
    rows: dict[str, dict[str, Any]] = {}
    contrasts: dict[str, dict[str, Any]] = {}
    ours = {key: pooled(evaluations, SUBJECT, *what) for key, what in _COMPARED.items()}
    for name in methods:
        rows[name] = {}
        for key, what in metrics.items():
            values, patients, seeds = pooled(evaluations, name, *what)
            rows[name][key] = statistics.bootstrap_interval(values, patients, runs=seeds)._asdict()
        if not name.startswith(SUBJECT):
            contrasts[name] = {
                key: statistics.paired_difference(
                    ours[key][0], pooled(evaluations, name, *what)[0], ours[key][1], runs=ours[key][2]
                )._asdict()
                for key, what in _COMPARED.items()
            }
    free = [name for name in contrasts if not first["methods"][name]["privileged"]]
    adjusted = statistics.holm({name: contrasts[name]["dice"]["p_value"] for name in free})
    best = max(free, key=lambda name: rows[name]["dice"]["mean"], default=None)
    return {
        "name": first["name"],
        "seeds": [content["seed"] for content in evaluations],
        "methods": rows,
        "differences": contrasts,
        "holm_dice": adjusted,
        "best_label_free_baseline": best,
        "uncertainty": _uncertainty(evaluations),
        "suspicions": {str(content["seed"]): content["suspicions"] for content in evaluations},
    }


def _uncertainty(evaluations: Evaluations) -> dict[str, dict[str, float]]:
    """Mean over seeds of each score of each source of confidence."""
    found: dict[str, dict[str, float]] = {}
    for name, first in evaluations[0]["uncertainty"].items():
        scores = [key for key, value in first.items() if key != "reliability"]
        found[name] = {
            key: float(np.mean([number(content["uncertainty"][name][key]) for content in evaluations]))
            for key in scores
        }
    return found


def _page(
    runs: Sequence[Path], evaluations: Evaluations, summary: Mapping[str, Any], figures: Mapping[str, bytes]
) -> str:
    first = evaluations[0]
    title = f"RL4Seg: {first['name']}"
    seeds = ", ".join(str(seed) for seed in summary["seeds"])
    best = summary["best_label_free_baseline"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
        f"<p>Seeds {seeds}; test patients of the target domain. Means over patients with 95 % intervals that resample "
        "patients and seeds; HD95 in pixels, of structures that were found (the share of those that were not is "
        "beside it); corrected: after the corrector has mended the masks that break a rule. Rows in italics see labels "
        "of the target.</p>",
        "<h2>Methods</h2>",
        _methods(first, summary),
        "<h2>RL4Seg minus each method, paired by patient</h2>",
        f"<p>{html.escape(_verdict(summary, best))}</p>" if best else "",
        _differences(first, summary),
        *(figure(name, content) for name, content in figures.items()),
        "<h2>Uncertainty of the same masks</h2>" + _uncertainty_table(summary) if summary["uncertainty"] else "",
        "<h2>Monitors</h2>",
        f"<pre>{html.escape(json.dumps(summary['suspicions'], indent=1))}</pre>",
    ]
    for run in runs:
        if (run / "figures" / EXAMPLE).is_file():
            parts.append(figure(f"image, masks and reward map, {run.name}", (run / "figures" / EXAMPLE).read_bytes()))
    facts = json.dumps({"domains": first["domains"], "gap on validation": first["gap"]}, indent=1)
    parts += ["<h2>Settings</h2>", f"<pre>{html.escape(facts)}</pre>", "</body></html>"]
    return "\n".join(parts)


def _verdict(summary: Mapping[str, Any], best: str) -> str:
    difference = summary["differences"][best]["dice"]
    low, high = number(difference["low"]), number(difference["high"])
    judged = "above" if low > 0 else "below" if high < 0 else "not distinguishable from"
    return (
        f"RL4Seg is {judged} the best label-free baseline without reinforcement learning, {best}: "
        f"{difference['mean']:+.4f} [{low:+.4f}, {high:+.4f}] of Dice."
    )


def _kind(first: Mapping[str, Any], name: str) -> str:
    return "apart" if first["methods"][name]["privileged"] else "subject" if name == SUBJECT else ""


def _methods(first: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    structures = first["class_names"][1:]
    corrected = ["corrected_dice", "corrected_valid"]
    columns = ["dice", *(f"dice/{name}" for name in structures), "hd95", "failed", "valid", *corrected]
    head = ["method", "Dice", *structures, "HD95", "not found", "valid", "Dice, corrected", "valid, corrected", "what"]
    rows = []
    for name, values in summary["methods"].items():
        cells = [_interval(values[column], 1 if column == "hd95" else 3) for column in columns]
        rows.append((_kind(first, name), [name, *cells, first["methods"][name]["note"]]))
    return html_table(head, rows)


def _differences(first: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    rows = []
    for name, values in summary["differences"].items():
        adjusted = summary["holm_dice"].get(name)
        cells = [_interval(values[metric], 2 if metric == "hd95" else 4) for metric in _COMPARED]
        rows.append((_kind(first, name), [name, *cells, "" if adjusted is None else f"{adjusted:.4f}"]))
    head = ["minus", "Dice", "HD95", "valid", "Dice, corrected", "valid, corrected", "p of Dice (Holm)"]
    return html_table(head, rows)


def _uncertainty_table(summary: Mapping[str, Any]) -> str:
    scores = ("ece", "mce", "ace", "brier", "auroc", "band_auroc", "nmi", "pearson_dice", "target_ece")
    rows = [
        ("subject" if name == "reward_map" else "", [name, *(f"{entry[score]:.3f}" for score in scores)])
        for name, entry in summary["uncertainty"].items()
    ]
    return html_table(["source", *scores], rows)


def _interval(entry: Mapping[str, Any], digits: int) -> str:
    mean, low, high = (number(entry[key]) for key in ("mean", "low", "high"))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
