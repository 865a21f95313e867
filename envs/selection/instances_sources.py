"""From the keyword arguments of the instance environment to its pool: images, objects, roles, learner."""

import functools
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seggym.cohorts.annotations.model import Annotation, rasterise
from seggym.cohorts.cohort import cohort_root
from seggym.cohorts.splits import make_split, selection_roles
from seggym.configs.checking import build
from seggym.envs.selection.pool import Oracle, Pool
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.sources import standardised
from seggym.envs.selection.state import SampleTable
from seggym.errors import SeggymError
from seggym.reward_models.instances.dense import label_map, thumbnails
from seggym.reward_models.instances.learner import InstanceLearner, InstanceOptions, InstanceSet, planes
from seggym.reward_models.instances.segmenter import InstanceTarget

# Environments for training and for evaluation, as for other cohorts.
_KEPT = 2
_materials: OrderedDict[str, "Material"] = OrderedDict()
# What decides the material of an environment.
_MATERIAL = ("data_root", "cohort_options", "role", "shares", "split_seed", "size", "scored", "state_slices")


@dataclass(frozen=True)
class DrawnImages:
    """Generated images (:mod:`seggym.cohorts.instance_phantoms`): how many, of which variant and seed."""

    images: int = 320
    variant: str = "imbalanced"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.variant not in ("imbalanced", "balanced") or self.images < 10 or self.seed < 0:
            raise SeggymError(
                f"cohort_options images={self.images}, variant={self.variant!r} and seed={self.seed}, expected at "
                "least 10, imbalanced or balanced, and no negative number"
            )


@dataclass(frozen=True)
class FolderOfImages:
    """Annotated images below ``data_root``; ``classes`` are the names of their objects."""

    classes: Sequence[str]


class InstanceOracle(Oracle):
    """The only holder of the pool's objects; ``effort`` int64 (P, 2) are instances and vertices of each image."""

    def __init__(self, masks: Tensor, lessons: Tensor, num_classes: int, effort: Tensor) -> None:
        super().__init__(masks, masks, num_classes, lambda _: lessons)
        self._effort = effort

    def effort(self, samples: Tensor) -> Tensor:
        """Instances and vertices int64 (..., 2) that annotating ``samples`` int64 (...) took."""
        return self._effort[samples]


@dataclass(frozen=True)
class Material:
    """What the environments of a process share."""

    pool: Pool
    oracle: InstanceOracle
    scored: dict[str, InstanceSet]


def make_instance_learner(settings: SelectionSettings, material: Material, num_envs: int) -> InstanceLearner:
    """The learner of ``settings`` for ``num_envs`` episodes."""
    options = build(InstanceOptions, settings.learner_options, "learner_options.")
    return InstanceLearner(material.pool.images, material.scored, material.pool.num_classes, num_envs, options)


def load_instances(settings: SelectionSettings, device: torch.device) -> Material:
    """Pool, oracle and scored sets of ``settings``, made once per process."""
    plain = {name: getattr(settings, name) for name in _MATERIAL}
    root = None if settings.data_root is None else cohort_root("instances", settings.data_root)
    times = [] if root is None else sorted(f"{path} {path.stat().st_mtime_ns}" for path in root.rglob("*"))
    key = json.dumps([plain, times, str(device)], sort_keys=True, default=dict)
    if key not in _materials:
        _materials[key] = _material(settings, root, device)
        while len(_materials) > _KEPT:
            _materials.popitem(last=False)
    _materials.move_to_end(key)
    return _materials[key]


