"""Cardiac function from undersampled scans: LVEF, RVEF and LV mass against the number of lines; docs/function.md.

python benchmarks/function.py env=KSpaceSeg-Phantom-v0 lines=16 [snapshot=RUN_FOLDER]
python benchmarks/function.py env=KSpaceSeg-ACDC-v0 datadir=/data/acdc lines=16 \
    fold=split0.json:models/fold0[:runs/fold0] fold=split1.json:models/fold1[:runs/fold1] ...

Slices are scanned one by one in the 2-D environment. Every policy is read off at each number of lines, its label maps
are summed to volumes in ml, and ED and ES of a patient to function, which is compared with the truth (the label files
at their own resolution) and with what the same network makes of full k-space. Of a cross-validated set every fold scans
its own test patients with its own reward model, and all patients are reported together.

Keys: env; kwargs (arguments of the environment, JSON); lines (the largest budget); role (test); datadir; split,
reward_model and snapshot, or fold=SPLIT:MODEL or SPLIT:MODEL:SNAPSHOT once for each fold; patients (at most so many of
each fold, to try things: the document stays as it is); tune (training slices that partial Fourier is tuned on, 64);
protocol (anytime: every policy is run once and read off on the way; or per_budget); output (runs/function/ENV);
document (docs/function.md, the table is written between its markers; empty is none).
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seggym.agents.baselines import make_baselines
from seggym.agents.evaluation import Bench, evaluate_policies, open_bench
from seggym.agents.policies import Policy
from seggym.agents.results import EvaluationResult
from seggym.agents.snapshots import load_policy
from seggym.cohorts.cohort import Cohort
from seggym.envs.kspace.sources import load_cohort
from seggym.envs.kspace.volumes.table import pairs_of
from seggym.errors import SeggymError, one_sentence
from seggym.files import write_atomic, write_json
from seggym.reward_models.function import MEASURES, Agreement, agreement, cardiac_function, class_volumes

KEYS = (
    *("env", "kwargs", "lines", "role", "datadir", "split", "reward_model", "snapshot", "fold", "patients", "tune"),
    *("protocol", "output", "document"),
)
BASELINES = ("centre_out", "partial_fourier")
LEARNED = "learned"
SHOWN = ("LVEF", "RVEF", "LVM")
REFERENCES = ("truth", "full k-space")
NAMES = {"centre_out": "centre-out", "partial_fourier": "partial Fourier", "full_kspace": "full k-space"}

# (policy, net, lines) -> measure -> value of each patient; lines is a number, or "full".
Values = dict[tuple[str, str, int | str], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Fold:
    """One split of the patients, the reward model that belongs to it, and a policy that was trained with both."""

    split: str | None
    reward_model: str | None
    snapshot: str | None


def folds_of(options: dict[str, Any]) -> list[Fold]:
    """The folds of the command line; a single one where none is named."""
    if not options["fold"]:
        return [Fold(options.get("split"), options.get("reward_model"), options.get("snapshot"))]
    folds = []
    for text in options["fold"]:
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(parts):
            raise SeggymError(f"fold={text} must be SPLIT:REWARD_MODEL or SPLIT:REWARD_MODEL:SNAPSHOT")
        folds.append(Fold(*parts, *[None] * (3 - len(parts))))
    if len({fold.snapshot is None for fold in folds}) > 1:
        raise SeggymError("some folds have a snapshot and some have none: give one to every fold, or to none")
    return folds


def true_volumes(cohort: Cohort, patients: Sequence[str]) -> dict[str, np.ndarray]:
    """Volume of every class in ml by name of the volume, from the label files at their own resolution."""
    return {
        volume.name: class_volumes(torch.from_numpy(volume.label), volume.spacing, cohort.num_classes).numpy()
        for volume in cohort.volumes(patients)
    }


def predicted_volumes(result: EvaluationResult, areas: np.ndarray) -> dict[str, np.ndarray]:
    """Volume of every class in ml at every point, (points, K - 1) by name, from ``areas`` (points, slices, K - 1)."""
    spacing = result.cases.spacing.numpy().astype(np.float64)
    millilitres = areas.astype(np.float64) * (spacing.prod(1) / 1000)[None, :, None]
    return {name: millilitres[:, rows].sum(1) for name, rows in result.cases.volumes.items()}


def function_of(result: EvaluationResult, pairs: dict[str, tuple[str, str]]) -> Values:
    """Function of every patient of ``pairs`` by every policy and network at every number of lines."""
    found: Values = {}
    for policy in result.policies:
        name = LEARNED if policy.kind == "policy" else policy.name
        for net in result.nets:
            volumes = predicted_volumes(result, policy.runs[0][f"{net}/slice/area"])
            for index, point in enumerate(policy.points):
                phases = [np.stack([volumes[pair[phase]][index] for pair in pairs.values()]) for phase in (0, 1)]
                lines = "full" if policy.kind == "ceiling" else point
                found[name, net, lines] = cardiac_function(*phases, result.cases.class_names)
    return found


def run_fold(fold: Fold, options: dict[str, Any]) -> tuple[list[str], dict[str, np.ndarray], Values, Bench]:
    """The patients of a fold, their true function, and what every policy finds."""
    chosen = {"data_root": options.get("datadir"), "split": fold.split, "reward_model": fold.reward_model}
    kwargs = {**options["kwargs"], **{name: value for name, value in chosen.items() if value is not None}}
    if fold.snapshot is not None:
        learned = load_policy(fold.snapshot)
        # Its own environment decides what it observes, and the scan.
        kwargs = {**learned.card["env_kwargs"], **kwargs}
    bench = open_bench(options["env"], kwargs, options["role"])
    if not bench.settings.needs_network:
        raise SeggymError(f"env={options['env']} segments nothing: choose a KSpaceSeg environment")
    cohort, _ = load_cohort(bench.settings)
    pairs = pairs_of(bench.stack, cohort.phases)
    pairs = dict(list(pairs.items())[: options["patients"]])
    ground = bench.ground(options["lines"], max_slices=options["tune"])
    policies: list[Policy] = list(make_baselines(BASELINES, ground))
    if fold.snapshot is not None:
        policies.insert(0, learned)
    result = evaluate_policies(
        bench,
        policies,
        [1, options["lines"]],
        protocol=options["protocol"],
        surface_budgets=(),
        volumes=[name for pair in pairs.values() for name in pair],
        cache=Path(options["output"]) / "cache",
    )
    volumes = true_volumes(cohort, list(pairs))
    phases = [np.stack([volumes[pair[phase]] for pair in pairs.values()]) for phase in (0, 1)]
    return list(pairs), cardiac_function(*phases, cohort.class_names), function_of(result, pairs), bench


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Values of the patients of all folds."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(truth: dict[str, np.ndarray], found: Values, patients: list[str]) -> list[dict[str, Any]]:
    """One row per policy, network, number of lines, reference and measure."""
    rows = []
    for (policy, net, lines), values in found.items():
        full = found["full_kspace", net, "full"]
        for reference, expected in zip(REFERENCES, (truth, full), strict=True):
            if reference == REFERENCES[1] and lines == "full":
                continue
            for measure, measured in values.items():
                agreed = agreement(measured, expected[measure], patients)
                entry = {"policy": policy, "net": net, "lines": lines, "reference": reference, "measure": measure}
                rows.append({**entry, "unit": MEASURES[measure], **_plain(agreed)})
    return rows


def _plain(agreed: Agreement) -> dict[str, Any]:
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in agreed._asdict().items()}
    # JSON has no NaN.
    none = lambda value: None if isinstance(value, float) and np.isnan(value) else value  # noqa: E731
    return {
        name: [none(part) for part in value] if isinstance(value, list) else none(value)
        for name, value in found.items()
    }


def table(rows: list[dict[str, Any]], lines: int, net: str) -> str:
    """Markdown: agreement with the truth at a few numbers of lines and at full k-space."""
    points: list[int | str] = [*dict.fromkeys(max(1, round(lines * share)) for share in (0.25, 0.5, 1)), "full"]
    text = [
        "| policy | lines | measure | bias [95 %] | limits of agreement | mean absolute error [95 %] | patients |",
        "|---|---|---|---|---|---|---|",
    ]
    chosen = [row for row in rows if row["net"] == net and row["reference"] == "truth" and row["lines"] in points]
    order = [LEARNED, *BASELINES, "full_kspace"]
    chosen.sort(key=lambda r: (SHOWN.index(r["measure"]) if r["measure"] in SHOWN else 9, points.index(r["lines"]),
                               order.index(r["policy"])))  # fmt: skip
    for row in chosen:
        if row["measure"] not in SHOWN or row["bias"][0] is None:
            continue
        missing = f" ({row['undefined']} without a value)" if row["undefined"] else ""
        text.append(
            f"| {NAMES.get(row['policy'], row['policy'])} | {row['lines']} | {row['measure']}, {row['unit']} | "
            f"{_interval(row['bias'])} | {_number(row['lower'][0])} to {_number(row['upper'][0])} | "
            f"{_interval(row['absolute'])} | {row['patients']}{missing} |"
        )
    return "\n".join(text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _interval(values: list[float | None]) -> str:
    return f"{_number(values[0])} [{_number(values[1])}, {_number(values[2])}]"


def figure(rows: list[dict[str, Any]], net: str, path: Path) -> None:
    """Mean absolute error and limits of agreement against lines; full k-space dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(2, len(SHOWN), figsize=(13, 7), layout="constrained", sharex=True)
    rows = [row for row in rows if row["net"] == net and row["reference"] == "truth" and row["bias"][0] is not None]
    for column, measure in enumerate(SHOWN):
        upper, lower = axes[:, column]
        unit = MEASURES[measure]
        for policy in dict.fromkeys(row["policy"] for row in rows):
            mine = [row for row in rows if row["policy"] == policy and row["measure"] == measure]
            label = NAMES.get(policy, policy)
            if policy == "full_kspace":
                for row in mine:
                    upper.axhline(row["absolute"][0], color="black", linestyle=":", label=label)
                    for name in ("lower", "upper"):
                        if row[name][0] is not None:
                            lower.axhline(row[name][0], color="black", linestyle=":")
                continue
            points = [row["lines"] for row in mine]
            (curve,) = upper.plot(points, [row["absolute"][0] for row in mine], marker=".", label=label)
            bounds = [[row["absolute"][end] or np.nan for row in mine] for end in (1, 2)]
            upper.fill_between(points, *bounds, color=curve.get_color(), alpha=0.12)
            lower.plot(points, [row["bias"][0] for row in mine], color=curve.get_color(), marker=".")
            limits = [[np.nan if row[n][0] is None else row[n][0] for row in mine] for n in ("lower", "upper")]
            lower.fill_between(points, *limits, color=curve.get_color(), alpha=0.12)
        upper.set(title=f"{measure}, network {net}", ylabel=f"mean absolute error, {unit}")
        lower.set(xlabel="lines after the initial ones (simulated k-space)", ylabel=f"bias and limits, {unit}")
        lower.axhline(0, color="grey", linewidth=0.5)
    axes[0, 0].legend(fontsize=8)
    write_atomic(path, lambda target: canvas.savefig(target, dpi=100, format="png"))
    pyplot.close(canvas)


