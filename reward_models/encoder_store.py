"""Encoders on disk: trained when they are first needed and kept by content, published by a command, or packaged."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from seggym.cohorts.cohort import Cohort, seggym_home
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import (
    CARD,
    ENCODING,
    PACKAGED,
    ModelCard,
    load_network,
    open_reward_model,
    save_network,
)
from seggym.reward_models.encoders import Encoder, EncoderRecipe, train_encoder

# To be raised whenever the same recipe and images give another encoder.
_TRAINING_VERSION = 1
# For the message: 250 iterations at 96 x 96 took 58 s of one core.
_MINUTES = "one or two minutes"
_BATCH = 64


def fit_encoder(
    folder: Path, images: Tensor, cohort: Cohort, patients: Iterable[str], spacing: float | None, recipe: EncoderRecipe
) -> Encoder:
    """Train an encoder on ``images`` float32 (n, C, H, W), those of ``patients``, and save it in ``folder``."""
    encoder = train_encoder(images, recipe)
    card = ModelCard(
        architecture="encoder",
        options={"channels": images.shape[1]},
        num_outputs=recipe.features,
        class_names=[],
        task=ENCODING,
        crop=images.shape[-1],
        patients=sorted(patients),
        cohort=cohort.name,
        fingerprint=cohort.fingerprint or "none",
        metrics={"recipe": asdict(recipe), "spacing": spacing, "images": len(images)},
    )
    save_network(folder, encoder, card)
    return encoder


def open_encoder(path_or_name: str, cohort: Cohort, unseen: Iterable[str]) -> Encoder:
    """The encoder in a folder, published as ``$SEGGYM_HOME/reward_models/<name>``, or packaged.

    Raises :class:`SeggymError` where it was trained on one of the patients ``unseen`` of ``cohort``.
    """
    published = seggym_home() / "reward_models" / path_or_name
    if path_or_name not in PACKAGED and not any(
        (folder / CARD).is_file() for folder in (published, Path(path_or_name))
    ):
        raise SeggymError(
            f"no encoder at {path_or_name} and none published as {published}; train one with `python "
            f"agents/train_encoder.py cohort={cohort.name} name={Path(path_or_name).name}`, which takes {_MINUTES}, or "
            "leave encoder out: one is then trained and kept"
        )
    model = open_reward_model(path_or_name)
    task = model.cards["full"].task
    if task != ENCODING:
        raise SeggymError(f"{model.full / CARD} has task {task}, expected {ENCODING}; choose an encoder")
    model.require_unseen("full", unseen, cohort.name)
    return _loaded(model.full)


def kept_encoder(
    cohort: Cohort,
    patients: Iterable[str],
    size: int,
    spacing: float | None,
    images: Callable[[], Tensor],
    recipe: EncoderRecipe | None = None,
) -> Encoder:
    """The encoder of just these patients and settings, from ``$SEGGYM_HOME/cache/encoders``; trained the first time.

    ``images`` makes the float32 (n, C, H, W) to train on. Where the folder cannot be written, the encoder is trained
    for the process alone.
    """
    recipe, chosen = recipe or EncoderRecipe(), sorted(patients)
    identity: dict[str, Any] = {
        "version": _TRAINING_VERSION,
        "cohort": cohort.name,
        "fingerprint": cohort.fingerprint,
        "patients": chosen,
        "size": size,
        "spacing": spacing,
        "recipe": asdict(recipe),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    folder = seggym_home() / "cache" / "encoders" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # One of several processes trains it, the others wait.
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / CARD).is_file():
                print(
                    f"training an encoder on {len(chosen)} patients of {cohort.name}, without labels ({_MINUTES} on "
                    f"one core); it is kept in {folder}",
                    file=sys.stderr,
                    flush=True,
                )
                fit_encoder(folder, images(), cohort, chosen, spacing, recipe)
            return _loaded(folder)
    except (OSError, NotImplementedError):
        return train_encoder(images(), recipe)


def encode(encoder: Encoder, images: Tensor) -> Tensor:
    """Features (n, D, H / 4, W / 4) of images (n, C, H, W), some at a time."""
    if images.shape[1] != encoder.channels:
        raise SeggymError(
            f"the encoder was trained on images of {encoder.channels} channels, these have {images.shape[1]}: leave "
            "encoder out, so that one is trained"
        )
    with torch.inference_mode():
        features = torch.cat([encoder(part) for part in images.split(_BATCH)])
    return features.clone()


def _loaded(folder: Path) -> Encoder:
    encoder, card = load_network(folder)
    if not isinstance(encoder, Encoder):
        raise SeggymError(f"{folder / CARD} has architecture {card.architecture}, expected encoder; train one")
    return encoder.requires_grad_(False)
