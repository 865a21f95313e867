"""From the keyword arguments of a selection environment to its engine: slices, roles, encoder, oracle and learner."""

import functools
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seggym.cohorts.cohort import Cohort, cohort_root, open_cohort
from seggym.cohorts.splits import SelectionRoles, Split, make_split, selection_roles, split_cohort
from seggym.configs.checking import build
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.images import LabelledImages, draw_images, read_images
from seggym.envs.selection.pool import Oracle, Pool, gather_targets, group_slices
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.state import SampleTable
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import require_labels
from seggym.reward_models.classifier import ClassifierLearner, classifier_options
from seggym.reward_models.encoder_store import encode, kept_encoder, open_encoder
from seggym.reward_models.encoders import Encoder
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.labelled_slices import LabelledSlices, prepared
from seggym.reward_models.learners import Learner, ScoredSet
from seggym.reward_models.network_learner import NetworkOptions
from seggym.reward_models.probe import ProbeLearner, ProbeOptions, pooled, position_features
from seggym.reward_models.unet_learner import UNetLearner

# What decides the material of an environment; the rest of its settings does not touch it.
_MATERIAL = (
    "cohort",
    "data_root",
    "cohort_options",
    "split",
    "role",
    "shares",
    "split_seed",
    "size",
    "spacing",
    "unit",
    "ann_type",
    "scribbles",
    "learner",
    "encoder",
    "scored",
    "state_slices",
    "precision",
)
# Environments for training and for evaluation; more than that would be several experiments in one process.
_KEPT = 2
_materials: OrderedDict[str, "Material"] = OrderedDict()


@dataclass(frozen=True)
class Material:
    """What the environments of a process share: pool, oracle, sets to score on, and features of a probe (or None)."""

    pool: Pool
    oracle: Oracle
    scored: Mapping[str, ScoredSet]
    features: Tensor | None


def build_engine(settings: SelectionSettings, num_envs: int) -> SelectionEngine:
    """The engine that ``settings`` describe; data and features are shared within the process."""
    device = resolve_device(settings.device)
    dtype = torch.float64 if settings.precision == "fp64" else torch.float32
    material = load_material(settings, device, dtype)
    learner = make_learner(settings, material, num_envs)
    return SelectionEngine(material.pool, material.oracle, learner, settings, num_envs, device, dtype)


def make_learner(settings: SelectionSettings, material: Material, num_envs: int) -> Learner:
    """The learner of ``settings`` for ``num_envs`` episodes."""
    classes, options = material.pool.num_classes, settings.learner_options
    if settings.learner == "probe":
        assert material.features is not None
        chosen = build(ProbeOptions, options, "learner_options.")
        return ProbeLearner(material.features, material.scored, classes, num_envs, chosen)
    if settings.learner == "unet":
        network = build(NetworkOptions, options, "learner_options.")
        scribbles = settings.ann_type == "scribble"
        return UNetLearner(material.pool.images, material.scored, classes, num_envs, network, scribbles)
    build(NetworkOptions, options, "learner_options.")
    return ClassifierLearner(material.pool.images, material.scored, classes, num_envs, classifier_options(**options))


def load_material(settings: SelectionSettings, device: torch.device, dtype: torch.dtype) -> Material:
    """Pool, oracle and scored sets of ``settings``, made once per process."""
    if settings.classification:
        images = _images(settings)
        make, origin = functools.partial(_of_images, settings, images, device), images.fingerprint
    else:
        cohort = _cohort(settings)
        make, origin = (
            functools.partial(_of_cohort, settings, cohort, device, dtype),
            f"{cohort.root} {cohort.fingerprint}",
        )
    plain = {name: getattr(settings, name) for name in _MATERIAL}
    plain["split"] = settings.split and Path(settings.split).read_text()
    key = json.dumps([plain, origin, str(device)], sort_keys=True, default=dict)
    if key not in _materials:
        _materials[key] = make()
        while len(_materials) > _KEPT:
            _materials.popitem(last=False)
    _materials.move_to_end(key)
    return _materials[key]


# --- segmentation -----------------------------------------------------------------------------------------------------


