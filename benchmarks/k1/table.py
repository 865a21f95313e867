"""The pooled result of K1: one table over all patients, each tested once, as Markdown, JSON, CSV and a figure."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.k1.evaluating import CONTROLS, SUBJECT, TWIN, evaluation_tasks, fold_folder
from benchmarks.k1.networks import network_tasks
from benchmarks.k1.policies import policy_tasks
from benchmarks.k1.protocol import Protocol, provenance
from seggym.agents.curves import Curves, load_curves, pooled
from seggym.agents.pooling import ENDPOINTS, PooledTable
from seggym.errors import SeggymError
from seggym.files import read_json, write_atomic, write_json

_COLUMNS = ("table", "method", "net", "endpoint", "mean", "low", "high", "patients", "p", "p_holm")
_TITLES = {"lines_to_95": "lines to 95 %", "area": "area"}


def write_table(protocol: Protocol, docs: Path | None = None) -> str:
    """Pool the folds and write everything to the protocol's folder; returns the Markdown."""
    curves = pool(protocol)
    curves.save(protocol.out)
    table = PooledTable(curves, SUBJECT, CONTROLS)
    facts = {**provenance(protocol), "wall_minutes": wall_minutes(protocol)}
    notes = [read_json(fold_folder(protocol, fold) / "notes.json") for fold in range(len(protocol.folds))]
    spread = seed_spread(curves)
    text = markdown(protocol, table, facts, notes, spread)
    picture = figure(table)
    content = {"protocol": protocol.content, "provenance": facts, "notes": notes, "seeds": spread, **table.to_json()}
    write_json(protocol.out / "k1.json", content)
    write_atomic(protocol.out / "k1.csv", to_csv(table).encode())
    for page in (protocol.out / "k1.md", *([] if docs is None else [docs])):
        write_atomic(page.with_suffix(".png"), picture)
        write_atomic(page, f"{text}\n![Dice against lines]({page.stem}.png)\n".encode())
    return text


def pool(protocol: Protocol) -> Curves:
    """The curves of all folds together."""
    parts = [load_curves(fold_folder(protocol, fold)) for fold in range(len(protocol.folds))]
    networks = [part.key["weights"] for part in parts]
    if protocol.content["reward"]["kind"] != "cross_fitted" and any(found != networks[0] for found in networks):
        raise SeggymError(
            f"the folds of {protocol.out} were scored by different networks, expected those of one reward model, which "
            "has been replaced meanwhile: choose another out="
        )
    return pooled(parts, {"protocol": "K1", "folds": [part.key for part in parts]})


def wall_minutes(protocol: Protocol) -> dict[str, float]:
    """Wall time by stage, of the calls that finished each task."""
    stages = {"networks": network_tasks, "policies": policy_tasks, "evaluation": evaluation_tasks}
    return {name: round(sum(task.seconds for task in tasks(protocol)) / 60, 1) for name, tasks in stages.items()}


def seed_spread(curves: Curves) -> list[dict[str, Any]]:
    """Means of every training run on the patients of the folds that have several: what the seed alone changes."""
    found = []
    folds = np.asarray(curves.folds)
    for name in (SUBJECT, TWIN):
        for net in curves.nets:
            for endpoint, values in (("lines_to_95", curves.lines(name, net)[0]), ("area", curves.area(name, net))):
                for fold in np.unique(folds):
                    own = values[:, folds == fold]
                    own = own[~np.isnan(own).all(1)]
                    if len(own) > 1:
                        means = np.nanmean(own, axis=1).round(4).tolist()
                        found.append(
                            {"method": name, "net": net, "endpoint": endpoint, "fold": int(fold), "means": means}
                        )
    return found


