"""What a run works on: the engine with its pool, how many samples each round has, who is scored, what is odd."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seggym.agents.al.settings import LoopSettings, sample_counts
from seggym.agents.strategies.caching import content_key
from seggym.cohorts.cohort import open_cohort
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.sources import Material, build_engine, choose_roles, load_material
from seggym.errors import SeggymError
from seggym.kspace.keyed_random import key_of
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.learners import ScoredSet

# The sets of the engine, and what a user calls them: without a share of its own the reward set are the val patients.
PARTS = {"val": "reward", "test": "test"}


@dataclass(frozen=True)
class Trial:
    """A pool and its engine, one episode wide.

    ``counts`` are annotated samples by round, ``counted`` labels of validation beside them that a budget pays for.
    ``patients`` maps a part (val, test) to the patient of each of its cases. ``content`` is a hash of all images and
    labels. ``notes`` are sentences for whoever reads the results.
    """

    settings: LoopSettings
    engine: SelectionEngine
    scored: Mapping[str, ScoredSet]
    counts: tuple[int, ...]
    counted: int
    patients: Mapping[str, tuple[str, ...]]
    content: str
    notes: tuple[str, ...]
    true_foreground: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the pool's samples."""
        return self.engine.pool.table.names

    @property
    def key(self) -> int:
        """The episode's key: that of the seed, whatever the strategy."""
        return key_of(f"active learning {self.settings.seed}")

    @property
    def iterations(self) -> int | None:
        """``options.iterations`` of the learner with its defaults; None for one that has none."""
        options = getattr(self.engine.learner, "options", None)
        return getattr(options, "iterations", None)

    def iterations_of(self, number: int, base: int) -> int:
        """Iterations of the training of round ``number`` where the options say ``base``."""
        model = self.settings.model
        if number == 0 and model.first_iterations is not None:
            base = model.first_iterations
        return scaled_iterations(self, base, self.counts[number])


def scaled_iterations(trial: Trial, base: int, samples: int) -> int:
    """Iterations of a training with so many ``samples`` where the options say ``base``."""
    model, pool = trial.settings.model, trial.engine.pool
    if model.iterations_by == "fraction":
        return max(1, int(base * samples / len(pool)))
    if model.iterations_by == "epochs":
        images = samples * float((pool.slices >= 0).sum()) / len(pool)
        return base * int(np.ceil(images / trial.engine.learner.options.batch))  # type: ignore[attr-defined]
    return base


def open_trial(settings: LoopSettings) -> Trial:
    """Open the data of ``settings`` and check them; raises :class:`SeggymError` for what cannot be learned from."""
    device = resolve_device(settings.device)
    plan = settings.selection()
    material = load_material(plan, device, torch.float32)
    pool = material.pool
    validation = len(material.scored["reward"].slices) if settings.model.weights == "best" else 0
    counted = validation if settings.policy.validation_labels == "counted" else 0
    given = len(pool.initial)
    counts = sample_counts(settings.policy, len(pool), given, counted)
    # The whole pool can be annotated, whatever the budgets are: so round 0 is the same for all of them.
    spare = len(pool) - counts[0]
    if spare < 1:
        raise SeggymError(
            f"round 0 annotates {counts[0]} samples, the whole pool, expected fewer: there is nothing to choose; lower "
            "the first of policy.budgets"
        )
    engine = build_engine(settings.selection(counts[0], spare), 1)
    _refuse_duplicates(settings, material)
    everything = torch.arange(len(pool), device=device)
    masks = material.oracle.masks(everything)
    shown = (masks > 0) & (masks < pool.num_classes)
    foreground = float(len(pool)) if settings.classification else float(shown.sum())
    if not foreground:
        raise SeggymError(
            f"no mask of the pool's {len(pool)} samples shows any of {', '.join(pool.class_names[1:])}, expected some "
            "foreground to learn; mend the labels (seggym check-data lists what is wrong)"
        )
    targets = material.oracle.targets(everything, torch.ones(len(pool), dtype=torch.bool, device=device))
    labels = [part.labels for part in material.scored.values()]
    content = content_key({"names": pool.table.names}, [pool.images, pool.slices, masks, targets, *labels])
    return Trial(
        settings,
        engine,
        material.scored,
        tuple(counts),
        counted,
        {part: _patients(settings, material.scored[name].names, part) for part, name in PARTS.items()},
        content,
        _notes(settings, pool.class_names, masks, validation, counted),
        foreground,
    )


