"""Dice against lines of every volume, method and training run: what comparisons and pooled tables are made from.

Two files in a folder, ``curves.npz`` (numbers) and ``curves.json`` (what they are), hold it, so that evaluations can be
pooled over folds and compared afterwards, paired by patient.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seggym.agents.results import TARGET, EvaluationResult
from seggym.errors import SeggymError
from seggym.files import json_bytes, read_json, write_together
from seggym.reward_models import statistics

NUMBERS = "curves.npz"
CARD = "curves.json"
FORMAT = 1


@dataclass(frozen=True)
class Method:
    """The curves of one method: ``curves`` maps a net to float64 (R, points, V), NaN for a run that a volume lacks.

    ``kind`` is "policy" or "baseline"; a ``privileged`` one sees labels of what it scans.
    """

    name: str
    kind: str
    privileged: bool
    curves: dict[str, np.ndarray]


@dataclass(frozen=True)
class Curves:
    """Volume Dice of several methods on the same V volumes.

    ``points`` are the numbers of lines along the curves, beginning with 0; ``volumes``, ``patients`` and ``folds`` have
    V entries; ``full`` maps a net to the Dice at full k-space (V,); ``key`` is all that a score depends on beside the
    method, in plain JSON: two evaluations may be compared where it is the same.
    """

    env_id: str
    points: tuple[int, ...]
    volumes: tuple[str, ...]
    patients: tuple[str, ...]
    folds: tuple[int, ...]
    full: dict[str, np.ndarray]
    methods: tuple[Method, ...]
    key: dict[str, Any]

    @property
    def nets(self) -> list[str]:
        """The scoring networks: A, and B where there is an independent one."""
        return list(self.full)

    def method(self, name: str) -> Method:
        """The method called ``name``."""
        for method in self.methods:
            if method.name == name:
                return method
        raise SeggymError(f"there is no method {name!r}, expected one of {', '.join(m.name for m in self.methods)}")

    def area(self, name: str, net: str) -> np.ndarray:
        """Mean Dice over the budgets, (R, V)."""
        return statistics.area(np.moveaxis(self.method(name).curves[net], 1, -1))

    def lines(self, name: str, net: str) -> tuple[np.ndarray, np.ndarray]:
        """Lines to 95 % of the Dice at full k-space, (R, V), and whether they were enough.

        Where they were not it is one more than the largest budget; NaN where there is no curve.
        """
        curves = np.moveaxis(self.method(name).curves[net], 1, -1)
        found = statistics.lines_to(curves, np.broadcast_to(self.full[net], curves.shape[:-1]), TARGET)
        lines = np.asarray([*self.points, self.points[-1] + 1], dtype=np.float64)
        defined = ~np.isnan(found.lines)
        return np.where(defined, lines[np.where(defined, found.lines, 0).astype(int)], np.nan), found.reached

    def save(self, folder: Path) -> None:
        """Write both files to ``folder``, or neither."""
        arrays = {f"full/{net}": values for net, values in self.full.items()}
        for index, method in enumerate(self.methods):
            arrays |= {f"{index}/{net}": values for net, values in method.curves.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        numbers = buffer.getvalue()
        card = {
            "format": FORMAT,
            "env_id": self.env_id,
            "points": list(self.points),
            "volumes": list(self.volumes),
            "patients": list(self.patients),
            "folds": list(self.folds),
            "nets": self.nets,
            "methods": [{"name": m.name, "kind": m.kind, "privileged": m.privileged} for m in self.methods],
            "key": self.key,
            "numbers": _digest(numbers),
        }
        write_together({folder / NUMBERS: numbers, folder / CARD: json_bytes(card)})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def load_curves(folder: Path) -> Curves:
    """Read what :meth:`Curves.save` wrote; raises :class:`SeggymError` where it is missing or damaged."""
    card = read_json(folder / CARD, "comparison data")
    try:
        if card["format"] != FORMAT:
            raise SeggymError(
                f"{folder / CARD} has format {card['format']}, expected {FORMAT}: evaluate again with this seggym"
            )
        content = (folder / NUMBERS).read_bytes()
        if _digest(content) != card["numbers"]:
            raise SeggymError(f"{folder / NUMBERS} is not the file that {CARD} describes: evaluate again")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        nets = list(card["nets"])
        methods = tuple(
            Method(entry["name"], entry["kind"], bool(entry["privileged"]), {net: arrays[f"{i}/{net}"] for net in nets})
            for i, entry in enumerate(card["methods"])
        )
        return Curves(
            env_id=card["env_id"],
            points=tuple(card["points"]),
            volumes=tuple(card["volumes"]),
            patients=tuple(card["patients"]),
            folds=tuple(card["folds"]),
            full={net: arrays[f"full/{net}"] for net in nets},
            methods=methods,
            key=dict(card["key"]),
        )
    except (KeyError, TypeError, OSError, ValueError) as error:
        raise SeggymError(f"{folder / CARD} and {NUMBERS} are damaged ({error!r}): evaluate again") from None


def curves_of(result: EvaluationResult, key: Mapping[str, Any], fold: int = 0) -> Curves:
    """The curves of an evaluation that scored with networks; ``key`` as at :class:`Curves`."""
    volumes = list(result.cases.volumes)
    methods = tuple(
        Method(
            policy.name, policy.kind, policy.privileged, {n: policy.values(n, "volume", "dice") for n in result.nets}
        )
        for policy in result.policies
        if policy.kind != "ceiling"
    )
    return Curves(
        env_id=result.env_id,
        points=next((policy.points for policy in result.policies if policy.kind != "ceiling"), (0,)),
        volumes=tuple(volumes),
        patients=tuple(result.cases.volume_patients),
        folds=(fold,) * len(volumes),
        full={net: result.ceiling.values(net, "volume", "dice")[0, 0] for net in result.nets},
        methods=methods,
        key=json.loads(json.dumps(dict(key), default=list)),
    )


def pooled(parts: Sequence[Curves], key: Mapping[str, Any]) -> Curves:
    """One table of the volumes of all ``parts`` (folds), which must have the same methods, nets and points."""
    first = parts[0]
    names = [method.name for method in first.methods]
    for part in parts[1:]:
        different = [
            what
            for what, mine, theirs in (
                ("methods", names, [method.name for method in part.methods]),
                ("nets", first.nets, part.nets),
                ("budgets", first.points, part.points),
            )
            if mine != theirs
        ]
        if different:
            raise SeggymError(f"the folds differ in {', '.join(different)}, expected the same: evaluate them alike")
    seen = [patient for part in parts for patient in set(part.patients)]
    if len(set(seen)) < len(seen):
        twice = sorted({patient for patient in seen if seen.count(patient) > 1})
        raise SeggymError(f"patient {twice[0]} is tested in more than one fold: make the folds again")
    methods = []
    for index, method in enumerate(first.methods):
        runs = max(part.methods[index].curves[first.nets[0]].shape[0] for part in parts)
        joined = {
            net: np.concatenate([_with_runs(part.methods[index].curves[net], runs) for part in parts], axis=2)
            for net in first.nets
        }
        methods.append(Method(method.name, method.kind, method.privileged, joined))
    return Curves(
        env_id=first.env_id,
        points=first.points,
        volumes=tuple(volume for part in parts for volume in part.volumes),
        patients=tuple(patient for part in parts for patient in part.patients),
        folds=tuple(fold for part in parts for fold in part.folds),
        full={net: np.concatenate([part.full[net] for part in parts]) for net in first.nets},
        methods=tuple(methods),
        key=dict(key),
    )


def joined(first: Curves, second: Curves) -> Curves:
    """``first`` with the methods of ``second``, which were run on some of its volumes only: NaN on the others."""
    rows = [first.volumes.index(volume) for volume in second.volumes]
    methods = []
    for method in second.methods:
        curves = {}
        for net, values in method.curves.items():
            curves[net] = np.full((*values.shape[:2], len(first.volumes)), np.nan)
            curves[net][:, :, rows] = values
        methods.append(replace(method, curves=curves))
    return replace(first, methods=(*first.methods, *methods))


def _with_runs(curves: np.ndarray, runs: int) -> np.ndarray:
    """(R, points, V) with NaN for the runs up to ``runs`` that are not there."""
    missing = np.full((runs - len(curves), *curves.shape[1:]), np.nan)
    return np.concatenate([curves, missing])
