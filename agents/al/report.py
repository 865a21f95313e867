"""Learning curves and one self-contained page, of one run or of several strategies and seeds together."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seggym.agents.al.folders import RUN, SCORES
from seggym.agents.al.scoring import volume_dice
from seggym.agents.al.trial import PARTS
from seggym.agents.comparison import differences
from seggym.agents.figures import file_name, png
from seggym.agents.report import STYLE, figure, html_table
from seggym.agents.selection_comparison import SelectionTable, compare_selection, selection_text, strategy_names
from seggym.agents.selection_results import FILE, SelectionResult, load_selection
from seggym.agents.selection_statistics import aubc
from seggym.errors import SeggymError
from seggym.files import read_json, write_atomic, write_json
from seggym.reward_models import statistics

if TYPE_CHECKING:  # matplotlib takes a second to import and is not needed before the first figure
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curves:
    """One strategy: ``values`` (S, R, V) on a part, of V cases of ``patients``, at ``samples`` (R,)."""

    name: str
    privileged: bool
    samples: np.ndarray
    values: np.ndarray
    patients: tuple[str, ...]
    seeds: tuple[int, ...]

    def intervals(self) -> np.ndarray:
        """Mean and ends of a 95 % interval that resamples patients and seeds, (R, 3)."""
        runs = np.repeat(self.seeds, len(self.patients)).tolist()
        owners = self.patients * len(self.seeds)
        rounds = range(self.values.shape[1])
        return np.array([statistics.bootstrap_interval(self.values[:, r].ravel(), owners, runs=runs) for r in rounds])


def finished_runs(root: Path) -> list[Path]:
    """Folders at and below ``root`` that hold a finished run; raises :class:`SeggymError` for none."""
    found = sorted(path.parent for path in root.rglob(FILE) if (path.parent / RUN).is_file())
    if not found:
        raise SeggymError(f"{root} holds no finished run ({FILE} beside {RUN}); run agents/run_al.py first")
    return found


def write_report(runs: Sequence[Path], folder: Path) -> Path:
    """Write figures, tables and ``report.html`` of ``runs``, which must be comparable, to ``folder``."""
    results = {run: load_selection(run / FILE) for run in runs}
    _require_alike(results)
    merged = _by_strategy(results)
    metric = next(iter(results.values())).key["metric"]
    figures: dict[str, bytes] = {}
    for part in PARTS:
        curves = [_curves(name, group, results, part) for name, group in merged.items()]
        figures[f"{metric}_on_{part}"] = _draw(curves, f"{metric} on {part}", metric)
    if metric == "dice":
        for place, name in enumerate(_classes(runs[0])):
            by_class = [_curves(label, group, results, "test", place) for label, group in merged.items()]
            figures[f"dice_on_test_{file_name(name)}"] = _draw(by_class, f"Dice of {name} on test", "dice")
    else:
        curves = [_curves(name, group, results, "test", "macro_f1") for name, group in merged.items()]
        figures["f1_on_test"] = _draw(curves, "F1 on test, mean over classes", "F1")
    for name, content in figures.items():
        write_atomic(folder / "figures" / f"{name}.png", content)
    comparison = compare_selection([run / FILE for run in runs]) if len(merged) > 1 else None
    if comparison is not None:
        write_json(folder / "comparison.json", comparison.to_json())
    page = _page(runs, results, merged, figures, comparison)
    return write_atomic(folder / "report.html", page.encode())


def _require_alike(results: Mapping[Path, SelectionResult]) -> None:
    """Raise :class:`SeggymError` where two runs differ in more than strategy and seed."""
    (here, first), *others = results.items()
    for there, other in others:
        changed = differences(first.key, other.key)
        if not np.array_equal(first.samples, other.samples):
            changed.append("budgets")
        if changed:
            raise SeggymError(
                f"{here} and {there} were run with different {', '.join(changed[:4])}, expected runs that differ in "
                "strategy and seed alone: report them apart"
            )


def _by_strategy(results: Mapping[Path, SelectionResult]) -> dict[str, list[Path]]:
    """Runs of the same strategy and options, under a name that tells them apart."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for run, result in results.items():
        groups.setdefault((result.strategy, json.dumps(result.options, sort_keys=True)), []).append(run)
    names = strategy_names([results[runs[0]] for runs in groups.values()])
    return dict(zip(names, groups.values(), strict=True))