def _cohort(settings: SelectionSettings) -> Cohort:
    cohort = open_cohort(settings.cohort, settings.data_root, **settings.cohort_options)
    require_labels(cohort, "another cohort: active learning asks for them")
    if settings.ann_type == "scribble":
        from seggym.cohorts.scribbles import with_scribbles  # scikit-image, which only these need

        return with_scribbles(cohort, settings.scribbles)
    return cohort


def choose_roles(settings: SelectionSettings, cohort: Cohort) -> SelectionRoles:
    """Who is in which role of an episode."""
    split = split_cohort(cohort, settings.split)
    return selection_roles(split, cohort.groups, settings.role, settings.shares, settings.split_seed)


def _of_cohort(settings: SelectionSettings, cohort: Cohort, device: torch.device, dtype: torch.dtype) -> Material:
    roles = choose_roles(settings, cohort)
    patients = {*roles.state, *roles.pool, *(name for part in settings.scored for name in getattr(roles, part))}
    if not roles.pool or not roles.reward:
        raise SeggymError(
            f"shares={list(settings.shares)} leave {len(roles.pool)} patients for the pool and {len(roles.reward)} for "
            "the reward, expected some for both; choose other shares"
        )
    scribbles = settings.ann_type == "scribble"
    slices = prepared(cohort, patients, settings.size, settings.spacing, settings.scribbles if scribbles else None)
    images = slices.images.to(device)
    encoder = load_encoder(settings, cohort, roles, slices).to(device)
    encoded = encode(encoder, images)
    table, bank, shown, opened = _samples(slices, slices.of(roles.pool), settings.unit)
    embeddings = pooled(encoded)[shown.to(device)].mean(1)
    masks = gather_targets(slices.masks, bank)
    targets = masks if slices.scribbles is None else gather_targets(slices.scribbles, bank)
    scored = {part: _scored_set(slices, getattr(roles, part), part, device) for part in settings.scored}
    # Without patients of their own, those of the pool stand for the state: their images are known anyway.
    state = slices.of(roles.state or roles.pool)
    state = state[np.linspace(0, len(state) - 1, min(settings.state_slices, len(state))).round().astype(np.int64)]
    pool = Pool(
        table,
        images,
        bank,
        shown,
        torch.from_numpy(state),
        standardised(embeddings),
        cohort.class_names,
        torch.zeros(0, dtype=torch.int64),
        opened,
    ).to(device)
    features = None
    digest = _as_they_are
    if settings.learner == "probe":
        reference = torch.from_numpy(slices.of([*roles.state, *roles.pool])).to(device)
        features = position_features(encoded, reference).to(dtype)
        teacher = ProbeLearner(features, {}, pool.num_classes, 1)
        digest = functools.partial(teacher.digest, pool.slices)
    oracle = Oracle(masks.to(device), targets.to(device), pool.num_classes, digest)
    return Material(pool, oracle, scored, features)


def load_encoder(settings: SelectionSettings, cohort: Cohort, roles: SelectionRoles, slices: LabelledSlices) -> Encoder:
    """The encoder of ``settings``: the one it names, or the one kept for just these state and pool patients.

    None that saw a patient of the reward, val or test role is accepted.
    """
    if settings.encoder is not None:
        return open_encoder(settings.encoder, cohort, [*roles.reward, *roles.val, *roles.test])
    known = [*roles.state, *roles.pool]
    return kept_encoder(
        cohort, known, settings.size, settings.spacing, lambda: slices.images[torch.from_numpy(slices.of(known))]
    )


def _samples(slices: LabelledSlices, order: np.ndarray, unit: str) -> tuple[SampleTable, Tensor, Tensor, Tensor]:
    """Table, slices and shown slices of the samples made of slices ``order`` of the bank; volumes opened by each."""
    patients, volumes = (np.array(values)[order] for values in (slices.patients, slices.volumes))
    names = np.array(slices.names)[order]
    by = {"slice": names, "volume": volumes, "patient": patients}[unit]
    labels, first, groups = np.unique(by, return_index=True, return_inverse=True)
    bank, shown = group_slices(groups, order)
    index, depth = (np.array(values)[order][first] for values in (slices.indices, slices.depths))
    alone = unit == "slice"
    of_volume = by if unit == "patient" else volumes
    table = SampleTable(
        names=tuple(labels.tolist()),
        patient=np.unique(patients, return_inverse=True)[1][first],
        volume=np.unique(of_volume, return_inverse=True)[1][first],
        phase=np.full(len(labels), -1) if unit == "patient" else np.array(slices.phases)[order][first],
        position=index / np.maximum(depth - 1, 1) if alone else np.full(len(labels), 0.5),
        slice_index=index if alone else np.zeros(len(labels), np.int64),
    )
    opened = np.array([len(np.unique(volumes[groups == sample])) for sample in range(len(labels))])
    return table, bank, shown, torch.from_numpy(opened)


