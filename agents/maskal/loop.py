"""The loop of maskAL: train, look at the pool, choose, let somebody annotate, train again; resumable to the bit."""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seggym.agents.al.folders import locked
from seggym.agents.maskal.bench import (
    PARTS,
    Bench,
    Say,
    detected,
    evaluate,
    fit,
    initial_images,
    open_bench,
    seed_of,
    segmenter_of,
)
from seggym.agents.maskal.data import effort
from seggym.agents.maskal.experiments import Experiment, experiments
from seggym.agents.maskal.records import RunRecord, load_model, save_model
from seggym.agents.maskal.settings import MaskalSettings
from seggym.agents.maskal.state import PoolState
from seggym.agents.maskal.strategies import make_instance_strategy
from seggym.agents.maskal.workflow import SimulatedOracle
from seggym.agents.strategies.strategy import Strategy
from seggym.cohorts.annotations.labelme import labelme_content
from seggym.cohorts.annotations.model import Annotation
from seggym.cohorts.annotations.tracing import predicted_annotation
from seggym.files import write_atomic
from seggym.kspace.keyed_random import key_of
from seggym.reward_models.instances.segmenter import Checkpointing, InstanceSegmenter

# To be raised whenever the same data, settings and seed train another network.
TRAINING_VERSION = 1


def run(settings: MaskalSettings, say: Say = print) -> list[RunRecord]:
    """Run all experiments of ``settings``, or what is left of them; their folders.

    Raises :class:`AnnotationsPending` where people are to annotate and the loop is not to wait.
    """
    found = experiments(settings)
    # What cannot be had is said before people have annotated anything.
    for experiment in found:
        strategy_of(settings, experiment)
    segmenter_of(settings, found[0], torch.device("cpu"))
    torch.set_num_threads(settings.threads)
    results = Path(settings.resultsroot) / settings.experiment_name
    with locked(results):
        bench = open_bench(settings, found, say)
        say(_plan(bench, found))
        records = [Loop(bench, experiment, say).run() for experiment in found]
        if settings.train_complete_trainset:
            _complete(bench, replace(found[0], name="complete", strategy="random", queries=()), say)
    return records


def strategy_of(settings: MaskalSettings, experiment: Experiment) -> Strategy:
    """The strategy of an experiment, made anew."""
    common = {
        "mode": experiment.mode,
        "passes": experiment.passes,
        "method": settings.dropout_method,
        "threshold": settings.iou_thres,
        "empty": settings.empty_images,
        "empty_share": settings.empty_share,
    }
    options = settings.strategy_options.get(experiment.strategy, {})
    return make_instance_strategy(experiment.strategy, common, options)


def _plan(bench: Bench, found: Sequence[Experiment]) -> str:
    settings, sizes = bench.settings, {part: len(bench.folders[part].names) for part in PARTS}
    trainings = sum(len(one.queries) + 1 for one in found)
    return (
        f"{settings.experiment_name}: {', '.join(dict.fromkeys(one.name for one in found))}; seed "
        f"{', '.join(dict.fromkeys(str(one.seed) for one in found))}; at most {trainings} trainings, backend "
        f"{settings.backend} on {bench.device}; {sizes['train']} images in traindir, {sizes['val']} in valdir, "
        f"{sizes['test']} in testdir"
    )


