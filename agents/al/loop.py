"""The rounds of active learning: choose, annotate, train, score, again; resumable at every moment to the bit."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seggym.agents.al.folders import UTILITIES, RunFolder, load_state, locked, save_state, shared
from seggym.agents.al.scoring import headline, measure, part_scores, result_of, table
from seggym.agents.al.settings import LoopSettings
from seggym.agents.al.sheets import contact_sheet
from seggym.agents.al.trial import PARTS, Trial, comparison_key, missing_classes, open_trial, scaled_iterations
from seggym.agents.selection_results import SelectionResult
from seggym.agents.strategies.caching import content_key
from seggym.envs.selection.engine import Episodes
from seggym.envs.selection.view import EpisodeView
from seggym.files import read_json, write_atomic, write_json
from seggym.kspace.keyed_random import key_of

# To be raised whenever the same data, settings and seed train another network.
TRAINING_VERSION = 1
Say = Callable[[str], Any]


def run(settings: LoopSettings, say: Say = print) -> SelectionResult:
    """Run the rounds of ``settings``, or those that are left, and write results to its folder."""
    torch.set_num_threads(settings.threads)
    with locked(Path(settings.run_dir)):
        return _run(open_trial(settings), say)


def _run(trial: Trial, say: Say) -> SelectionResult:
    settings, base = trial.settings, trial.iterations
    folder = RunFolder(Path(settings.run_dir), trial)
    for line in plan(trial):
        say(line)
    reached = folder.restore()
    if reached >= 0:
        say(f"resumed: the networks of round {reached} are there")
    records: list[dict[str, Any]] = []
    for number in range(len(trial.counts)):
        started = time.perf_counter()
        if number > reached:
            _advance(trial, folder, number, base)
            folder.keep_state(number)
        if number < reached:
            known = folder.scores(number)
            assert known is not None  # checked when the state was restored
        else:
            known = folder.scores(number) if number == reached else None
            known = folder.settle(number, measure(trial, number)) if known is None else known
            _draw_sheet(trial, folder, number)
            folder.forget_state(number - 1)
        records.append(known)
        say(_progress(trial, known, number, time.perf_counter() - started))
        if number == 0 and (missing := missing_classes(trial)) and number >= reached:
            say(
                f"note: nothing of {', '.join(missing)} is annotated in round 0; no network can predict it before a "
                "later round shows it (a larger first budget makes that less likely)"
            )
    full = _full(trial, folder, base, say) if settings.policy.full else None
    chosen = [folder.query(number) or [] for number in range(len(records))]
    result = result_of(trial, records, chosen, full)
    write_atomic(folder.root / "results.csv", table(trial, records))
    result.save(folder.root)
    return result


def plan(trial: Trial) -> list[str]:
    """What the run will cost, in sentences."""
    settings, engine, last = trial.settings, trial.engine, trial.counts[-1]
    pool, costs = engine.pool, settings.costs
    per_sample = float((pool.slices >= 0).sum()) / len(pool)
    patients, volumes = (
        len(np.unique(pool.table.patient)),
        int(pool.opened.sum()) if settings.data.unit != "slice" else 0,
    )
    volumes = volumes or len(np.unique(pool.table.volume))
    slices = last * per_sample
    minutes = slices * getattr(costs, settings.model.ann_type) + min(slices, volumes) * costs.volume
    everything = torch.arange(len(pool), device=engine.device)
    drawn = float(engine.oracle.annotate(everything)[1].sum()) / len(pool)
    what = "images" if settings.classification else f"{settings.data.unit}s"
    pixels = "" if settings.classification else f", about {last * drawn:,.0f} annotated pixels"
    trainings = len(trial.counts) * getattr(getattr(engine.learner, "options", None), "ensemble", 1)
    base = trial.iterations
    iterations = [trial.iterations_of(number, base) for number in range(len(trial.counts))] if base else []
    lengths = f" of {', '.join(map(str, dict.fromkeys(iterations)))} iterations" if iterations else ""
    counted = f", {trial.counted} labels of validation counted beside them" if trial.counted else ""
    scored = ", ".join(f"{len(set(trial.patients[part]))} {part}" for part in PARTS)
    return [
        f"{settings.name}: {settings.strategy.name}, seed {settings.seed}, {settings.cohort}, "
        f"{settings.model.ann_type}s, {settings.model.learner}",
        f"pool: {len(pool)} {what} of {patients} patients; scored on "
        + ("held-out images" if settings.classification else f"other patients ({scored})"),
        f"budget: {last} {what} ({last / len(pool):.1%} of the pool){pixels}, at most {minutes:.0f} minutes of "
        f"annotation, in {len(trial.counts)} rounds ({', '.join(map(str, trial.counts))}){counted}",
        f"trainings: {trainings}{lengths}" + (", and one with the whole pool" if settings.policy.full else ""),
        *(f"note: {note}" for note in trial.notes),
    ]


def _progress(trial: Trial, record: dict[str, Any], number: int, seconds: float) -> str:
    metric = "accuracy" if trial.settings.classification else "Dice"
    scores = ", ".join(f"{part} {headline(record[part]):.3f}" for part in PARTS)
    return (
        f"round {number} of {len(trial.counts) - 1}: {record['samples']} samples, {record['minutes']:.0f} minutes of "
        f"annotation, {metric} {scores} ({seconds:.0f} s)"
    )


def _advance(trial: Trial, folder: RunFolder, number: int, base: int | None) -> None:
    """Choose the samples of a round, unless somebody did before the run was stopped, annotate them and train."""
    if base is not None:
        _set_iterations(trial, trial.iterations_of(number, base))
    if number == 0:
        _start(trial)
        samples = trial.engine.order[0, : trial.counts[0]].tolist()
        if folder.query(0) is None:
            folder.write_query(0, samples, [])
        return
    chosen = folder.query(number)
    if chosen is None:
        chosen = _choose(trial, folder, number)
    trial.engine.annotate(0, torch.tensor(chosen))


def _choose(trial: Trial, folder: RunFolder, number: int) -> list[int]:
    strategy = trial.settings.strategy
    view = EpisodeView(trial.engine, 0, strategy.privileged)
    candidates = view.candidates
    query = strategy.query(view, trial.counts[number] - trial.counts[number - 1])
    samples = query.indices.tolist()
    # Row i of a sequential choice is what the candidates were worth when sample i was chosen.
    rows = query.utilities if query.utilities.ndim == 2 else np.tile(query.utilities, (len(samples), 1))
    place = np.searchsorted(candidates, query.indices)
    values = [float(row[index]) if np.isfinite(row[index]) else None for row, index in zip(rows, place, strict=True)]
    lines = [
        f"{trial.names[sample]},{value!r}" for sample, value in zip(candidates.tolist(), rows[0].tolist(), strict=True)
    ]
    write_atomic(folder.round(number) / UTILITIES, "\n".join(["sample,utility", *lines, ""]).encode())
    folder.write_query(number, samples, values)
    return samples


def _set_iterations(trial: Trial, iterations: int) -> None:
    learner: Any = trial.engine.learner
    learner.options = replace(learner.options, iterations=iterations)


def _start(trial: Trial) -> None:
    """Round 0: the same samples and networks for every strategy of a seed, so they are trained once and kept."""
    engine, initial = trial.engine, trial.counts[0]
    slot = torch.zeros(1, dtype=torch.int64, device=engine.device)
    spare = torch.tensor([len(trial.names) - initial])

    def make() -> None:
        engine.begin(slot, Episodes(spare.to(engine.device), torch.tensor([trial.key], device=engine.device)))

    key = _training_key(trial, {"initial": initial, "key": trial.key})
    shared(key, ".pt", lambda path: load_state(path, engine), make, lambda path: save_state(path, engine))


def _full(trial: Trial, folder: RunFolder, base: int | None, say: Say) -> dict[str, Any]:
    """Scores with the whole pool annotated: one training for all strategies and seeds, kept as well."""
    path = folder.root / "full.json"

    def make() -> dict[str, Any]:
        say("training with the whole pool, for comparison")
        if base is not None:
            _set_iterations(trial, scaled_iterations(trial, base, len(trial.names)))
        copy = trial.engine.sibling(1)
        everything = torch.arange(len(trial.names), device=copy.device)[None]
        lessons = copy.oracle.annotate(everything)[0]
        slot = torch.zeros(1, dtype=torch.int64, device=copy.device)
        key = torch.tensor([key_of("active learning, whole pool")], device=copy.device)
        copy.learner.begin(slot)
        copy.learner.teach(slot, copy.pool.slices[everything], lessons, key, torch.zeros_like(slot))
        return {part: part_scores(trial, copy, part) for part in PARTS}

    if base is not None:
        _set_iterations(trial, scaled_iterations(trial, base, len(trial.names)))
    made: dict[str, Any] = {}

    def keep() -> dict[str, Any]:
        made.update(make())
        return made

    found = shared(_training_key(trial, {"full": True}), ".json", read_json, keep, lambda to: write_json(to, made))
    say("whole pool: " + ", ".join(f"{part} {headline(found[part]):.3f}" for part in PARTS))
    write_json(path, found)
    return read_json(path)


def _training_key(trial: Trial, what: dict[str, Any]) -> str:
    """A hash of all that a training follows from; the learner's options are those of the moment."""
    key = comparison_key(trial)
    where = {"threads": trial.settings.threads, "device": trial.engine.device.type, "version": TRAINING_VERSION}
    return content_key({**key, **what, **where}, [])


def _draw_sheet(trial: Trial, folder: RunFolder, number: int) -> None:
    """The contact sheet of a round."""
    path = folder.root / "figures" / f"selected_round_{number}.png"
    samples: Sequence[int] = folder.query(number) or []
    if not path.is_file():
        write_atomic(path, contact_sheet(trial.engine, samples))
