"""What an evaluation of a selector leaves in its folder: table, curves, numbers, and one self-contained page."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seggym.agents.figures import png
from seggym.agents.report import STYLE, figure, html_table
from seggym.agents.selection_comparison import SelectionTable
from seggym.agents.selection_evaluation import SelectionBench
from seggym.files import write_atomic, write_json

if TYPE_CHECKING:  # matplotlib takes a second to import and is not needed before the first figure
    from matplotlib.axes import Axes

_HEADINGS = ("policy", "AUBC", "final Dice", "minus it, AUBC", "p (Holm)", "minus it, final", "rank", "minutes")
# So many lines in a figure can be told apart.
_DRAWN = 8


def table_rows(table: SelectionTable) -> list[tuple[str, list[str]]]:
    """A row per policy, and how it is set: "subject" for the first, "apart" for one that sees labels of the pool."""
    contrasts = {(entry["other"], entry["endpoint"]): entry for entry in table.contrasts}
    rows = []
    for row in table.rows:
        name = row["strategy"]
        own = {end: contrasts.get((name, end)) for end in ("aubc", "final")}
        p = own["aubc"]["p_holm"] if own["aubc"] else None
        cells = [
            name + (" *" if row["privileged"] else ""),
            _cell(row["aubc"]),
            _cell(row["final"]),
            _cell(own["aubc"], "+"),
            "" if p is None else f"{p:.3g}",
            _cell(own["final"], "+"),
            f"{row['rank_aubc']:.1f}",
            f"{row['cost']:.0f}",
        ]
        rows.append(("apart" if row["privileged"] else "" if own["aubc"] else "subject", cells))
    return rows


def table_text(bench: SelectionBench, table: SelectionTable, replayed: dict[str, Any] | None) -> str:
    """The table as text, with what it is made of."""
    rows = [list(_HEADINGS), *(cells for _, cells in table_rows(table))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", _note(bench, table)]
    if replayed is not None:
        lines += ["", f"the same final sets taught to a U-Net, {replayed['episodes']} episodes:"]
        lines += [f"  {row['policy']}: Dice {row['dice']:.4f}, minus it {_cell(row, '+')}" for row in replayed["rows"]]
    return "\n".join(lines)


def write_selection_report(
    bench: SelectionBench, table: SelectionTable, replayed: dict[str, Any] | None, folder: Path
) -> Path:
    """Write evaluation.json, evaluation.txt, the curves and report.html to ``folder``, each atomically."""
    text = table_text(bench, table, replayed)
    facts = {
        "env_id": bench.env_id,
        "role": bench.settings.role,
        "episodes": len(bench.keys),
        "budget": bench.budget,
        "key": bench.key,
    }
    write_json(folder / "evaluation.json", {**facts, **table.to_json(), "replay": replayed})
    write_atomic(folder / "evaluation.txt", f"{text}\n".encode())
    picture = curves(table)
    write_atomic(folder / "figures" / "learning_curves.png", picture)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>Selection: {html.escape(bench.env_id)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(bench.env_id)}: who to annotate next, on {bench.settings.role} patients</h1>",
        f"<p>{html.escape(_note(bench, table))}</p>",
        html_table(_HEADINGS, table_rows(table)),
        figure("learning curves", picture),
        _replay_html(replayed),
        "<h2>Settings and data</h2>",
        f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>",
        "</body></html>",
    ]
    return write_atomic(folder / "report.html", "\n".join(parts).encode())


def curves(table: SelectionTable) -> bytes:
    """Dice against annotated samples: the subject, the next best, random, and those that see labels (dashed)."""
    others = [name for name, result in zip(table.names[1:], table.results[1:], strict=True) if not result.privileged]
    drawn = {table.names[0], *others[: _DRAWN - 4], "random", "greedy"}

    def draw(axes: "Axes") -> None:
        for name, result in zip(table.names, table.results, strict=True):
            if name in drawn:
                style = "--" if result.privileged else "-"
                width = 2.5 if name == table.names[0] else 1.2
                axes.plot(result.samples, result.curves.mean(0), linestyle=style, linewidth=width, label=name)
        axes.set(xlabel="annotated samples", ylabel="Dice per volume", title="mean over patients and episodes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    return png(draw, (7.5, 4.8))


def _replay_html(replayed: dict[str, Any] | None) -> str:
    if replayed is None:
        return ""
    rows = [("", [row["policy"], f"{row['dice']:.4f}", _cell(row, "+")]) for row in replayed["rows"]]
    heading = f"<h2>The same final sets taught to a U-Net, {replayed['episodes']} episodes</h2>"
    return heading + html_table(["policy", "Dice", "minus it"], rows)


def _note(bench: SelectionBench, table: SelectionTable) -> str:
    first, full = table.results[0], np.nanmean(table.results[0].full) if not np.isnan(bench.full).all() else None
    whole = "" if full is None else f"; the whole pool gives {full:.3f}"
    return (
        f"{bench.settings.learner} learner, {len(set(first.patients))} patients, {len(first.volumes)} volumes, "
        f"{len(first.seeds)} episodes of {first.samples[0]} to {first.samples[-1]} of {first.pool} samples{whole}; "
        f"mean [95 % interval over patients and episodes]; 'minus it' is {table.names[0]} minus the policy of the row, "
        "paired; p by sign flips of episodes; * sees labels of the pool and is no competitor"
    )


def _cell(entry: Any, sign: str = "") -> str:
    return "" if entry is None else f"{entry['mean']:{sign}.4f} [{entry['low']:{sign}.4f}, {entry['high']:{sign}.4f}]"


def chosen_for_replay(table: SelectionTable, names: Sequence[str] | None) -> list[str]:
    """Policies whose sets a U-Net is taught: ``names``, or the subject, the two best others without labels, random."""
    if names is not None:
        return list(names)
    others = [name for name, result in zip(table.names[1:], table.results[1:], strict=True) if not result.privileged]
    best = [name for name in others if name != "random"][:2]
    return [table.names[0], *best, *(["random"] if "random" in others else [])]
