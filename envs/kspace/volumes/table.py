"""Which slices make up the episodes of a multi-slice environment."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from seggym.errors import SeggymError
from seggym.kspace.acquisition import SliceStack

ED, ES = "ED", "ES"


@dataclass(frozen=True)
class VolumeTable:
    """V episodes of at most Z slices, which are rows of a :class:`SliceStack`.

    members int64 (V, Z): rows in anatomical order, from the first slot on, -1 where there is none; frames int64 (V, Z):
    0 for the first volume of the episode, 1 for the second (end-systole of a pair); names and patients of the episodes.
    """

    members: torch.Tensor
    frames: torch.Tensor
    names: tuple[str, ...]
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def depths(self) -> torch.Tensor:
        """Slices of each episode, int64 (V,)."""
        return (self.members >= 0).sum(1)


def volumes_of(stack: SliceStack) -> dict[str, list[int]]:
    """The rows of every volume of ``stack``, in anatomical order."""
    volumes: dict[str, list[int]] = {}
    for row, name in enumerate(stack.volumes):
        volumes.setdefault(name, []).append(row)
    for rows in volumes.values():
        rows.sort(key=lambda row: stack.positions[row])
    return volumes


def pairs_of(stack: SliceStack, phases: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """(end-diastolic, end-systolic) volume of each patient; ``phases`` maps names of volumes to "ED" or "ES".

    Raises :class:`SeggymError` naming a patient without exactly one of each.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for volume, patient in dict(zip(stack.volumes, stack.patients, strict=True)).items():
        own = found.setdefault(patient, {ED: [], ES: []})
        if volume in phases:
            own[phases[volume]].append(volume)
    for patient, own in found.items():
        if [len(own[phase]) for phase in (ED, ES)] != [1, 1]:
            raise SeggymError(
                f"{patient} has {len(own[ED])} volumes at end-diastole and {len(own[ES])} at end-systole, expected one "
                "of each: the cohort must say which is which, as ACDC's Info.cfg does (layout=nifti); leave pairs out"
            )
    return {patient: (own[ED][0], own[ES][0]) for patient, own in found.items()}


def single_volumes(stack: SliceStack, max_slices: int) -> VolumeTable:
    """Every volume of ``stack`` is an episode."""
    return _table(stack, {name: [rows] for name, rows in volumes_of(stack).items()}, max_slices)


def paired_volumes(stack: SliceStack, max_slices: int, phases: Mapping[str, str]) -> VolumeTable:
    """Both cardiac phases of every patient are an episode; ``phases`` as in :func:`pairs_of`."""
    volumes = volumes_of(stack)
    pairs = {patient: [volumes[name] for name in pair] for patient, pair in pairs_of(stack, phases).items()}
    return _table(stack, pairs, max_slices)


def _table(stack: SliceStack, episodes: Mapping[str, list[list[int]]], max_slices: int) -> VolumeTable:
    deepest = max((len(rows), name) for name, parts in episodes.items() for rows in parts)
    if deepest[0] > max_slices:
        raise SeggymError(
            f"{deepest[1]} has {deepest[0]} slices and max_slices={max_slices}: set max_slices={deepest[0]} or more"
        )
    slots = max_slices * max(len(parts) for parts in episodes.values())
    members = torch.full((len(episodes), slots), -1)
    frames = torch.zeros_like(members)
    for number, parts in enumerate(episodes.values()):
        rows = [row for part in parts for row in part]
        members[number, : len(rows)] = torch.tensor(rows)
        frames[number, len(parts[0]) : len(rows)] = 1
    patients = tuple(stack.patients[parts[0][0]] for parts in episodes.values())
    return VolumeTable(members, frames, tuple(episodes), patients)