class Loop:
    """One experiment: its rounds, from wherever they were stopped."""

    def __init__(self, bench: Bench, experiment: Experiment, say: Say) -> None:
        self.bench, self.experiment, self.say = bench, experiment, say
        self.rounds = len(experiment.queries) + 1
        self.strategy = strategy_of(bench.settings, experiment)
        self.record = _record(bench, experiment, self.strategy)
        self.segmenter = segmenter_of(bench.settings, experiment, bench.device)
        self.annotations: dict[str, Annotation] = {}

    def run(self) -> RunRecord:
        """Run the rounds that are left."""
        for number in range(self.rounds):
            started = time.perf_counter()
            selected = self._selected(number)
            if not selected:
                self.say(f"{self.experiment.name}: no image is left to choose in round {number}; it ends here")
                break
            self._annotate(number, selected)
            known = self.record.scores(number)
            if known is None or self._needed(number):
                self._train(number)
            if known is None:
                scores = scores_of(self.bench, self.segmenter, self.annotations, self.record.load_model(number))
                self.record.write_scores(number, scores)
                self.record.write_tables(self.rounds, self.bench.settings.classes)
                self.say(self._progress(number, scores, time.perf_counter() - started))
        self.record.write_tables(self.rounds, self.bench.settings.classes)
        return self.record

    def _needed(self, number: int) -> bool:
        """Whether a round that has ended must be trained again, because its weights are gone and wanted."""
        if number + 1 >= self.rounds or self.record.has_model(number):
            return False
        return self.record.scores(number + 1) is None or self._needed(number + 1)

    def _selected(self, number: int) -> list[str]:
        """The images of round ``number``, chosen now unless somebody did before the run was stopped."""
        known = self.record.query(number)
        if known is not None:
            return list(known["selected"])
        names = self.bench.folders["train"].names
        if number == 0:
            selected = initial_images(self.bench.settings, names, self.experiment.seed)
            self.record.write_query(0, {"selected": selected, "certainty": {}})
            return selected
        self.segmenter.load_state_dict(self.record.load_model(number - 1)[0])
        seed = seed_of("query", self.experiment.seed, number)
        state = _Remembering(
            self.bench.images["train"], self.annotations, self.segmenter, self.bench.settings.classes, seed, number - 1
        )
        count = min(self.experiment.queries[number - 1], len(state.candidates))
        if not count:
            return []
        indices = [int(index) for index in self.strategy.query(state, count).indices]
        certainty = {names[index]: value for index, value in state.known.items()}
        selected = [names[index] for index in indices]
        if certainty:
            lines = [f"{name},{'NaN' if value is None else repr(value)}" for name, value in certainty.items()]
            listing = self.record.results / f"certainty_iteration{number:03d}.csv"
            write_atomic(listing, "\n".join(["name,certainty", *lines, ""]).encode())
        if selected:
            chosen = {name: certainty[name] for name in selected if name in certainty}
            empty = {
                "without_detections": sum(value is None for value in certainty.values()),
                "selected_without_detections": sum(value is None for value in chosen.values()),
            }
            content = {"selected": selected, "certainty": chosen, "pool": len(state.candidates)}
            self.record.write_query(number, {**content, **(empty if certainty else {})})
        return selected

    def _annotate(self, number: int, selected: list[str]) -> None:
        query = self.record.query(number) or {}
        certainty = {name: value for name, value in query.get("certainty", {}).items() if value is not None}
        predict = (lambda names: self._predict(number, names)) if self.bench.settings.auto_annotate and number else None
        self.annotations.update(self.bench.annotator.annotate(selected, certainty, predict))

    def _predict(self, number: int, names: Sequence[str]) -> dict[str, Annotation]:
        """What the network of the round before makes of ``names``, to be corrected."""
        self.segmenter.load_state_dict(self.record.load_model(number - 1)[0])
        images = self.bench.images["train"].of(names)
        found: dict[str, Annotation] = {}
        for name, one in zip(images.names, detected(self.segmenter, images), strict=True):
            arrays = (one.masks.cpu().numpy(), one.labels.cpu().numpy(), one.scores.cpu().numpy())
            found[name] = predicted_annotation(name, *arrays, self.bench.settings.classes)
        return found

    def _train(self, number: int) -> None:
        """Leave the network of round ``number`` in the segmenter and on disk, trained unless it is there."""
        record = self.record
        if not record.has_model(number):
            if number == 0 and self.bench.settings.duplicate_initial_model:
                shared = self._shared_model()
                if not shared.with_suffix(".json").is_file():
                    save_model(shared, *self._fit(0))
                save_model(record.model(0), *load_model(shared))
            else:
                save_model(record.model(number), *self._fit(number))
        self.segmenter.load_state_dict(record.load_model(number)[0])

    def _shared_model(self) -> Path:
        """Where the first network lies for all experiments that begin with it, named by all that it follows from."""
        identity = _identity(self.bench, self.experiment, None)
        begins = {key: identity["experiment"][key] for key in ("dropout", "seed")}
        outlines = [labelme_content(self.annotations[name]) for name in self.annotations]
        content = json.dumps([{**identity, "experiment": begins}, outlines], sort_keys=True)
        root = Path(self.bench.settings.weightsroot) / self.bench.settings.experiment_name / "initial"
        return root / hashlib.sha256(content.encode()).hexdigest()[:16] / "best_model_000.safetensors"

    def _fit(self, number: int) -> tuple[dict[str, torch.Tensor], float | None]:
        """Weights of round ``number`` and their score on the validation images."""
        best = None
        if number and self.bench.settings.transfer_learning_on_previous_models:
            weights, best = self.record.load_model(number - 1)
            self.segmenter.load_state_dict(weights)
        else:
            self.segmenter.reset(seed_of("weights", self.experiment.seed, number))
        checkpointing = Checkpointing(
            lambda state: self.record.write_checkpoint(number, state),
            self.bench.settings.checkpoint_period,
            self.record.checkpoint(number),
        )
        seed = seed_of("training", self.experiment.seed, number)
        score = fit(self.bench, self.segmenter, self.annotations, seed, best, checkpointing)
        return self.segmenter.state_dict(), score

    def _progress(self, number: int, scores: Mapping[str, Any], seconds: float) -> str:
        return (
            f"{self.experiment.name}, seed {self.experiment.seed}, round {number} of {self.rounds - 1}: "
            f"{scores['train_size']} images, {scores['instances']} instances, mAP {_number(scores['map'])}, AP50 "
            f"{_number(scores['ap50'])} ({seconds:.0f} s)"
        )


