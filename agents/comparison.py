"""Evaluations compared with each other, paired by patient: what ``seggym compare`` prints."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seggym.agents.curves import CARD, Curves, load_curves
from seggym.agents.pooling import ENDPOINTS, PooledTable
from seggym.errors import SeggymError

_TITLES = {"lines_to_95": "lines to 95 %", "area": "area"}


def compare(folders: Sequence[str | os.PathLike[str]]) -> PooledTable:
    """The policy that each of ``folders`` evaluated, the first one against every other.

    A folder is that of an evaluation (``agents/eval_asmr.py``; a run folder, where it writes by default) or of a K1
    result. Raises :class:`SeggymError` where they differ in data, split, networks or budgets: a difference of such
    numbers would say nothing about the policies.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    if len(paths) < 2:
        raise SeggymError(f"compare needs at least two evaluations, found {len(paths)}: name another run folder")
    parts = [_read(path) for path in paths]
    for path, part in zip(paths[1:], parts[1:], strict=True):
        require_comparable(parts[0], part, paths[0], path)
    names = _names(paths)
    methods = tuple(replace(part.methods[0], name=name) for part, name in zip(parts, names, strict=True))
    return PooledTable(replace(parts[0], methods=methods), names[0])


def require_comparable(first: Curves, second: Curves, here: Path, there: Path) -> None:
    """Raise :class:`SeggymError` naming what two evaluations differ in, if anything that scores depend on."""
    changed = differences(first.key, second.key)
    for name in ("points", "volumes", "folds", "nets"):
        if getattr(first, name) != getattr(second, name):
            changed.append(name)
    if changed:
        shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise SeggymError(
            f"{here} and {there} were evaluated with different {shown}, expected the same data, split, networks and "
            "budgets: evaluate one of them again as the other was"
        )


def differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Keys in which two JSON objects differ, as a.b."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [prefix.rstrip(".") or "content"]
    keys = sorted(set(before) | set(now))
    return [key for name in keys for key in differences(before.get(name), now.get(name), f"{prefix}{name}.")]


def comparison_text(table: PooledTable) -> str:
    """The table as text: each run's own numbers, then the first run minus every other."""
    curves = table.curves
    rows = [["run", "network", *(_TITLES[endpoint] for endpoint in ENDPOINTS)]]
    for method in curves.methods:
        for net in curves.nets:
            found = [table.find(table.rows, method=method.name, net=net, endpoint=end) for end in ENDPOINTS]
            rows.append([method.name, net, *(_cell(row) for row in found)])
    rows.append([])
    rows.append(
        [f"{table.subject} minus", "network", *(f"{_TITLES[end]}, p (Holm)" for end in ENDPOINTS)],
    )
    for method in curves.methods[1:]:
        for net in curves.nets:
            found = [table.find(table.contrasts, other=method.name, net=net, endpoint=end) for end in ENDPOINTS]
            rows.append([method.name, net, *(f"{_cell(row, '+')}, {row['p_holm']:.4f}" for row in found if row)])
    widths = [max(len(row[i]) for row in rows if row) for i in range(4)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip() for row in rows]
    note = (
        f"{curves.env_id}: {len(set(curves.patients))} patients, {len(curves.volumes)} volumes, budgets to "
        f"{curves.points[-1]}; mean [95 % interval over patients], paired by patient; a volume that does not reach "
        f"95 % of the Dice at full k-space counts as {curves.points[-1] + 1} lines; k-space is simulated"
    )
    return "\n".join([*lines, "", note])


def _read(path: Path) -> Curves:
    if not (path / CARD).is_file():
        raise SeggymError(
            f"{path} holds no evaluation ({CARD} is missing): evaluate it with `python agents/eval_asmr.py "
            f"load_from_snapshot_base_dir={path}`, or name the folder that an evaluation was written to"
        )
    curves = load_curves(path)
    if not curves.methods or curves.methods[0].kind != "policy":
        raise SeggymError(f"{path} evaluated baselines only, expected a policy to compare: name another folder")
    return curves


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise SeggymError(f"{paths[0]} is named twice, expected different evaluations: name each once")


def _cell(row: dict[str, Any] | None, sign: str = "") -> str:
    if row is None:
        return ""
    return f"{row['mean']:{sign}.4f} [{row['low']:{sign}.4f}, {row['high']:{sign}.4f}]"
