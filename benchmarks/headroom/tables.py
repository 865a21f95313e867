"""The tables of docs/headroom.md."""

from typing import Any

import numpy as np

from benchmarks.headroom.measuring import area_weights
from benchmarks.headroom.scans import Options
from seggym.reward_models.statistics import bootstrap_interval, paired_difference

_COLUMNS = (
    "energy-following",
    "echo-following",
    "re-measure first, then best fixed",
    "re-measure first, then energy",
    "trained",
    "label-using greedy",
)


def table(contents: dict[str, dict[str, Any]], net: str) -> str:
    """One row per feature: area of the best fixed order, and what every policy adds to it."""
    columns = [title for title in _COLUMNS if any(title in content["curves"] for content in contents.values())]
    head = ["feature", "best fixed order", "its area", "full k-space", "headroom \\*", *columns]
    rows = [head, ["---"] * len(head)]
    for name, content in contents.items():
        patients = content["patients"]
        areas = {title: _areas(content, title, net) for title in content["curves"]}
        base = areas["best fixed"]
        interval = bootstrap_interval(base[0], patients)
        full = np.asarray(content["full"][net])[0, 0]
        gains = [_gain(areas.get(title), base, patients) for title in ("privileged choice", *columns)]
        cells = [name, content["best_fixed"], f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"]
        rows.append([*cells, f"{bootstrap_interval(full, patients).mean:.3f}", *gains])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _areas(content: dict[str, Any], title: str, net: str) -> np.ndarray:
    """Areas (runs, volumes)."""
    return np.einsum("p,rpv->rv", area_weights(content["points"]), np.asarray(content["curves"][title][net]))


def _gain(values: np.ndarray | None, base: np.ndarray, patients: list[str]) -> str:
    if values is None:
        return ""
    runs = np.repeat(np.arange(len(values)), values.shape[1]).tolist() if len(values) > 1 else None
    found = paired_difference(
        values.ravel(), np.broadcast_to(base, values.shape).ravel(), patients * len(values), runs=runs
    )
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def markdown(contents: dict[str, dict[str, Any]], options: Options, command: str) -> str:
    """The page's tables."""
    first = next(iter(contents.values()))
    patients = len(set(first["patients"]))
    lines = [
        f"`{command}`",
        "",
        f"{options.cohort}: {patients} test patients, {len(first['patients'])} volumes, {first['slices']} slices. Area "
        f"of volume Dice over budgets 1 to {options.budget}, read every {options.every} lines; best fixed order chosen "
        f"on {first['tuning_slices']} slices of training patients. Columns after full k-space are differences to that "
        "order, paired by patient [95 % interval over patients]. \\* privileged: chosen with labels.",
    ]
    for net in ("B", "A"):
        if net in first["full"]:
            what = "independent: scores only" if net == "B" else "the environment's: chose the privileged ways"
            lines += ["", f"Network {net} ({what}):", "", table(contents, net)]
    return "\n".join(lines) + "\n"