def _material(settings: SelectionSettings, root: Path | None, device: torch.device) -> Material:
    names, images, annotations, classes = _drawn(settings) if root is None else _read(settings, root)
    size = settings.size
    bank = thumbnails(images, size)
    targets = [_target(annotation, classes, size) for annotation in annotations]
    # An image is its own patient, and all are of one group, so that the deal says nothing about classes.
    groups = dict.fromkeys(names, "image")
    roles = selection_roles(make_split(groups), groups, settings.role, settings.shares, settings.split_seed)
    place = {name: number for number, name in enumerate(names)}

    def numbers(chosen: Sequence[str]) -> Tensor:
        return torch.tensor(sorted(place[name] for name in chosen), dtype=torch.int64)

    order, count = numbers(roles.pool), len(roles.pool)
    scored = {}
    for part in settings.scored:
        of_part = numbers(getattr(roles, part))
        if not len(of_part) or not sum(len(targets[number].labels) for number in of_part):
            raise SeggymError(
                f"scored names {part}, a role of {len(of_part)} images without any object; use more "
                "images, or leave it out"
            )
        scored[part] = InstanceSet(of_part.to(device), tuple(_on(targets[number], device) for number in of_part))
    if not count:
        raise SeggymError(f"shares={list(settings.shares)} leave no image for the pool; choose others, or more images")
    table = SampleTable(
        names=tuple(names[number] for number in order),
        patient=np.arange(count),
        volume=np.arange(count),
        phase=np.full(count, -1),
        position=np.zeros(count),
        slice_index=np.zeros(count, np.int64),
    )
    state = numbers(roles.state or roles.pool)[: settings.state_slices]
    coarse = functional.adaptive_avg_pool2d(bank[order], 8).flatten(1)
    pool = Pool(
        table,
        bank,
        order[:, None],
        order[:, None],
        state,
        standardised(coarse),
        ("background", *classes),
        torch.zeros(0, dtype=torch.int64),
        torch.ones(count, dtype=torch.int64),
    ).to(device)
    of_pool = [targets[number] for number in order]
    masks = torch.stack([label_map(target, size) for target in of_pool])[:, None]
    effort = torch.tensor([[len(annotations[n].instances), annotations[n].vertices] for n in order])
    lessons = planes(of_pool)
    oracle = InstanceOracle(masks.to(device), lessons.to(device), pool.num_classes, effort.to(device))
    return Material(pool, oracle, scored)


def _drawn(settings: SelectionSettings) -> tuple[list[str], list[Tensor], list[Annotation], tuple[str, ...]]:
    from seggym.cohorts.instance_phantoms import CLASSES, VARIANTS, draw_instances

    chosen = build(DrawnImages, settings.cohort_options, "cohort_options.")
    draw = functools.partial(draw_instances, seed=chosen.seed, settings=VARIANTS[chosen.variant])
    pairs = [draw(number) for number in range(chosen.images)]
    return [one.image for _, one in pairs], [_tensor(pixels) for pixels, _ in pairs], [one for _, one in pairs], CLASSES


def _read(settings: SelectionSettings, root: Path) -> tuple[list[str], list[Tensor], list[Annotation], tuple[str, ...]]:
    from seggym.cohorts.annotations.reading import open_image_folder

    options: dict[str, Any] = dict(settings.cohort_options)
    if not options.get("classes"):
        raise SeggymError("cohort_options has no classes, expected the names of the objects in data_root's annotations")
    classes = tuple(build(FolderOfImages, options, "cohort_options.").classes)
    folder = open_image_folder(root)
    found = {name: folder.annotation(name) for name in folder.names}
    missing = [name for name, annotation in found.items() if annotation is None]
    if missing or not found:
        raise SeggymError(
            f"{root} has {len(found)} images, of which {', '.join(missing[:5]) or 'none'} have no annotation, expected "
            "one for each: annotate them, or move them elsewhere"
        )
    kept = [annotation for annotation in found.values() if annotation is not None]
    return list(found), [_tensor(folder.image(name)) for name in found], kept, classes


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255


def _target(annotation: Annotation, classes: Sequence[str], size: int) -> InstanceTarget:
    """The objects on a square of ``size`` pixels, without those that have no pixel there."""
    masks, labels = rasterise(annotation, classes)
    square = torch.from_numpy(masks)
    if square.shape[-2:] != (size, size):
        square = square.new_zeros(len(square), size, size) if not len(square) else _resized(square, size)
    there = square.flatten(1).any(1)
    return InstanceTarget(square[there], torch.from_numpy(labels)[there])


def _resized(masks: Tensor, size: int) -> Tensor:
    return functional.interpolate(masks[:, None].to(torch.uint8), (size, size), mode="nearest-exact")[:, 0] > 0


def _on(target: InstanceTarget, device: torch.device) -> InstanceTarget:
    return InstanceTarget(target.masks.to(device), target.labels.to(device))
