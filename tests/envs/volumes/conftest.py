"""Engines on four made-up volumes of two patients."""

import dataclasses

import pytest
import torch
from volume_episodes import ALL_PARTS, DEPTHS, PHASES, SCAN

from seggym.envs.kspace.volumes.engine import VolumeEngine
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.envs.kspace.volumes.table import paired_volumes, single_volumes


@pytest.fixture(scope="session")
def stack(make_stack):
    """The synthetic slices as four volumes of two patients; one slice has no label."""
    members = [
        (patient, f"{patient}_{frame}", z)
        for patient, depths in DEPTHS.items()
        for frame, depth in zip(("frame01", "frame09"), depths, strict=True)
        for z in range(depth)
    ]
    patients, volumes, positions = zip(*members, strict=True)
    settings = VolumeSettings(cohort="acdc", reward_model="stub", acquisition=SCAN)
    made = make_stack(settings.scan, len(members))
    spacing = torch.tensor([10.0, 1.5, 1.5]).repeat(len(members), 1)
    return dataclasses.replace(made, patients=patients, volumes=volumes, positions=positions, spacing=spacing)


@pytest.fixture(scope="session")
def make_volumes(make_engine, stack):
    """``make_volumes(num_envs, network=, **settings)``: an engine on those volumes."""

    def make(num_envs=1, network=None, **options):
        chosen = {"slices": "shared", "max_slices": 4, "budget": 5, "observation": ALL_PARTS, **options}
        settings = VolumeSettings(cohort="acdc", reward_model="stub", acquisition=SCAN, **chosen)
        scans = make_engine(num_envs * settings.slots, network=network, stack=stack, **vars(settings.slice_settings))
        if settings.pair:
            table = paired_volumes(stack, settings.max_slices, PHASES)
        else:
            table = single_volumes(stack, settings.max_slices)
        return VolumeEngine(scans, settings, table, num_envs, left_ventricle=3)

    return make
