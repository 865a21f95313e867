"""Source and target domain from cohorts: who is in which, and their images on one grid.

Patients of the source and of the target are different people; all images of a patient stay together. The labels of the
target's training part are not looked at here: :func:`target_train_labels` is for those who may, upper references.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from seggym.cohorts.cohort import Cohort, Volume, open_cohort
from seggym.cohorts.shifts import Shift
from seggym.cohorts.splits import make_split
from seggym.cohorts.validity.rules import PACKAGED, ValidityRules, load_rules
from seggym.envs.adaptation.settings import ROLES, DomainSettings
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import require_labels
from seggym.reward_models.labelled_slices import PREPARATION_VERSION, normalised, regrid
from seggym.reward_models.slice_cache import cached_stack

# Which rules are about a cohort's classes; others have those of topology.
_RULES = {"acdc": "acdc", "camus": "camus", "echo": "camus"}
_FALLBACK = "topology"


@dataclass(frozen=True)
class Domain:
    """n images of one role.

    ``images`` are float32 (n, 1, H, W) in [0, 1]; ``masks`` uint8 (n, H, W), None where labels are not to be known;
    ``names``, ``patients`` and ``volumes`` are those of each image; ``spacing`` float32 (n, 2), the height and width of
    a pixel in mm, as the files state it.
    """

    images: Tensor
    masks: Tensor | None
    names: tuple[str, ...]
    patients: tuple[str, ...]
    volumes: tuple[str, ...]
    spacing: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """The masks; raises :class:`SeggymError` where they are not known."""
        if self.masks is None:
            raise SeggymError("the labels of the target's training part are not known here: see target_train_labels")
        return self.masks


@dataclass(frozen=True)
class DomainPair:
    """Domains by role, ``target_train`` without masks, the names of the classes and their rules of validity."""

    source_train: Domain
    source_val: Domain
    target_train: Domain
    target_val: Domain
    target_test: Domain
    class_names: tuple[str, ...]
    rules: ValidityRules


def open_domains(settings: DomainSettings) -> DomainPair:
    """The domains of ``settings``, with the labels of all roles but target_train.

    Raises :class:`SeggymError` for cohorts, frames, classes or fractions that leave a role without images.
    """
    plan = _plan(settings)
    domains = {role: _read(settings, plan, role, labels=role != "target_train") for role in ROLES}
    return DomainPair(**domains, class_names=plan.class_names, rules=_rules(settings, plan.class_names))


def open_role(settings: DomainSettings, role: str) -> tuple[Domain, tuple[str, ...]]:
    """The domain of one role, as :func:`open_domains` has it, and the names of the classes."""
    plan = _plan(settings)
    return _read(settings, plan, role, labels=role != "target_train"), plan.class_names


def target_train_labels(settings: DomainSettings) -> Tensor:
    """The labels of target_train, uint8 (n, H, W): privileged, for upper references and the oracles' rewards."""
    return _read(settings, _plan(settings), "target_train", labels=True).labels


def deal_patients(settings: DomainSettings) -> dict[str, tuple[str, ...]]:
    """The patients of each role; nobody is in two of them."""
    return dict(_plan(settings).patients)


# --- who is in which role ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Cohorts of source and target, patients of each role, and the classes that are kept."""

    source: Cohort
    target: Cohort
    patients: Mapping[str, tuple[str, ...]]
    class_names: tuple[str, ...]

    def cohort(self, role: str) -> Cohort:
        return self.source if role.startswith("source") else self.target


def _plan(settings: DomainSettings) -> _Plan:
    source = open_cohort(settings.cohort, settings.data_root, **settings.cohort_options)
    target = source
    if settings.target_cohort is not None:
        target = open_cohort(settings.target_cohort, settings.target_root, **settings.target_options)
    for cohort in (source, target):
        require_labels(cohort, "another cohort: adaptation is evaluated against them")
    patients = _deal_one(settings, source) if target is source else _deal_two(settings, source, target)
    empty = [role for role in ROLES if not patients[role]]
    if empty:
        raise SeggymError(
            f"fractions={list(settings.fractions)} leave nobody for {', '.join(empty)}: the cohorts have "
            f"{len(source.groups)} and {len(target.groups)} patients; choose other fractions or more patients"
        )
    return _Plan(source, target, patients, _class_names(settings, source, target))


