"""From the keyword arguments of a multi-slice environment to its engine."""

from collections.abc import Mapping

from seggym.envs.kspace.sources import build_engine, load_cohort
from seggym.envs.kspace.volumes.engine import VolumeEngine
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.envs.kspace.volumes.table import VolumeTable, paired_volumes, single_volumes
from seggym.errors import SeggymError
from seggym.kspace.acquisition import SliceStack
from seggym.reward_models.function import LEFT_VENTRICLE


def build_volume_engine(settings: VolumeSettings, num_envs: int) -> VolumeEngine:
    """The engine that ``settings`` describe; slices, networks and their routing are those of the 2-D environment."""
    slices = build_engine(settings.slice_settings, num_envs * settings.slots)
    cohort, _ = load_cohort(settings)
    left_ventricle = None
    if settings.pair:
        if LEFT_VENTRICLE not in cohort.class_names:
            raise SeggymError(
                f"pair=true needs a class {LEFT_VENTRICLE!r}, cohort {cohort.name} has "
                f"{', '.join(cohort.class_names)}: set pair=false"
            )
        left_ventricle = cohort.class_names.index(LEFT_VENTRICLE)
    table = volume_table(settings, slices.stack, cohort.phases)
    return VolumeEngine(slices, settings, table, num_envs, left_ventricle)


def volume_table(settings: VolumeSettings, stack: SliceStack, phases: Mapping[str, str]) -> VolumeTable:
    """The episodes of ``settings`` over the slices of ``stack``."""
    if settings.pair:
        return paired_volumes(stack, settings.max_slices, phases)
    return single_volumes(stack, settings.max_slices)