def to_csv(table: PooledTable) -> str:
    """Means, contrasts and normalised scores as one CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in table.rows:
        writer.writerow({"table": "mean", **row})
    for row in table.contrasts:
        writer.writerow({"table": f"{row['subject']} minus", "method": row["other"], **row})
    for row in table.normalised:
        writer.writerow({"table": "normalised", **row})
    return text.getvalue()


def markdown(
    protocol: Protocol, table: PooledTable, facts: dict[str, Any], notes: list[Any], spread: list[dict[str, Any]]
) -> str:
    """The page of a result."""
    content, curves = protocol.content, table.curves
    nets = curves.nets
    net = nets[-1]
    scan = content["acquisition"]
    lines = [
        f"# K1, preset {content['preset']}",
        "",
        f"{content['env']['id']}: {len(set(curves.patients))} patients, {len(curves.volumes)} volumes, each patient "
        f"tested once in {len(protocol.folds)} folds; budgets 1 to {protocol.budget} lines after the initial "
        f"{scan['initial_lines']} of {scan['matrix']}; one run at the largest budget, read off at every line. "
        "k-space is simulated.",
        "",
        f"Primary endpoint, fixed beforehand: lines to 95 % of the volume Dice at full k-space by network {net} (a "
        f"volume that does not reach it counts as {protocol.budget + 1}, so a mean is a lower bound); second: area "
        "(mean Dice over budgets). Network A rewards and chooses, network B only scores. Intervals are 95 % and "
        "resample patients and the training runs of a fold.",
        "",
        *_means(table),
        "",
        "\\* sees the labels of what it scans: a reference, no competitor and no upper bound. "
        f"`{CONTROLS[0]}` is the learned policy shown another patient's measurements, `{TWIN}` was trained on them; "
        "the static learned order is what the policy would measure if it had to choose one order for everybody. "
        f"Best fixed order by fold: {', '.join(note['best_fixed_order'] for note in notes)}.",
        "",
        f"## Learned minus each method (fewer lines and more area are better; Holm over the honest ones, network {net} "
        "and lines to 95 % being the primary family)",
        "",
        *_contrasts(table),
        "",
        "## Normalised score (random = 0, label-using greedy = 1)",
        "",
        *_normalised(table),
        "",
        *_seeds(spread),
        "## How it was made",
        "",
        f"- `{facts['command']}`, protocol version {content['version']}, commit {facts['commit']}",
        f"- {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}; {facts['machine']}",
        f"- data {content['data']['cohort']}, fingerprint {content['data']['fingerprint']}; agent "
        f"{content['agent']['name']}, {content['training']['total_steps']} steps; seeds "
        f"{'; '.join(', '.join(map(str, seeds)) for seeds in content['seeds'])}",
        "- wall minutes: " + ", ".join(f"{name} {minutes}" for name, minutes in facts["wall_minutes"].items()),
        "",
    ]
    return "\n".join(lines)


def _order(table: PooledTable) -> list[str]:
    """Honest methods by the primary endpoint, the subject first; then privileged ones."""
    net = table.curves.nets[-1]

    def rank(name: str) -> tuple[bool, bool, float]:
        row = table.find(table.rows, method=name, net=net, endpoint=ENDPOINTS[0])
        assert row is not None
        return row["privileged"], name != SUBJECT, row["mean"]

    return sorted((method.name for method in table.curves.methods), key=rank)


def _means(table: PooledTable) -> list[str]:
    nets = table.curves.nets
    head = ["method"]
    for endpoint in ENDPOINTS:
        head += [f"{_TITLES[endpoint]}, net {net}" for net in reversed(nets)]
    head.append(f"reached, net {nets[-1]}")
    rows = []
    for name in _order(table):
        starred = name + (" \\*" if table.curves.method(name).privileged else "")
        cells = [f"**{name}**" if name == SUBJECT else starred]
        for endpoint in ENDPOINTS:
            for net in reversed(nets):
                row = table.find(table.rows, method=name, net=net, endpoint=endpoint)
                cells.append(_cell(row, 2 if endpoint == "lines_to_95" else 4))
        reached = table.find(table.rows, method=name, net=nets[-1], endpoint="reached_95")
        cells.append("" if reached is None else f"{reached['mean']:.0%}")
        rows.append(cells)
    full = ["full k-space", *[""] * len(nets)]
    for net in reversed(nets):
        full.append(_cell(table.resampling.estimate(table.curves.full[net][None])._asdict(), 4))
    rows.append([*full, ""])
    return _table(head, rows)


def _contrasts(table: PooledTable) -> list[str]:
    nets = table.curves.nets
    columns = [(endpoint, net) for endpoint in ENDPOINTS for net in reversed(nets)]
    head = ["learned minus"]
    for endpoint, net in columns:
        head += [f"{_TITLES[endpoint]}, net {net}", "p (Holm)"]
    rows = []
    for name in _order(table):
        if name == SUBJECT:
            continue
        cells = [name]
        for endpoint, net in columns:
            row = table.find(table.contrasts, other=name, net=net, endpoint=endpoint)
            assert row is not None
            p = row["p_holm"]
            cells += [_cell(row, 2 if endpoint == "lines_to_95" else 4, "+"), "" if p is None else f"{p:.4f}"]
        rows.append(cells)
    return _table(head, rows)


def _normalised(table: PooledTable) -> list[str]:
    if not table.normalised:
        return [f"Needs {table.zero} and {table.one} among the methods."]
    columns = [(endpoint, net) for endpoint in ENDPOINTS for net in reversed(table.curves.nets)]
    rows = []
    for name in _order(table):
        found = [table.find(table.normalised, method=name, net=net, endpoint=endpoint) for endpoint, net in columns]
        rows.append([name, *(_cell(row, 2) for row in found)])
    return _table(["method", *(f"{_TITLES[endpoint]}, net {net}" for endpoint, net in columns)], rows)


def _seeds(spread: list[dict[str, Any]]) -> list[str]:
    if not spread:
        return []
    rows = [
        [e["method"], f"{_TITLES[e['endpoint']]}, net {e['net']}", str(e["fold"]), ", ".join(map(str, e["means"]))]
        for e in spread
    ]
    return ["## Training runs of one fold", "", *_table(["method", "endpoint", "fold", "mean of each run"], rows), ""]


def _cell(row: dict[str, Any] | None, digits: int, sign: str = "") -> str:
    if row is None or np.isnan(row["mean"]):
        return ""
    shown = f"{row['mean']:{sign}.{digits}f}"
    return shown if np.isnan(row["low"]) else f"{shown} [{row['low']:{sign}.{digits}f}, {row['high']:{sign}.{digits}f}]"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def figure(table: PooledTable) -> bytes:
    """Mean volume Dice over patients against lines, one panel per network; privileged methods dashed."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    nets = table.curves.nets
    picture = Figure(figsize=(5.6 * len(nets) + 2, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(1, len(nets), sharey=True, squeeze=False)[0]
    for axes, net in zip(panels, nets, strict=True):
        axes.set_prop_cycle(color=colormaps["tab20"].colors)
        for name in _order(table):
            method = table.curves.method(name)
            means = [table.resampling.estimate(method.curves[net][:, i]).mean for i in range(len(table.curves.points))]
            style = "--" if method.privileged else ":" if name in CONTROLS else "-"
            axes.plot(
                table.curves.points, means, style, label=name, marker=".", linewidth=2.6 if name == SUBJECT else 1.1
            )
        full = table.resampling.estimate(table.curves.full[net][None]).mean
        axes.axhline(full, color="black", linestyle=":", label="full k-space")
        axes.axhline(0.95 * full, color="grey", linestyle=":", linewidth=0.8)
        axes.set(xlabel="lines measured after the initial ones (simulated k-space)", title=f"network {net}")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="Dice per volume")
    picture.legend(*panels[-1].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    return buffer.getvalue()