def write_document(path: Path, marker: str, content: str) -> None:
    """Replace what stands between ``<!-- begin MARKER -->`` and ``<!-- end MARKER -->`` in ``path``."""
    first, last = f"<!-- begin {marker} -->", f"<!-- end {marker} -->"
    text = path.read_text()
    if first not in text or last not in text:
        raise SeggymError(f"{path} has no place for the table: add the lines {first} and {last}")
    before, after = text.split(first)[0], text.split(last)[1]
    write_atomic(path, f"{before}{first}\n{content}\n{last}{after}".encode())


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The command line, checked."""
    options: dict[str, Any] = {
        "env": "KSpaceSeg-Phantom-v0",
        "lines": "16",
        "role": "test",
        "fold": [],
        "patients": None,
        "tune": "64",
        "protocol": "anytime",
        "document": "docs/function.md",
    }
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in KEYS or not equals:
            raise SeggymError(f"{argument!r} is unknown, expected KEY=VALUE with a key among {', '.join(KEYS)}")
        if key == "fold":
            options["fold"].append(value)
        else:
            options[key] = value
    for key in ("lines", "patients", "tune"):
        if options[key] is not None:
            if not str(options[key]).isdecimal() or int(options[key]) < 1:
                raise SeggymError(f"{key}={options[key]} must be a whole number of at least 1")
            options[key] = int(options[key])
    try:
        options["kwargs"] = json.loads(options.get("kwargs", "{}"))
    except ValueError as error:
        raise SeggymError(f"kwargs={options['kwargs']} is no JSON ({error}); pass e.g. kwargs='{{}}'") from None
    if options["fold"] and any(options.get(key) for key in ("split", "reward_model", "snapshot")):
        raise SeggymError("fold= names split, reward model and snapshot: leave split=, reward_model= and snapshot= out")
    options.setdefault("output", f"runs/function/{options['env'].rpartition(':')[2]}")
    return options


@one_sentence
def main(*arguments: str) -> None:
    """Measure, and write function.json, the figures and the table."""
    options = parse(arguments)
    torch.set_num_threads(1)
    folds = folds_of(options)
    found = [run_fold(fold, options) for fold in folds]
    patients = [patient for part in found for patient in part[0]]
    if len(set(patients)) < len(patients):
        raise SeggymError("a patient is scanned in more than one fold: give folds whose patients of the role differ")
    truth = joined([part[1] for part in found])
    keys = list(found[0][2])
    values = {key: joined([part[2][key] for part in found]) for key in keys}
    rows = compare(truth, values, patients)
    bench = found[0][3]
    folder = Path(options["output"])
    record = {
        "command": ["benchmarks/function.py", *arguments],
        "simulated_kspace": True,
        "settings": {key: options[key] for key in ("env", "kwargs", "lines", "role", "protocol")},
        "acquisition": bench.settings.scan.as_dict(),
        "provenance": [part[3].provenance for part in found],
        "patients": patients,
        "truth": {name: value.tolist() for name, value in truth.items()},
        "agreement": rows,
    }
    write_json(folder / "function.json", record)
    nets = list(dict.fromkeys(row["net"] for row in rows))
    cohort = bench.settings.cohort
    for net in nets:
        figure(rows, net, folder / f"function_net_{net}.png")
    headline = nets[-1]
    text = table(rows, options["lines"], headline)
    print(text)
    if options["document"] and options["patients"] is None:
        write_document(Path(options["document"]), cohort, text)
    print(f"{len(patients)} patients, network {headline}; {folder / 'function.json'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