class _Remembering(PoolState):
    """A pool that keeps the certainties it was asked for: ``known`` by index, None without detections."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.known: dict[int, float | None] = {}

    def certainty(self, indices: np.ndarray, *args: Any) -> np.ndarray:
        """See :class:`PoolState`."""
        found = super().certainty(indices, *args)
        self.known |= {
            int(index): None if math.isnan(value) else float(value) for index, value in zip(indices, found, strict=True)
        }
        return found


def scores_of(
    bench: Bench,
    segmenter: InstanceSegmenter,
    annotations: Mapping[str, Annotation],
    model: tuple[dict[str, torch.Tensor], float | None],
) -> dict[str, Any]:
    """What ``model``, trained on ``annotations``, cost and scores on the test images."""
    weights, validated = model
    segmenter.load_state_dict(weights)
    spent, found = effort(annotations), evaluate(bench, segmenter, "test")
    return {
        "train_size": spent.images,
        "instances": spent.instances,
        "vertices": spent.vertices,
        "map": found.map,
        "ap50": found.ap50,
        "ap75": found.ap75,
        "per_class": found.per_class.tolist(),
        "val_map": validated,
    }


def _complete(bench: Bench, experiment: Experiment, say: Say) -> None:
    """Train once with all images of traindir, which must be annotated: what the curves may reach."""
    record = _record(bench, experiment, None)
    if record.scores(0) is None:
        names = bench.folders["train"].names
        annotations = SimulatedOracle(bench.folders["train"], bench.settings.classes).annotate(names)
        record.write_query(0, {"selected": names, "certainty": {}})
        segmenter = segmenter_of(bench.settings, experiment, bench.device)
        if not record.has_model(0):
            segmenter.reset(seed_of("weights", experiment.seed, "complete"))
            checkpointing = Checkpointing(
                lambda state: record.write_checkpoint(0, state), bench.settings.checkpoint_period, record.checkpoint(0)
            )
            score = fit(
                bench, segmenter, annotations, seed_of("training", experiment.seed, "complete"), None, checkpointing
            )
            save_model(record.model(0), segmenter.state_dict(), score)
        scores = scores_of(bench, segmenter, annotations, record.load_model(0))
        record.write_scores(0, scores)
        say(f"complete train set: {scores['train_size']} images, mAP {_number(scores['map'])}")
    record.write_tables(1, bench.settings.classes)


def _record(bench: Bench, experiment: Experiment, strategy: Strategy | None) -> RunRecord:
    """The files of ``experiment``."""
    where = Path(bench.settings.experiment_name) / experiment.name / f"seed{experiment.seed}"
    results, weights = Path(bench.settings.resultsroot) / where, Path(bench.settings.weightsroot) / where
    return RunRecord(results, weights, experiment.name, _identity(bench, experiment, strategy))


# Settings that change nothing about what is chosen, trained and scored.
_NO_MATTER = {
    *(
        "weightsroot",
        "resultsroot",
        "dataroot",
        "traindir",
        "valdir",
        "testdir",
        "experiment_name",
        "strategies",
        "seed",
    ),
    *("mode", "pool_size", "loops", "equal_pool_size", "dropout_probability", "mcd_iterations", "strategy_options"),
    *("annotator", "wait", "auto_annotate", "export_format", "checkpoint_period", "cuda_visible_devices"),
    *("train_complete_trainset", "duplicate_initial_model"),
}


def _identity(bench: Bench, experiment: Experiment, strategy: Strategy | None) -> dict[str, Any]:
    """All that a run follows from, plain JSON: the settings that matter, and which images there are."""
    settings = {key: value for key, value in asdict(bench.settings).items() if key not in _NO_MATTER}
    images = {
        part: key_of("\n".join(f"{name} {os.path.getsize(path)}" for name, path in folder.images.items()))
        for part, folder in bench.folders.items()
    }
    options = None if strategy is None else {"name": strategy.name, "options": strategy.identity}
    return {
        "format": 1,
        "kind": "maskal run",
        "training_version": TRAINING_VERSION,
        "experiment": {**asdict(experiment), "queries": list(experiment.queries)},
        "strategy": options,
        "settings": settings,
        "images": images,
    }


def _number(value: float | None) -> str:
    return "no number" if value is None or math.isnan(value) else f"{value:.3f}"
