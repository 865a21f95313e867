"""How well a network segments held-out patients at several accelerations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from seggym.kspace import view_orders
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.keyed_random import key_of
from seggym.kspace.reconstruction.methods import Reconstruction
from seggym.reward_models.frozen import FrozenNetwork
from seggym.reward_models.metrics import (
    dice_per_class,
    encode_truth,
    most_probable,
    surface_distances,
    volume_dice,
)
from seggym.reward_models.statistics import bootstrap_interval
from seggym.reward_models.training_scans import simulate

ACCELERATIONS = (1, 2, 4, 8, 16)


def evaluate_network(
    network: nn.Module,
    stack: SliceStack,
    acquisition: Acquisition,
    class_names: Sequence[str],
    device: torch.device,
    accelerations: Sequence[int] = ACCELERATIONS,
    reconstruction: Reconstruction | None = None,
) -> dict[str, Any]:
    """Dice, HD95 and ASSD of every slice and volume of ``stack``, measured in plain order at each acceleration.

    ``reconstruction`` makes the images; None is zero-filled.

    Returns, per acceleration ("1" is fully sampled), ``slice`` and ``volume``: ``dice`` (mean over classes, then
    cases: [mean, low, high], 95 % over patients), ``dice_per_class``, ``hd95`` and ``assd`` (mm, mean over classes and
    cases where both sides are present), ``failures`` (share of classes that only one side has).
    """
    frozen = FrozenNetwork(network, device)
    labels = stack.labels
    return {
        str(acceleration): _scores(
            _segment(frozen, stack, acquisition, acceleration, reconstruction), labels, stack, class_names
        )
        for acceleration in accelerations
    }


def _segment(
    frozen: FrozenNetwork,
    stack: SliceStack,
    acquisition: Acquisition,
    acceleration: int,
    reconstruction: Reconstruction | None,
) -> torch.Tensor:
    views = acquisition.num_views
    acquired = np.zeros((1, views), bool)
    acquired[0, view_orders.plain_order(acquisition)[: round(views / acceleration)]] = True
    mask = torch.from_numpy(acquired).to(frozen.device)
    stack = stack.to(frozen.device)
    predicted = []
    for part in torch.arange(len(stack), device=frozen.device).split(32):
        keys = torch.tensor([key_of(f"eval:{stack.names[i]}:0") for i in part.tolist()], device=frozen.device)
        magnitude = simulate(stack, part, keys, mask.expand(len(part), -1), acquisition, reconstruction)
        predicted.append(most_probable(frozen(magnitude).probabilities).cpu())
    return torch.cat(predicted)


def _scores(predicted: torch.Tensor, labels: torch.Tensor, stack: SliceStack, names: Sequence[str]) -> dict[str, Any]:
    classes = len(names)
    per_slice = dice_per_class(predicted, encode_truth(labels, classes)).numpy()
    patients = np.array(stack.patients)
    volumes: dict[str, list[int]] = {}
    for index, volume in enumerate(stack.volumes):
        volumes.setdefault(volume, []).append(index)
    first = [chosen[0] for chosen in volumes.values()]
    per_volume = np.stack([volume_dice(predicted[c], labels[c], classes).numpy() for c in volumes.values()])
    surfaces = [
        surface_distances(predicted[c], labels[c], classes, stack.spacing[c[0]].tolist()) for c in volumes.values()
    ]
    flat = [
        surface_distances(predicted[i], labels[i], classes, stack.spacing[i, 1:].tolist()) for i in range(len(labels))
    ]
    return {
        "slice": _summary(per_slice, flat, patients, names),
        "volume": _summary(per_volume, surfaces, patients[first], names),
    }


def _summary(dice: np.ndarray, surfaces: list[Any], patients: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    present = ~np.isnan(dice)
    mean = np.where(present.any(1), np.nansum(dice, 1) / np.maximum(present.sum(1), 1), np.nan)
    hd95, assd, failed = (
        torch.stack([getattr(surface, part) for surface in surfaces]).double().numpy()
        for part in ("hd95", "assd", "failed")
    )
    # Every class that either side has either has a distance or is a failure.
    cases = np.isfinite(hd95).sum() + failed.sum()
    interval = bootstrap_interval(mean, patients.tolist())
    return {
        "dice": [interval.mean, interval.low, interval.high],
        "dice_per_class": {name: _mean(dice[:, k]) for k, name in enumerate(names[1:])},
        "hd95": _mean(hd95),
        "assd": _mean(assd),
        "failures": float(failed.sum() / cases) if cases else float("nan"),
    }


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
