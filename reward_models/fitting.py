"""Fitting a reward model: the full network, the cross-fitted ones, and the independent one for scoring."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seggym.cohorts.cohort import Cohort
from seggym.cohorts.splits import Split, make_folds
from seggym.errors import SeggymError
from seggym.files import read_json, write_json
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.methods import make_reconstruction, parse_reconstruction
from seggym.reward_models.checkpoints import CARD, INDEX, TASKS, ModelCard, open_reward_model, read_card, save_network
from seggym.reward_models.evaluation import evaluate_network
from seggym.reward_models.networks import RECONSTRUCTORS
from seggym.reward_models.precision import read_record
from seggym.reward_models.reconstruction_training import ReconstructionTask, evaluate_reconstruction
from seggym.reward_models.regret import MAX_SECONDS, record_precision
from seggym.reward_models.slices import prepared_slices
from seggym.reward_models.training import STATE, Recipe, SegmentationTask, train_network


@dataclass(frozen=True)
class Plan:
    """The networks of a reward model: ``recipe`` for ``full`` and ``folds``, ``independent`` (None: none) for net B.

    ``task`` is what all of them are trained for. A reconstruction is not scored with, so it is one network.
    ``reconstruction``, a method by name or with its options, makes the images that a segmentation learns from.
    """

    recipe: Recipe
    independent: Recipe | None
    folds: int = 3
    task: str = "segmentation"
    reconstruction: str | Mapping[str, Any] = "zero_filled"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise SeggymError(f"task={self.task!r} is unknown, expected {' or '.join(TASKS)}")
        if self.task == "segmentation":
            for recipe in filter(None, (self.recipe, self.independent)):
                if recipe.architecture in RECONSTRUCTORS:
                    raise SeggymError(f"architecture {recipe.architecture} only reconstructs: set task=reconstruction")
        elif self.reconstruction != "zero_filled":
            raise SeggymError(
                f"task=reconstruction has no use for reconstruction={self.reconstruction!r}: leave it out"
            )
        elif self.folds or self.independent is not None:
            raise SeggymError("task=reconstruction trains one network: set folds=0 and independent=null")


def member_names(plan: Plan) -> list[str]:
    """The networks in the order in which they are trained."""
    return ["full", *(f"fold{i}" for i in range(plan.folds)), *(["independent"] if plan.independent else [])]


def fit_reward_model(
    folder: Path,
    cohort: Cohort,
    split: Split,
    acquisition: Acquisition,
    plan: Plan,
    device: torch.device,
    members: Sequence[str] | None = None,
) -> None:
    """Train the networks of ``plan`` that are not finished yet, and write the index that makes them a reward model.

    Folds partition the train patients; network ``fold{i}`` is trained on the others. ``members`` restricts the call to
    some of the networks, so that several machines can share the work. What is finished stays when a later call fails.
    Each network gets the record of what bf16 costs it, a finished one too if it has none.
    """
    if plan.task == "reconstruction" and acquisition.trajectory != "lines":
        raise SeggymError(
            f"task=reconstruction is for phase-encode lines, acquisition.trajectory is {acquisition.trajectory!r}: set "
            "it to lines"
        )
    names = member_names(plan)
    unknown = sorted(set(members or ()) - set(names))
    if unknown:
        raise SeggymError(f"members names {', '.join(unknown)}, expected some of {', '.join(names)}")
    folds = [list(fold) for fold in make_folds(split.train, cohort.groups, plan.folds)] if plan.folds else []
    index = {
        "folds": folds,
        "cohort": cohort.name,
        "fingerprint": cohort.fingerprint,
        "acquisition": acquisition.as_dict(),
    }
    path = folder / INDEX
    if path.exists() and _completed(read_json(path, "index of a reward model")) != index:
        raise SeggymError(
            f"{path} describes a reward model of other data, another split, other folds or another acquisition: remove "
            f"{folder}, or choose another output folder"
        )
    write_json(path, index)
    for name in members or names:
        held_out = folds[int(name.removeprefix("fold"))] if name.startswith("fold") else []
        patients = [patient for patient in split.train if patient not in held_out]
        recipe = plan.independent if name == "independent" and plan.independent else plan.recipe
        # Another seed for every network of every run; a fold shares nothing with the full one but the recipe.
        recipe = replace(recipe, seed=1000 * recipe.seed + names.index(name))
        fit_member(folder / name, cohort, patients, split, acquisition, recipe, device, plan.task, plan.reconstruction)
        first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        if first and plan.task == "segmentation":
            vouch_for_bf16(folder / name, cohort, split, acquisition, device)


def _completed(index: Any) -> Any:
    """``index`` with the defaults of what the acquisition had no name for when it was written."""
    if isinstance(index, dict) and isinstance(index.get("acquisition"), dict):
        return {**index, "acquisition": {**Acquisition().as_dict(), **index["acquisition"]}}
    return index


def fit_member(
    folder: Path,
    cohort: Cohort,
    patients: list[str],
    split: Split,
    acquisition: Acquisition,
    recipe: Recipe,
    device: torch.device,
    task: str = "segmentation",
    reconstruction: str | Mapping[str, Any] = "zero_filled",
) -> None:
    """Train one network on ``patients`` with the validation patients of ``split``, unless ``folder`` holds it already.

    Its test patients, if any, are scored for the card. ``task`` and ``reconstruction`` as in :class:`Plan`.
    """
    if (folder / CARD).exists():
        card = read_card(folder)
        made_with = (card.task, card.metrics.get("reconstruction", "zero_filled"))
        other = sorted(card.patients) != sorted(patients) or made_with != (task, reconstruction)
        if other or not recipe.made(card.metrics.get("recipe")):
            raise SeggymError(
                f"{folder} holds a network trained on other patients or images, for another task or with another "
                "recipe: remove it, or choose another output folder"
            )
        print(f"{folder} is finished already")
        return
    if recipe.start is not None:
        # What a network starts from is part of what it has seen.
        start = open_reward_model(recipe.start)
        held_out = sorted(set(cohort.patients) - set(patients))
        start.require_unseen(recipe.start_member, held_out, cohort.name)
    train, val = (prepared_slices(cohort, chosen, acquisition) for chosen in (patients, split.val))
    segments = task == "segmentation"
    images = None
    if reconstruction != "zero_filled":
        images = make_reconstruction(*parse_reconstruction(reconstruction), acquisition)
    maker = functools.partial(SegmentationTask, reconstruction=images) if segments else ReconstructionTask
    network, metrics = train_network(recipe, train, val, acquisition, folder, device, maker)
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    if split.test:
        stack = prepared_slices(cohort, split.test, acquisition)
        metrics["test"] = (
            evaluate_network(network, stack, acquisition, cohort.class_names, device, reconstruction=images)
            if segments
            else evaluate_reconstruction(network, stack, acquisition, device)
        )
    if images is not None:
        metrics["reconstruction"] = reconstruction
    card = ModelCard(
        architecture=recipe.architecture,
        options=metrics["recipe"]["options"],
        num_outputs=cohort.num_classes if segments else 1,
        class_names=list(cohort.class_names) if segments else [],
        task=task,
        crop=acquisition.crop,
        patients=patients,
        cohort=cohort.name,
        fingerprint=cohort.fingerprint,
        metrics=metrics,
    )
    save_network(folder, network, card)
    (folder / STATE).unlink(missing_ok=True)


def vouch_for_bf16(folder: Path, cohort: Cohort, split: Split, acquisition: Acquisition, device: torch.device) -> None:
    """Measure on the validation patients what the network in ``folder`` loses in bf16, unless that is on record."""
    if read_record(folder) is not None:
        return
    record = record_precision(folder, prepared_slices(cohort, split.val, acquisition), acquisition, device)
    if record is None:
        print(
            f"{folder}: what bf16 loses was not measured, because it would take more than {MAX_SECONDS / 60:.0f} "
            "minutes here; until the same command runs where bf16 is native, precision=auto is fp32"
        )
    else:
        print(f"{folder}: {record.sentence}")
