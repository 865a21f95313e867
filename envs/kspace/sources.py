"""From the keyword arguments of an environment to its engine: data, networks and sampling weights."""

from pathlib import Path

import torch

from seggym.cohorts.cohort import Cohort, open_cohort
from seggym.cohorts.splits import Split, split_cohort
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.reward import Segmenter
from seggym.envs.kspace.sampler import load_weights
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.kspace.acquisition import SliceStack
from seggym.reward_models.checkpoints import open_reward_model, require_classes
from seggym.reward_models.frozen import load_frozen, resolve_device
from seggym.reward_models.slices import prepared_slices


def build_engine(settings: KSpaceSettings, num_envs: int) -> KSpaceEngine:
    """The engine that ``settings`` describe; data and networks are shared within the process."""
    cohort, split = load_cohort(settings)
    patients = cohort.patients if settings.role == "all" else getattr(split, settings.role)
    stack = prepared_slices(cohort, patients, settings.scan)
    device = resolve_device(settings.device)
    networks, routing = load_networks(settings, cohort, stack, device)
    return KSpaceEngine(
        stack,
        settings,
        num_envs,
        networks=networks,
        routing=routing,
        weights=_weights(settings.train_sampler_filename, cohort, stack),
        reconstructor=load_reconstructor(settings, device),
        device=device,
        dtype=torch.float64 if settings.precision == "fp64" else torch.float32,
    )


def load_cohort(settings: KSpaceSettings) -> tuple[Cohort, Split]:
    """The cohort and who is in which role."""
    cohort = open_cohort(settings.cohort, settings.data_root, **settings.cohort_options)
    return cohort, split_cohort(cohort, settings.split)


def load_networks(
    settings: KSpaceSettings, cohort: Cohort, stack: SliceStack, device: torch.device
) -> tuple[list[Segmenter], torch.Tensor]:
    """Networks of the reward model and, per slice, the index of one that never saw the slice's patient."""
    if not settings.needs_network:
        return [], torch.zeros(len(stack), dtype=torch.int64)
    assert settings.reward_model is not None
    model = open_reward_model(settings.reward_model)
    members = [model.network_for(patient) for patient in stack.patients]
    names = sorted(set(members))
    networks: list[Segmenter] = []
    for name in names:
        folder, card = model.path(name), model.cards[name]
        require_classes(card, cohort.num_classes, folder)
        if card.crop != settings.scan.crop:
            raise SeggymError(
                f"the network in {folder} was trained on {card.crop} x {card.crop} images, this environment shows "
                f"{settings.scan.crop} x {settings.scan.crop}: train one with the same acquisition, or set "
                "acquisition.crop"
            )
        networks.append(load_frozen(folder, device, settings.precision))
    return networks, torch.tensor([names.index(member) for member in members])


def load_reconstructor(settings: KSpaceSettings, device: torch.device):
    """The image-to-image network of ``settings.reconstructor``, or None for zero-filled images."""
    if settings.reconstructor is None:
        return None
    return load_frozen(settings.reconstructor, device, settings.precision, task="reconstruction").reconstruct


def _weights(filename: str | None, cohort: Cohort, stack: SliceStack) -> torch.Tensor | None:
    return None if filename is None else load_weights(Path(filename), cohort, stack)