def _notes(
    settings: LoopSettings, classes: Sequence[str], masks: Tensor, validation: int, counted: int
) -> tuple[str, ...]:
    """What a reader of the results should know about the labels."""
    notes = ["labels of the state set are not used: predictions on it are part of an agent's observation, not of a run"]
    if settings.model.weights == "last":
        notes.append("the last weights of every training are scored; no label of validation decides anything")
    else:
        how = "are counted in every budget" if counted else "are given to every strategy and not counted"
        notes.append(f"the best weights by validation are scored; the {validation} labelled slices of validation {how}")
    if settings.strategy.privileged:
        notes.append(f"{settings.strategy.name} sees labels of the pool: a reference, no competitor")
    if not settings.classification:
        empty = int((~((masks > 0) & (masks < len(classes))).flatten(1).any(1)).sum())
        if empty:
            notes.append(
                f"{empty} of {len(masks)} samples have an empty mask; annotating one costs what any other does"
            )
    return tuple(notes)


def missing_classes(trial: Trial) -> list[str]:
    """Classes of which nothing is annotated at the moment."""
    pixels = trial.engine.pixels[0].tolist()
    return [name for name, count in zip(trial.engine.pool.class_names, pixels, strict=True) if not count]


def _patients(settings: LoopSettings, volumes: Sequence[str], part: str) -> tuple[str, ...]:
    """The patient of each of ``volumes``; for images the set itself."""
    if settings.classification:
        return tuple(volumes)
    plan = settings.selection()
    cohort = open_cohort(plan.cohort, plan.data_root, **plan.cohort_options)
    known = getattr(choose_roles(plan, cohort), PARTS[part])
    # A volume is called <patient>_<frame>, and both may have underscores in them.
    return tuple(max((name for name in known if volume.startswith(f"{name}_")), key=len) for volume in volumes)


def _refuse_duplicates(settings: LoopSettings, material: Material) -> None:
    """Raise :class:`SeggymError` where one image is there twice: in two roles, or as samples of two patients.

    Frames that repeat within a patient, and blank ones, are what they are.
    """
    pool = material.pool
    owners = {int(number): str(pool.table.patient[sample]) for sample, number in _pairs(pool.slices)}
    names = {int(number): pool.table.names[sample] for sample, number in _pairs(pool.slices)}
    for part, name in PARTS.items():
        scored = material.scored[name]
        for number, case in zip(scored.slices.tolist(), scored.cases.tolist(), strict=True):
            owners[number], names[number] = f"{part} {scored.names[case]}", f"{scored.names[case]} ({part})"
    seen: dict[bytes, int] = {}
    for number in sorted(owners):
        image = pool.images[number].cpu().numpy()
        if image.min() == image.max():
            continue
        first = seen.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), number)
        apart = owners[first] != owners[number] and not (owners[first].split()[0] == owners[number].split()[0] in PARTS)
        if apart and not settings.classification:
            raise SeggymError(
                f"{names[number]} holds the same image as {names[first]}, expected every image once: it would be "
                "annotated twice, or be tested on after it was learned; remove one of them"
            )


def _pairs(slices: Tensor) -> list[tuple[int, int]]:
    """(sample, slice) of every slice int64 (P, S) that there is."""
    return [(sample, number) for sample, row in enumerate(slices.tolist()) for number in row if number >= 0]


def comparison_key(trial: Trial) -> dict[str, Any]:
    """All that a score depends on beside strategy, seed and budgets: results with another one cannot be compared."""
    settings = trial.settings
    model: dict[str, Any] = {name: getattr(settings.model, name) for name in ("learner", "iterations_by", "weights")}
    model["first_iterations"] = settings.model.first_iterations
    if settings.model.weights == "best":
        model["validate_every"] = settings.model.validate_every
        model["validation_labels"] = settings.policy.validation_labels
    options = getattr(trial.engine.learner, "options", None)
    return {
        "data": {"cohort": settings.cohort, "content": trial.content, **_plain(settings.data)},
        "learner": {**model, "options": _plain(replace(options)) if options is not None else {}},
        "annotation": {"ann_type": settings.model.ann_type, "scribbles": settings.model.scribbles},
        "metric": "accuracy" if settings.classification else "dice",
    }


def _plain(record: Any) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        for name, value in vars(record).items()
    }
