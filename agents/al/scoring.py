"""What a round is worth: Dice of every class, volume and patient on val and test, or accuracy and F1 of images."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from seggym.agents.al.trial import PARTS, Trial, comparison_key
from seggym.agents.selection_results import SelectionResult
from seggym.envs.selection.engine import SelectionEngine


def measure(trial: Trial, number: int) -> dict[str, Any]:
    """The scores of the engine's learner after round ``number``, and what its labels cost; plain JSON."""
    engine = trial.engine
    pixels = engine.pixels[0].tolist()
    validation = _validation_cost(trial)
    foreground = float(engine.count[0]) if trial.settings.classification else float(sum(pixels[1:]))
    return {
        "round": number,
        "samples": trial.counts[number] + trial.counted,
        "pixels": sum(pixels) + validation["pixels"],
        "foreground": min(foreground / trial.true_foreground, 1.0),
        "minutes": float(engine.minutes[0]) + validation["minutes"],
        "pixels_by_class": dict(zip(engine.pool.class_names, pixels, strict=True)),
        **{part: part_scores(trial, engine, part) for part in PARTS},
    }


def part_scores(trial: Trial, engine: SelectionEngine, part: str) -> dict[str, Any]:
    """Scores on ``part`` (val or test) of the learner of ``engine``."""
    name = PARTS[part]
    values = engine.evaluate(0, name).double().cpu().numpy()
    scored = trial.scored[name]
    if not trial.settings.classification:
        return {"volumes": list(scored.names), "patients": list(trial.patients[part]), "dice": values.tolist()}
    row = torch.zeros(1, dtype=torch.int64, device=engine.device)
    believed = engine.learner.predict(row, scored.slices[None])[0].flatten(1).argmax(1)
    correct = (believed == scored.labels).int().tolist()
    images = [f"image{number:05d}" for number in scored.slices.tolist()]
    return {
        "images": images,
        "correct": correct,
        "accuracy": float(np.mean(correct)),
        "f1": values[0].tolist(),
        "macro_f1": float(np.nanmean(values[0])),
    }


def _validation_cost(trial: Trial) -> dict[str, float]:
    """Pixels and minutes of the validation labels that are counted."""
    if not trial.counted:
        return {"pixels": 0, "minutes": 0.0}
    scored, costs = trial.scored["reward"], trial.settings.costs
    minutes = trial.counted * costs.mask + len(scored.names) * costs.volume
    return {"pixels": scored.labels.numel(), "minutes": minutes}


def headline(scores: Mapping[str, Any]) -> float:
    """Dice of a part: mean over classes of a volume, volumes of a patient, then patients; of images accuracy."""
    if "accuracy" in scores:
        return float(scores["accuracy"])
    values = volume_dice(scores)
    patients = np.array(scores["patients"])
    means = [np.nanmean(values[patients == name]) for name in np.unique(patients) if _any(values[patients == name])]
    return float(np.mean(means)) if means else float("nan")


def volume_dice(scores: Mapping[str, Any]) -> np.ndarray:
    """Mean over the classes of each volume, NaN where there is none, (V,); of images 1 for a right answer, 0 else."""
    if "correct" in scores:
        return np.array(scores["correct"], dtype=np.float64)
    values = np.array(scores["dice"], dtype=np.float64)
    return np.array([np.nanmean(row) if _any(row) else np.nan for row in values])


def _any(values: np.ndarray) -> bool:
    return bool((~np.isnan(values)).any())


def result_of(
    trial: Trial, records: Sequence[Mapping[str, Any]], chosen: Sequence[Sequence[int]], full: Mapping[str, Any] | None
) -> SelectionResult:
    """The run as ``seggym compare`` reads it, scored on test."""
    settings, last = trial.settings, records[-1]["test"]
    volumes = last.get("volumes") or last["images"]
    strategy = settings.strategy
    return SelectionResult(
        strategy=strategy.name,
        options=strategy.identity or {},
        privileged=strategy.privileged,
        seeds=(settings.seed,),
        samples=np.array([record["samples"] for record in records], dtype=np.int64),
        pool=len(trial.names),
        pixels=np.array([[record["pixels"] for record in records]], dtype=np.float64),
        foreground=np.array([[record["foreground"] for record in records]]),
        cost=np.array([[record["minutes"] for record in records]]),
        cost_unit="minutes",
        volumes=tuple(volumes),
        patients=tuple(last.get("patients") or volumes),
        dice=np.stack([volume_dice(record["test"]) for record in records])[None],
        full=np.full(len(volumes), np.nan) if full is None else volume_dice(full["test"]),
        selected=(tuple(tuple(trial.names[sample] for sample in samples) for samples in chosen),),
        key=comparison_key(trial),
    )


def table(trial: Trial, records: Sequence[Mapping[str, Any]]) -> bytes:
    """A row for each round, part, volume and class (for images: each class, and accuracy), as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    metric = "f1" if trial.settings.classification else "dice"
    columns = ["strategy", "seed", "round", "samples", "fraction", "pixels", "minutes"]
    writer.writerow([*columns, "part", "patient", "volume", "class", "metric", "value"])
    names = trial.engine.pool.class_names[0 if trial.settings.classification else 1 :]
    start = [trial.settings.strategy.name, trial.settings.seed]
    for record in records:
        shared = [record[name] for name in ("round", "samples")] + [round(record["samples"] / len(trial.names), 6)]
        shared += [record["pixels"], record["minutes"]]
        for part in PARTS:
            scores = record[part]
            if "accuracy" in scores:
                writer.writerow([*start, *shared, part, "", "", "", "accuracy", scores["accuracy"]])
                writer.writerow([*start, *shared, part, "", "", "", "macro_f1", scores["macro_f1"]])
            rows = [scores["f1"]] if "f1" in scores else scores["dice"]
            owners = scores.get("patients", [""])
            for values, patient, volume in zip(rows, owners, scores.get("volumes", [""]), strict=True):
                for name, value in zip(names, values, strict=True):
                    writer.writerow([*start, *shared, part, patient, volume, name, metric, value])
    return buffer.getvalue().encode()