def _curves(
    name: str, runs: Sequence[Path], results: Mapping[Path, SelectionResult], part: str, what: int | str | None = None
) -> Curves:
    """``what`` is the place of a class, the name of a score, or None for the mean over classes."""
    first = results[runs[0]]
    rows: list[list[np.ndarray]] = []
    patients: tuple[str, ...] = ()
    for run in runs:
        scores = [read_json(run / f"round_{number}" / SCORES)[part] for number in range(len(first.samples))]
        patients = tuple(scores[0].get("patients") or scores[0]["images"])
        if isinstance(what, str):
            patients = (part,)
            rows.append([np.array([score[what]]) for score in scores])
        elif what is not None:
            rows.append([np.array(score["dice"], dtype=np.float64)[:, what] for score in scores])
        else:
            rows.append([volume_dice(score) for score in scores])
    seeds = tuple(results[run].seeds[0] for run in runs)
    return Curves(name, first.privileged, first.samples, np.array(rows), patients, seeds)


def _draw(curves: Sequence[Curves], title: str, metric: str) -> bytes:
    def draw(axes: "Axes") -> None:
        for entry in curves:
            mean, low, high = entry.intervals().T
            style = "--" if entry.privileged else "-"
            (line,) = axes.plot(entry.samples, mean, marker=".", linestyle=style, label=entry.name)
            axes.fill_between(entry.samples, low, high, color=line.get_color(), alpha=0.1, linewidth=0)
        axes.set(xlabel="annotated samples", ylabel=metric, title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    return png(draw, (7.5, 4.8))


def _classes(run: Path) -> list[str]:
    return list(read_json(run / "round_0" / SCORES)["pixels_by_class"])[1:]


def _page(
    runs: Sequence[Path],
    results: Mapping[Path, SelectionResult],
    merged: Mapping[str, Sequence[Path]],
    figures: Mapping[str, bytes],
    comparison: SelectionTable | None,
) -> str:
    first = results[runs[0]]
    description = read_json(runs[0] / RUN, "the description of the run")
    title = f"Active learning: {description['settings']['name']}"
    patients = len(set(first.patients))
    what = "images" if first.key["metric"] == "accuracy" else f"volumes of {patients} patients"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
        f"<p>Pool of {first.pool} samples; budgets {', '.join(map(str, first.samples))}; scored on "
        f"{len(first.volumes)} {what} that no strategy and no network has seen. Bands are 95 % and resample patients "
        "and seeds; dashed strategies see labels of the pool.</p>",
        *(figure(name, content) for name, content in figures.items()),
        "<h2>By round, on test</h2>",
        _rounds(merged, results),
    ]
    if comparison is not None:
        parts += ["<h2>Comparison</h2>", f"<pre>{html.escape(selection_text(comparison))}</pre>"]
    parts.append(
        "<h2>Chosen samples, by round</h2><p>Of one seed; the others lie in figures/ of their run folders.</p>"
    )
    for place, (name, of_strategy) in enumerate(merged.items()):
        run = of_strategy[0]
        for number in range(len(first.samples)):
            sheet = run / "figures" / f"selected_round_{number}.png"
            # Round 0 is the same for every strategy of a seed.
            if sheet.is_file() and (number or not place):
                heading = f"{name}, seed {results[run].seeds[0]}, round {number}"
                parts += [f"<h3>{html.escape(heading)}</h3>", figure(heading, sheet.read_bytes())]
    facts = json.dumps({key: description[key] for key in ("settings", "key")}, indent=1)
    parts += ["<h2>Settings and data</h2>", f"<pre>{html.escape(facts)}</pre>", "</body></html>"]
    return "\n".join(parts)


def _rounds(merged: Mapping[str, Sequence[Path]], results: Mapping[Path, SelectionResult]) -> str:
    rows: list[tuple[str, Sequence[str]]] = []
    first = results[next(iter(merged.values()))[0]]
    for name, runs in merged.items():
        curves = _curves(name, runs, results, "test")
        cells = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in curves.intervals()]
        means = curves.intervals()[:, 0]
        area = f"{float(aubc(means, curves.samples)):.3f}" if len(means) > 1 else ""
        kind = "apart" if curves.privileged else ""
        rows.append((kind, [name, str(len(runs)), *cells, area]))
    if not np.isnan(first.full).all():
        whole = statistics.bootstrap_interval(first.full, first.patients)
        rows.append(("apart", ["whole pool", "1", *[""] * len(first.samples), f"{whole.mean:.3f}"]))
    return html_table(["strategy", "seeds", *(f"{count} samples" for count in first.samples), "AUBC"], rows)
