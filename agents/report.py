"""What an evaluation leaves in its folder: JSON, CSV, figures and one self-contained HTML page."""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from seggym.agents.curves import curves_of
from seggym.agents.figures import all_figures
from seggym.agents.results import LEVELS, EvaluationResult
from seggym.files import write_atomic, write_json

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
table { display: block; overflow-x: auto; }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
tr.apart td { color: #777; font-style: italic; background: #f7f7f7; }
tr.subject td { font-weight: 600; }
img { max-width: 100%; } pre { background: #f7f7f7; padding: 1em; overflow-x: auto; font-size: 12px; }
"""

_ORIGINS = {
    "simulated": "All k-space in this evaluation is simulated from magnitude images, with a smooth phase, an echo "
    "shift and noise; no number here was measured on a scanner.",
    "measured": "All k-space in this evaluation was measured by a scanner, in full and before any line was chosen; its "
    "coils are compressed to virtual ones and nothing is simulated on top.",
}
_PREFACE = (
    "Net A is the network that the environment rewards with, net B an "
    "independent one with another seed and architecture: a policy that exploits its reward does worse by B. "
    "Intervals are 95 % and "
    "resample patients. Rows in italics are apart: one_step_greedy sees the labels of the slice that it scans (a "
    "reference, no competitor and no upper bound), full_kspace measures every line."
)


def write_report(result: EvaluationResult, folder: Path) -> list[Path]:
    """Write evaluation.json, evaluation.csv, figures/*.png and report.html to ``folder``, each atomically.

    Where networks scored, the curves of every volume lie beside them, for ``seggym compare``.
    """
    figures = all_figures(result)
    if result.nets:
        curves_of(result, result.key).save(folder)
    paths = [
        write_json(folder / "evaluation.json", result.to_json()),
        write_atomic(folder / "evaluation.csv", result.to_csv().encode()),
    ]
    paths += [write_atomic(folder / "figures" / f"{name}.png", content) for name, content in figures.items()]
    paths.append(write_atomic(folder / "report.html", report_html(result, figures).encode()))
    return paths


def report_html(result: EvaluationResult, figures: dict[str, bytes]) -> str:
    """The page; images are data URIs, so that the file can be sent alone."""
    role, patients = result.settings["role"], len(set(result.cases.patients))
    facts = json.dumps({"settings": result.settings, **result.provenance}, indent=1, default=str)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>Evaluation: {html.escape(result.env_id)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(result.env_id)}: policies on {role} patients</h1>",
        f"<p>{patients} patients, {len(result.cases.volumes)} volumes, {len(result.cases)} slices; budgets "
        f"{result.eval_range[0]} to {result.eval_range[1]} {result.noun} after the initial "
        f"{len(result.acquisition.initial_views)}; protocol {result.protocol}.</p>",
        f"<p>{html.escape(f'{_ORIGINS[result.origin]} {_PREFACE}')}</p>",
        f"<h2>Areas and {result.noun} to 95 % of the Dice at full k-space</h2>",
        _summary(result),
        *(figure(name, content) for name, content in figures.items()),
        "<h2>Paired differences in area</h2>",
        _contrasts(result),
        "<h2>Every budget</h2>",
        *_per_budget(result),
        "<h2>At the largest budget</h2>",
        _last_budget(result),
        "<h2>Settings, data and versions</h2>",
        f"<pre>{html.escape(facts)}</pre>",
        "</body></html>",
    ]
    return "\n".join(parts)


def _summary(result: EvaluationResult) -> str:
    headings, body = result.table_rows()
    rows = [(_row_class(result, policy.name), [policy.name, *cells]) for policy, cells in body]
    return html_table(["policy", *headings], rows)


def _contrasts(result: EvaluationResult) -> str:
    rows = []
    for entry in result.contrasts:
        p = "" if entry["p_holm"] is None else f"{entry['p_holm']:.4f}"
        difference = f"{entry['mean']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"
        what = f"{entry['metric']} per {entry['level']}, net {entry['net']}"
        cells = [f"{entry['policy']} - {entry['other']}", what, difference, p, str(entry["patients"])]
        rows.append(("apart" if entry["privileged"] else "", cells))
    if not rows:
        return "<p>There is no policy beside the baselines.</p>"
    return html_table(["difference", "measure", "mean [95 % interval]", "p (Holm)", "patients"], rows)


def _per_budget(result: EvaluationResult) -> Iterable[str]:
    points = [0, *range(result.eval_range[0], result.eval_range[1] + 1)]
    measures = [(net, level, "dice") for net in result.nets for level in LEVELS] + [("image", "slice", "ssim")]
    for net, level, metric in measures:
        rows = []
        for policy in result.ranked():
            budgets: Sequence[int | str] = ["full"] * len(points) if policy.kind == "ceiling" else points
            cells = [_mean(result.find(policy.name, net, budget, metric, level)) for budget in budgets]
            rows.append((_row_class(result, policy.name), [policy.name, *cells]))
        yield f"<h3>{metric} per {level}, net {net}</h3>" + html_table(["policy", *map(str, points)], rows)


def _last_budget(result: EvaluationResult) -> str:
    classes = [f"dice_{name}" for name in result.cases.class_names[1:]]
    measures = [
        (net, level, metric)
        for net in result.nets
        for level, extra in (("volume", ("hd95", "assd", "failure_rate")), ("slice", ("absent_area", "hd95")))
        for metric in (*classes, *extra)
    ]
    measures += [("image", "slice", "ssim"), ("image", "slice", "psnr")]
    rows = []
    for policy in result.ranked():
        budget: int | str = "full" if policy.kind == "ceiling" else result.eval_range[1]
        cells = [_mean(result.find(policy.name, net, budget, metric, level)) for net, level, metric in measures]
        rows.append((_row_class(result, policy.name), [policy.name, *cells]))
    headings = [f"{metric}, {level}, {net}" for net, level, metric in measures]
    return html_table(["policy", *headings], rows)


def _row_class(result: EvaluationResult, name: str) -> str:
    policy = next(policy for policy in result.policies if policy.name == name)
    if policy.privileged or policy.kind == "ceiling":
        return "apart"
    return "subject" if policy.kind == "policy" and policy is result.policies[0] else ""


def _mean(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['mean']:.3f}"


def html_table(headings: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table; each row has a class (see :data:`STYLE`) and its cells."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr class='{kind}'>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for kind, cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def figure(name: str, content: bytes) -> str:
    """A PNG within the page."""
    encoded = base64.b64encode(content).decode()
    return f"<p><img alt='{html.escape(name)}' src='data:image/png;base64,{encoded}'></p>"