def _scored_set(slices: LabelledSlices, patients: Sequence[str], part: str, device: torch.device) -> ScoredSet:
    numbers = slices.of(patients)
    if not len(numbers):
        raise SeggymError(f"scored names {part}, a role without patients; leave it out or choose another role or split")
    names, cases = np.unique(np.array(slices.volumes)[numbers], return_inverse=True)
    chosen = torch.from_numpy(numbers)
    return ScoredSet(
        chosen.to(device), slices.masks[chosen].to(device), torch.from_numpy(cases).to(device), tuple(names.tolist())
    )


def _as_they_are(targets: Tensor) -> Tensor:
    return targets


# --- classification ---------------------------------------------------------------------------------------------------


def _images(settings: SelectionSettings) -> LabelledImages:
    options = dict(settings.cohort_options)
    if options.pop("drawn", settings.data_root is None):
        known = {"count", "classes", "seed"}
        if set(options) - known:
            raise SeggymError(
                f"cohort_options has {', '.join(sorted(set(options) - known))}, expected some of drawn, "
                f"{', '.join(sorted(known))}"
            )
        return draw_images(settings.size, **options)
    return read_images(cohort_root("images", settings.data_root), settings.size)


def _of_images(settings: SelectionSettings, images: LabelledImages, device: torch.device) -> Material:
    parts = np.array(images.parts)
    # An image is its own patient; one group for all, so that the deal says nothing about classes.
    groups = {name: "image" for name, part in zip(images.names, images.parts, strict=True) if part == "pool"}
    split = make_split(groups)
    test = tuple(name for name, part in zip(images.names, images.parts, strict=True) if part == "test")
    if test:
        drawn = make_split(groups, (0.85, 0.15, 0.0))
        groups |= dict.fromkeys(test, "image")
        split = Split(drawn.train, drawn.val, test)
    roles = selection_roles(split, groups, settings.role, settings.shares, settings.split_seed)
    place = {name: number for number, name in enumerate(images.names)}

    def numbers(names: Sequence[str]) -> np.ndarray:
        return np.array(sorted(place[name] for name in names), np.int64)

    given = np.flatnonzero(parts == "initial") if settings.role in ("train", "all") else np.zeros(0, np.int64)
    order = np.concatenate([given, numbers(roles.pool)])
    count = len(order)
    table = SampleTable(
        names=tuple(images.names[number] for number in order),
        patient=np.arange(count),
        volume=np.arange(count),
        phase=np.full(count, -1),
        position=np.zeros(count),
        slice_index=np.zeros(count, np.int64),
    )
    bank = torch.from_numpy(order)[:, None]
    scored = {}
    for part in settings.scored:
        chosen = torch.from_numpy(numbers(getattr(roles, part)))
        if not len(chosen):
            raise SeggymError(f"scored names {part}, a role without images; leave it out or choose another role")
        where = torch.zeros(len(chosen), dtype=torch.int64)
        scored[part] = ScoredSet(chosen.to(device), images.labels[chosen].to(device), where.to(device), (part,))
    coarse = torch.nn.functional.adaptive_avg_pool2d(images.images[torch.from_numpy(order)], 8).flatten(1)
    pool = Pool(
        table,
        images.images,
        bank,
        bank,
        torch.from_numpy(numbers(roles.state or roles.pool)[: settings.state_slices]),
        standardised(coarse),
        images.class_names,
        torch.arange(len(given)),
        torch.ones(count, dtype=torch.int64),
    ).to(device)
    labels = images.labels[bank].to(device)
    oracle = Oracle(labels, labels, pool.num_classes, _as_they_are)
    return Material(pool, oracle, scored, None)


def standardised(embeddings: Tensor) -> Tensor:
    """Columns with mean 0 and standard deviation 1 (0 where constant), float32."""
    centred = embeddings - embeddings.mean(0)
    return (centred / centred.std(0, correction=0).clamp_min(1e-6)).float()
