"""Instances as maps of class probabilities, for whatever works on segmentations pixel by pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from seggym.reward_models.instances.segmenter import Detections, InstanceTarget


def probability_map(found: Detections, size: int) -> Tensor:
    """Class probabilities float32 (C + 1, size, size): in each pixel those of the best-scored detection there.

    Where there is none, it is background without any doubt. The image is resized to a square by its nearest pixels.
    """
    masks = _square(found.masks, size)
    score = torch.where(masks, found.scores[:, None, None], -1.0)
    nothing = score.new_full((1, size, size), 0.0)
    best = torch.cat([nothing, score]).argmax(0)
    background = functional.one_hot(torch.zeros(1, dtype=torch.int64), found.class_probabilities.shape[1])
    rows = torch.cat([background.to(found.class_probabilities), found.class_probabilities])
    return rows[best].permute(2, 0, 1).float()


def label_map(target: InstanceTarget, size: int) -> Tensor:
    """The class of each pixel, uint8 (size, size), 0 for none; of overlapping objects the smallest is on top."""
    masks = _square(target.masks, size)
    found = torch.zeros(size, size, dtype=torch.uint8, device=masks.device)
    for row in target.masks.flatten(1).sum(1).argsort(descending=True, stable=True).tolist():
        found[masks[row]] = int(target.labels[row])
    return found


def thumbnails(images: Sequence[Tensor], size: int) -> Tensor:
    """``images`` (3, H, W) of any sizes as squares, float32 (n, 3, size, size)."""
    if not len(images):
        return torch.zeros(0, 3, size, size)
    return torch.cat(
        [
            functional.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)
            for image in images
        ]
    )


def _square(masks: Tensor, size: int) -> Tensor:
    """``masks`` bool (k, H, W) as bool (k, size, size)."""
    if masks.shape[-2:] == (size, size) or not len(masks):
        return masks if len(masks) else masks.new_zeros(0, size, size)
    return functional.interpolate(masks[:, None].to(torch.uint8), (size, size), mode="nearest-exact")[:, 0] > 0
