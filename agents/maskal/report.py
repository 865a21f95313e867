"""Figures, tables and one page of all experiments of a file."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seggym.agents.figures import file_name, png
from seggym.agents.maskal.curves import EFFORTS, METRICS, Curve, Saving, band, load_curves, saving
from seggym.agents.maskal.records import RUN
from seggym.agents.report import STYLE, figure, html_table
from seggym.files import read_json, write_atomic, write_json

if TYPE_CHECKING:  # matplotlib takes a second to import and is not needed before the first figure
    from matplotlib.axes import Axes

_COMPLETE = "complete"
_NAMES = {"map": "mAP", "ap50": "AP50", "ap75": "AP75"}


@dataclass(frozen=True)
class _Comparison:
    """An experiment beside the one that chooses at random."""

    name: str
    reference: str
    effort: str
    found: Saving


def write_report(root: Path) -> Path:
    """Write ``results.json``, ``figures/`` and ``report.html`` of the runs below ``root`` to it; returns the page."""
    found = load_curves(root)
    curves = [curve for curve in found if curve.name != _COMPLETE]
    whole = next((curve for curve in found if curve.name == _COMPLETE), None)
    figures = {
        f"{_NAMES[metric]}_by_{effort}": _draw(curves, whole, effort, metric)
        for effort in EFFORTS
        for metric in METRICS
    }
    classes = _classes(root)
    for place, name in enumerate(classes):
        figures[f"AP_of_{file_name(name)}"] = _draw_class(curves, place, f"AP of {name}")
    for name, content in figures.items():
        write_atomic(root / "figures" / f"{name}.png", content)
    comparisons = _compare(curves)
    write_json(root / "results.json", _json(found, comparisons, classes))
    return write_atomic(root / "report.html", _page(root, curves, whole, comparisons, figures).encode())


def _compare(curves: Sequence[Curve]) -> list[_Comparison]:
    """Every experiment against the first random one that shares a seed with it."""
    found = []
    for curve in curves:
        references = [one for one in curves if one.strategy == "random" and set(one.seeds) & set(curve.seeds)]
        if curve.strategy == "random" or not references:
            continue
        for effort in EFFORTS:
            found.append(_Comparison(curve.name, references[0].name, effort, saving(curve, references[0], effort)))
    return found


def _classes(root: Path) -> list[str]:
    first = next(iter(sorted(root.glob(f"*/seed*/{RUN}"))))
    return list(read_json(first)["settings"]["classes"])


def _draw(curves: Sequence[Curve], whole: Curve | None, effort: str, metric: str) -> bytes:
    def draw(axes: "Axes") -> None:
        for curve in curves:
            _line(axes, curve, effort, curve.scores[metric])
        if whole is not None:
            axes.axhline(whole.scores[metric].mean(), color="black", linestyle=":", label="all images of traindir")
        _finish(axes, f"annotated {effort}", _NAMES[metric])

    return png(draw, (7.5, 4.8))


def _draw_class(curves: Sequence[Curve], place: int, title: str) -> bytes:
    def draw(axes: "Axes") -> None:
        for curve in curves:
            _line(axes, curve, "instances", curve.per_class[:, :, place])
        _finish(axes, "annotated instances", title)

    return png(draw, (7.5, 4.8))


def _line(axes: "Axes", curve: Curve, effort: str, values: np.ndarray) -> None:
    mean, low, high = band(values)
    across = curve.efforts[effort].mean(0)
    (line,) = axes.plot(across, mean, marker=".", label=f"{curve.name} ({len(curve.seeds)} seeds)")
    if np.isfinite(low).any():
        axes.fill_between(across, low, high, color=line.get_color(), alpha=0.12, linewidth=0)


def _finish(axes: "Axes", across: str, up: str) -> None:
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _json(found: Sequence[Curve], comparisons: Sequence[_Comparison], classes: Sequence[str]) -> dict[str, Any]:
    """All numbers, as fractions."""
    return {
        "format": 1,
        "kind": "maskal results",
        "classes": list(classes),
        "experiments": [
            {
                "name": curve.name,
                "strategy": curve.strategy,
                "seeds": list(curve.seeds),
                **{name: values.tolist() for name, values in {**curve.efforts, **curve.scores}.items()},
                "per_class": curve.per_class.tolist(),
            }
            for curve in found
        ],
        "effort_for_the_last_map_of_random": [
            {"name": one.name, "reference": one.reference, "effort": one.effort, **_finite(one.found._asdict())}
            for one in comparisons
        ],
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: an open end is None."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in values.items()
    }


def _page(
    root: Path,
    curves: Sequence[Curve],
    whole: Curve | None,
    comparisons: Sequence[_Comparison],
    figures: dict[str, bytes],
) -> str:
    title = f"maskAL: {root.name}"
    rows = []
    for curve in curves:
        mean = {name: values.mean(0) for name, values in {**curve.efforts, **curve.scores}.items()}
        for number in range(len(mean["map"])):
            _, low, high = band(curve.scores["map"])[:, number]
            interval = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
            cells = [curve.name, str(number), *(f"{mean[effort][number]:.0f}" for effort in EFFORTS)]
            cells += [
                f"{mean['map'][number]:.3f}{interval}",
                f"{mean['ap50'][number]:.3f}",
                f"{mean['ap75'][number]:.3f}",
            ]
            rows.append(("", cells))
    if whole is not None:
        efforts = [f"{whole.efforts[effort].mean():.0f}" for effort in EFFORTS]
        scores = [f"{whole.scores[metric].mean():.3f}" for metric in METRICS]
        rows.append(("apart", ["all images of traindir", "", *efforts, *scores]))
    facts = {
        path.parent.parent.name + "/" + path.parent.name: read_json(path)
        for path in sorted(root.glob(f"*/seed*/{RUN}"))
    }
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
        "<p>Scored on the test images, which nothing was chosen or trained on. Bands are 95 % t intervals over seeds; "
        "the sampling of test images is not in them.</p>",
        *(figure(name, content) for name, content in figures.items()),
        "<h2>By round</h2>",
        html_table(["experiment", "round", *EFFORTS, "mAP", "AP50", "AP75"], rows),
    ]
    if comparisons:
        header = ["experiment", "effort", "share of random's", "95 % interval", "draws that do not reach it", "by seed"]
        parts += [
            "<h2>What random's last mAP costs</h2>",
            "<p>The annotations with which an experiment reaches the mAP that random choice ends with, as a share of "
            "those that random choice spent. Where it is not reached the share is above the one given.</p>",
            html_table(header, [("", saving_cells(one)) for one in comparisons]),
        ]
    parts += ["<h2>Settings</h2>", f"<pre>{html.escape(json.dumps(facts, indent=1))}</pre>", "</body></html>"]
    return "\n".join(parts)


def saving_cells(one: _Comparison) -> list[str]:
    """A comparison in words."""
    found = one.found

    def text(value: float) -> str:
        return f"{value:.2f}" if np.isfinite(value) else "not reached"

    share = f"{found.share:.2f}" if np.isfinite(found.share) else f"not reached (> {found.beyond:.2f})"
    interval = f"{text(found.low)} to {text(found.high)}" if len(found.per_seed) > 1 else ""
    return [one.name, one.effort, share, interval, f"{found.censored:.0%}", ", ".join(map(text, found.per_seed))]
