"""Uncertainty of dense predictions: a number per pixel, and its mean per image."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# Images at a time, fixed so that the result does not depend on how many there are.
CHUNK = 32


def in_chunks(values: Callable[[np.ndarray], Tensor], indices: np.ndarray) -> Tensor:
    """``values(indices)`` computed a few samples at a time: probabilities of a whole pool need gigabytes."""
    return torch.cat([values(indices[start : start + CHUNK]) for start in range(0, len(indices), CHUNK)])


def image_mean(pixels: Tensor) -> Tensor:
    """Mean of (..., h, w) over the image, float64 (...); a sum would favour large images."""
    return pixels.double().mean((-2, -1))


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy over classes in nats: (..., h, w) of (..., classes, h, w)."""
    return torch.special.entr(probabilities).sum(-3)


def least_confidence(probabilities: Tensor) -> Tensor:
    """One minus the largest probability: (..., h, w) of (..., classes, h, w)."""
    return 1 - probabilities.amax(-3)


def margin(probabilities: Tensor) -> Tensor:
    """One minus the difference of the two largest probabilities: (..., h, w) of (..., classes, h, w)."""
    first, second = probabilities.topk(2, dim=-3).values.unbind(-3)
    return 1 - (first - second)


def mutual_information(members: Tensor) -> Tensor:
    """Entropy of the mean minus mean entropy: (n, h, w) of (M, n, classes, h, w)."""
    return entropy(members.mean(0)) - entropy(members).mean(0)


def variation_ratio(members: Tensor) -> Tensor:
    """Share of members that do not vote for the most frequent class: (n, h, w) of (M, n, classes, h, w)."""
    votes = torch.nn.functional.one_hot(members.argmax(2), members.shape[2]).sum(0)
    return 1 - votes.amax(-1) / len(members)
