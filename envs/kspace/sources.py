"""From the keyword arguments of an environment to its engine: data, networks and sampling weights."""

import warnings
from pathlib import Path

import torch

from seggym.cohorts.cohort import Cohort, open_cohort
from seggym.cohorts.splits import Split, split_cohort
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.expected import load_expected_dice
from seggym.envs.kspace.sampler import load_weights
from seggym.envs.kspace.segmentation import Segmenter
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.kspace.acquisition import SliceStack
from seggym.kspace.reconstruction.methods import Reconstruction, make_reconstruction, parse_reconstruction
from seggym.reward_models.checkpoints import RewardModel, open_reward_model, require_classes, require_labels
from seggym.reward_models.frozen import load_frozen, resolve_device
from seggym.reward_models.precision import resolve_precision
from seggym.reward_models.slices import prepared_slices


def build_engine(settings: KSpaceSettings, num_envs: int) -> KSpaceEngine:
    """The engine that ``settings`` describe; data and networks are shared within the process."""
    cohort, split = load_cohort(settings)
    stack = prepared_slices(cohort, choose_patients(cohort, split, settings), settings.scan)
    device = resolve_device(settings.device)
    networks, routing = load_networks(settings, cohort, stack, device)
    if settings.reconstruction_network is not None and settings.role != "train":
        open_reward_model(settings.reconstruction_network).require_unseen("full", stack.patients, cohort.name)
    _, options = parse_reconstruction(settings.reconstruction)
    if options.get("sensitivities") == "known" and stack.hybrid is not None:
        raise SeggymError(
            f"reconstruction={settings.reconstruction!r} knows simulated coils only, the k-space of {stack.names[0]} "
            "was measured: set sensitivities to estimated"
        )
    return KSpaceEngine(
        stack,
        settings,
        num_envs,
        networks=networks,
        routing=routing,
        weights=_weights(settings.train_sampler_filename, cohort, stack),
        reconstruction=load_reconstruction(settings, device),
        expected=load_expected_dice(settings, cohort.class_names, stack.patients, device),
        device=device,
        dtype=torch.float64 if settings.precision == "fp64" else torch.float32,
    )


def load_cohort(settings: KSpaceSettings) -> tuple[Cohort, Split]:
    """The cohort and who is in which role."""
    cohort = open_cohort(settings.cohort, settings.data_root, **settings.cohort_options)
    return cohort, split_cohort(cohort, settings.split)


def choose_patients(cohort: Cohort, split: Split, settings: KSpaceSettings) -> list[str]:
    """The patients in the role of ``settings``; raises :class:`SeggymError` where there are none."""
    patients = cohort.patients if settings.role == "all" else list(getattr(split, settings.role))
    if not patients:
        origin = "the cohort's own split" if settings.split is None else f"split file {settings.split}"
        raise SeggymError(
            f"{origin} has no patient with role={settings.role} among the {len(cohort.patients)} of {cohort.root}; "
            "choose another role or another split"
        )
    return patients


def load_networks(
    settings: KSpaceSettings, cohort: Cohort, stack: SliceStack, device: torch.device
) -> tuple[list[Segmenter], torch.Tensor]:
    """Networks of the reward model and, per slice, the index of one that never saw the slice's patient."""
    if not settings.needs_network:
        return [], torch.zeros(len(stack), dtype=torch.int64)
    require_labels(cohort, "lambda_seg=0, lambda_recon=1 and observe nothing of a network")
    assert settings.reward_model is not None
    model = open_reward_model(settings.reward_model)
    warn_of_foreign_cohort(model, cohort)
    warn_of_foreign_trajectory(model, settings)
    members = [model.network_for(patient, cohort.name) for patient in stack.patients]
    names = sorted(set(members))
    for name in names:
        require_fit(model, name, cohort, settings)
    # One precision for all: a patient's fold must not decide how his scans are scored.
    precision = resolve_precision(settings.precision, device, *(model.path(name) for name in names))
    networks: list[Segmenter] = [
        load_frozen(model.path(name), device, precision, max_batch=settings.micro_batch) for name in names
    ]
    return networks, torch.tensor([names.index(member) for member in members])


def warn_of_foreign_cohort(model: RewardModel, cohort: Cohort) -> None:
    """Warn where ``model`` was trained on another cohort: allowed, so that an environment can be tried at once."""
    if model.cohort != cohort.name:
        warnings.warn(
            f"the reward model in {model.folder} was trained on cohort {model.cohort} and scores cohort {cohort.name} "
            "here, so its Dice says little; train one on these data with "
            f"`bash train_reward_model.sh cohort={cohort.name}`",
            stacklevel=2,
        )


def warn_of_foreign_trajectory(model: RewardModel, settings: KSpaceSettings) -> None:
    """Warn where ``model`` was trained on another trajectory: aliasing looks different, and so it sees little."""
    trained = model.acquisition.get("trajectory", "lines")
    if model.acquisition and trained != settings.scan.trajectory:
        warnings.warn(
            f"the reward model in {model.folder} was trained on scans of trajectory={trained}, this environment "
            f"measures {settings.scan.trajectory}, whose artefacts it never saw: its Dice is lower than it need be; "
            "train one with `bash train_reward_model.sh cohort.acquisition.trajectory=...`",
            stacklevel=2,
        )


def require_fit(model: RewardModel, name: str, cohort: Cohort, settings: KSpaceSettings) -> None:
    """Raise :class:`SeggymError` unless network ``name`` knows the cohort's classes and the image size."""
    folder, card, crop = model.path(name), model.cards[name], settings.scan.crop
    require_classes(card, cohort.num_classes, folder)
    if card.crop != crop:
        scan = {key: model.acquisition[key] for key in ("matrix", "crop") if key in model.acquisition}
        raise SeggymError(
            f"the network in {folder} was trained on {card.crop} x {card.crop} images, this environment shows {crop} x "
            f"{crop}: pass acquisition={scan or {'crop': card.crop}}, or train a network with the acquisition of this "
            "environment"
        )


def load_reconstruction(settings: KSpaceSettings, device: torch.device) -> Reconstruction | None:
    """The reconstruction of ``settings``; None for zero-filled images, which the scanner adds up line by line."""
    if settings.reconstruction_network is None:
        method, options = parse_reconstruction(settings.reconstruction)
        return None if method == "zero_filled" else make_reconstruction(method, options, settings.scan)
    model = open_reward_model(settings.reconstruction_network)
    network = load_frozen(model.full, device, settings.precision, task="reconstruction", max_batch=settings.micro_batch)
    return network.reconstruct


def _weights(filename: str | None, cohort: Cohort, stack: SliceStack) -> torch.Tensor | None:
    return None if filename is None else load_weights(Path(filename), cohort, stack)