def _deal_one(settings: DomainSettings, cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """All roles within one cohort; patients that it sets apart are the target's."""
    val, test = cohort.official_val, cohort.official_test
    shares = dict(zip(ROLES, settings.fractions, strict=True))
    if test:
        shares["target_test"] = 0.0
    if val:
        shares["target_val"] = 0.0
    rest = {patient: group for patient, group in cohort.groups.items() if patient not in val | test}
    dealt = _deal(rest, shares, settings.domain_seed)
    if test:
        dealt["target_test"] = tuple(sorted(test))
    if val:
        dealt["target_val"] = tuple(sorted(val))
    return dealt


def _deal_two(settings: DomainSettings, source: Cohort, target: Cohort) -> dict[str, tuple[str, ...]]:
    """The source's roles within one cohort, the target's within another; who is in both counts as one person."""
    shares = dict(zip(ROLES, settings.fractions, strict=True))
    # A cohort's name for a patient is its own: only cohorts of one family (a data set and its copy) share names.
    common = sorted(source.groups.keys() & target.groups.keys())
    sided = make_split({name: source.groups[name] for name in common}, (0.5, 0.5, 0.0), settings.domain_seed)
    ours = {name: group for name, group in source.groups.items() if name not in set(sided.val) | source.official_test}
    theirs = replace(
        target,
        groups={name: group for name, group in target.groups.items() if name not in sided.train},
        official_test=target.official_test - set(sided.train),
        official_val=target.official_val - set(sided.train),
    )
    first = _deal(ours, {role: shares[role] for role in ROLES[:2]}, settings.domain_seed)
    alone = replace(settings, fractions=[0.0, 0.0, *settings.fractions[2:]])
    return {**_deal_one(alone, theirs), **first}


def _deal(groups: Mapping[str, str], shares: Mapping[str, float], seed: int) -> dict[str, tuple[str, ...]]:
    """Deal the patients of ``groups`` to roles in proportion to their ``shares``, each group in proportion."""
    dealt: dict[str, tuple[str, ...]] = dict.fromkeys(shares, ())
    sides = [[role for role in shares if role.startswith(side) and shares[role] > 0] for side in ("source", "target")]
    weights = [sum(shares[role] for role in side) for side in sides]
    total = sum(weights)
    if not total:
        return dealt
    both = make_split(groups, (weights[0] / total, weights[1] / total, 0.0), seed)
    for side, weight, members in zip(sides, weights, (both.train, both.val), strict=True):
        if not side or not members:
            continue
        # Up to three roles to a side, dealt as train, val and test are.
        fractions = [shares[role] / weight for role in side] + [0.0] * (3 - len(side))
        split = make_split({patient: groups[patient] for patient in members}, fractions, seed)
        dealt |= dict(zip(side, (split.train, split.val, split.test)[: len(side)], strict=True))
    return dealt


def _class_names(settings: DomainSettings, source: Cohort, target: Cohort) -> tuple[str, ...]:
    if settings.classes is None:
        if source.class_names != target.class_names:
            raise SeggymError(
                f"{source.name} has the classes {', '.join(source.class_names)} and {target.name} "
                f"{', '.join(target.class_names)}: name those that both have as classes=[...]"
            )
        return source.class_names
    for cohort in (source, target):
        missing = [name for name in settings.classes if name not in cohort.class_names[1:]]
        if missing:
            raise SeggymError(
                f"classes names {', '.join(missing)}, expected some of {', '.join(cohort.class_names[1:])}, those of "
                f"{cohort.name}"
            )
    return (source.class_names[0], *settings.classes)


def _rules(settings: DomainSettings, class_names: Sequence[str]) -> ValidityRules:
    if settings.rules is not None:
        return load_rules(settings.rules, class_names)
    name = _RULES.get(settings.target_cohort or settings.cohort, _FALLBACK)
    assert name in PACKAGED
    try:
        return load_rules(name, class_names)
    except SeggymError:
        # Some of the classes that these rules are about were left out.
        return load_rules(_FALLBACK, class_names)


# --- their images -----------------------------------------------------------------------------------------------------


def _read(settings: DomainSettings, plan: _Plan, role: str, labels: bool) -> Domain:
    """The images of ``role``; nothing of a label is looked at unless ``labels`` asks for them."""
    cohort, chosen = plan.cohort(role), plan.patients[role]
    target = role.startswith("target")
    frames = settings.target_frames if target else settings.source_frames
    identity = {
        "adaptation": PREPARATION_VERSION,
        "cohort": cohort.name,
        "fingerprint": cohort.fingerprint,
        "classes": plan.class_names,
        "patients": chosen,
        "frames": frames and sorted(frames),
        "size": settings.size,
        "spacing": settings.spacing,
        "labels": labels,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    make = functools.partial(_prepare, cohort, chosen, frames, settings, plan.class_names, labels)
    domain = cached_stack(cohort, key, Domain, make) if cohort.fingerprint else make()
    shift = settings.shift if target else None
    return domain if shift is None else replace(domain, images=_shifted(domain, Shift.from_dict(shift)))


def _prepare(
    cohort: Cohort,
    patients: Sequence[str],
    frames: Sequence[str] | None,
    settings: DomainSettings,
    class_names: Sequence[str],
    labels: bool,
) -> Domain:
    # A label that is not to be known is not even checked.
    volumes: Iterable[Volume] = cohort.volumes(patients) if labels else _unchecked(cohort, patients)
    table = torch.zeros(cohort.num_classes, dtype=torch.uint8)
    for label, name in enumerate(class_names):
        table[cohort.class_names.index(name)] = label
    images, masks, spacing = [], [], []
    origin: list[tuple[str, str, str]] = []
    for volume in volumes:
        if frames is not None and not _wanted(cohort, volume, frames):
            continue
        images.append(regrid(normalised(volume.image), volume, settings.size, settings.spacing))
        if labels:
            masks.append(table[regrid(volume.label, volume, settings.size, settings.spacing).long()])
        depth = len(volume.image)
        spacing += [_pixel(volume, settings)] * depth
        origin += [(f"{volume.name}_slice_{index + 1:02d}", volume.patient, volume.name) for index in range(depth)]
    if not images:
        raise SeggymError(
            f"cohort {cohort.name} at {cohort.root} has no images of frames {', '.join(frames or ('any',))} of these "
            f"{len(patients)} patients; name other frames or mend the data"
        )
    names, owners, of = zip(*origin, strict=True)
    return Domain(torch.cat(images)[:, None], torch.cat(masks) if labels else None, names, owners, of, _table(spacing))


def _unchecked(cohort: Cohort, patients: Iterable[str]) -> Iterable[Volume]:
    for patient in sorted(patients):
        yield from cohort.read(patient)


def _wanted(cohort: Cohort, volume: Volume, frames: Sequence[str]) -> bool:
    """Whether ``frames`` names the frame of ``volume``, a part of it, or its cardiac phase."""
    own = {volume.frame, *volume.frame.split("_"), cohort.phases.get(volume.name, volume.frame)}
    return not own.isdisjoint(frames)


def _pixel(volume: Volume, settings: DomainSettings) -> tuple[float, float]:
    """Height and width of a pixel of the grid in mm."""
    if settings.spacing is not None:
        return settings.spacing, settings.spacing
    scale = max(volume.image.shape[1:]) / settings.size
    return volume.spacing[1] * scale, volume.spacing[2] * scale


def _table(rows: Sequence[tuple[float, float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def _shifted(domain: Domain, shift: Shift) -> Tensor:
    planes = [shift.apply(image[0].numpy(), name) for image, name in zip(domain.images, domain.names, strict=True)]
    return torch.from_numpy(np.stack(planes))[:, None]
