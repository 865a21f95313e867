"""Wrong masks made from right ones, in batches: what a reward net learns errors from.

All randomness comes from a ``torch.Generator`` on the CPU, so that the same seed gives the same masks on any device.
Masks are uint8 (n, H, W), 0 = background. RL4Seg (Judge et al., MICCAI 2024) swaps masks, perturbs weights, contrast
and noise; the others are ours.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def elastic(masks: Tensor, amplitude: float, cells: int, generator: torch.Generator) -> Tensor:
    """Masks moved by a smooth random field of ``amplitude`` pixels (standard deviation of each component).

    The field is drawn at ``cells`` x ``cells`` points and interpolated; with one cell a mask is shifted as a whole.
    """
    count, height, width = masks.shape
    field = torch.randn(count, 2, cells, cells, generator=generator) * amplitude
    field = functional.interpolate(field, (height, width), mode="bilinear", align_corners=True).to(masks.device)
    rows = torch.arange(height, device=masks.device)[:, None]
    columns = torch.arange(width, device=masks.device)
    y = (rows + field[:, 0]).round().long().clamp(0, height - 1)
    x = (columns + field[:, 1]).round().long().clamp(0, width - 1)
    return masks.flatten(1).gather(1, (y * width + x).flatten(1)).view_as(masks)


def morphological(masks: Tensor, num_classes: int, radius: int, generator: torch.Generator) -> Tensor:
    """One random foreground class of each mask dilated or eroded by ``radius`` pixels (3 x 3 squares).

    Where it recedes, the neighbouring class takes its place (of several the highest).
    """
    count = len(masks)
    chosen = torch.randint(1, num_classes, (count, 1, 1), generator=generator).to(masks.device, masks.dtype)
    grows = (torch.rand(count, 1, 1, generator=generator) < 0.5).to(masks.device)
    for _ in range(radius):
        here = masks == chosen
        reached = _largest_around(here.float()) > 0
        outside = _largest_around(torch.where(here, 0, masks + 1).float()).to(masks.dtype)
        receded = torch.where(here & (outside > 0), outside - 1, masks)
        masks = torch.where(grows, torch.where(reached, chosen, masks), receded)
    return masks


def patches(masks: Tensor, num_classes: int, share: float, cells: int, generator: torch.Generator) -> Tensor:
    """Masks in which blobs that cover a ``share`` of the image have a random class: holes, islands and bridges."""
    count, height, width = masks.shape
    field = torch.randn(count, 1, cells, cells, generator=generator)
    field = functional.interpolate(field, (height, width), mode="bicubic", align_corners=True)[:, 0].flatten(1)
    threshold = field.quantile(1 - share, dim=1, keepdim=True)
    label = torch.randint(0, num_classes, (count, 1, 1), generator=generator).to(masks.device, masks.dtype)
    return torch.where((field > threshold).view_as(masks).to(masks.device), label, masks)


def missing(masks: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Masks that lack one random foreground class: background takes its place."""
    chosen = torch.randint(1, num_classes, (len(masks), 1, 1), generator=generator).to(masks.device, masks.dtype)
    return torch.where(masks == chosen, 0, masks)


def partners(patients: Sequence[str], generator: torch.Generator) -> Tensor:
    """For each image a random one of another patient, int64 (n,); -1 where there is no other patient."""
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    owner = torch.tensor([numbers[patient] for patient in patients])
    chance = torch.rand(len(owner), len(owner), generator=generator)
    chance[owner[:, None] == owner] = -1
    best = chance.max(1)
    return torch.where(best.values < 0, -1, best.indices)


def sample(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Masks drawn pixel by pixel from softmax(``logits`` / ``temperature``), (n, K, H, W) to uint8 (n, H, W)."""
    cumulative = (logits.float() / temperature).softmax(1).cumsum(1)[:, :-1]
    drawn = torch.rand(len(logits), 1, *logits.shape[2:], generator=generator).to(logits.device)
    return (drawn >= cumulative).sum(1).to(torch.uint8)


def perturbed(network: nn.Module, deviation: float, generator: torch.Generator) -> nn.Module:
    """A copy of ``network`` with normal noise of standard ``deviation`` on every parameter."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * deviation
            parameter.add_(noise.to(parameter))
    return copied


def contrast(images: Tensor, factor: float) -> Tensor:
    """Images (n, 1, H, W) in [0, 1] with ``factor`` times their contrast about the mean of each, clipped to [0, 1]."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def noisy(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Images in [0, 1] with normal noise of standard ``deviation``, clipped to [0, 1]."""
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + deviation * noise).clamp(0, 1)


def _largest_around(values: Tensor) -> Tensor:
    """The maximum over the 3 x 3 neighbourhood of each pixel, (n, H, W)."""
    return functional.max_pool2d(values[:, None], 3, 1, 1)[:, 0]
