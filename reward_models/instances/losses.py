"""What the small network is taught: hearts of objects, boxes, classes and masks, for a whole batch at once."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from seggym.reward_models.instances.geometry import box_areas, box_ious, crop_masks, encode_boxes
from seggym.reward_models.instances.small import MASK_BINS, STRIDE, Features, SmallNetwork

# The heart of an object: this part of its extent on either side of the centre, and at least so many pixels.
_HEART, _LEAST_HEART = 0.2, 0.75 * STRIDE
# A proposal shows an object above this overlap (Mask R-CNN).
_SHOWN = 0.5
# Objects per image whose masks are learned from one batch, and cells that are made proposals of in training.
_MASKS, _CELLS = 6, 24
# How far the boxes of the annotation are moved, in parts of their size, to be proposals as well.
_JITTER = 0.15


class Batch(NamedTuple):
    """Images (B, 3, S, S); of up to G >= 1 objects each ``boxes`` (B, G, 4), ``labels`` (B, G), 0 for none, and
    ``masks`` bool (B, G, S, S)."""

    images: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor


def total_loss(network: SmallNetwork, batch: Batch) -> Tensor:
    """The sum of the losses of proposals, classes, boxes and masks."""
    features = network.backbone(batch.images)
    logits, reached = network.reach(features)
    loss = _proposal_loss(network, logits, reached, batch)
    proposals, objects, overlap = _training_proposals(logits.detach(), reached.detach(), batch)
    shown = overlap >= _SHOWN
    truth = batch.boxes.gather(1, objects[:, :, None].expand(-1, -1, 4))
    labels = batch.labels.gather(1, objects) * shown
    scores, offsets = network.judge(network.pool_boxes(features, proposals))
    loss = loss + functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
    error = functional.smooth_l1_loss(offsets, encode_boxes(truth, proposals), reduction="none").sum(-1)
    loss = loss + (error * shown).sum() / shown.numel()
    return loss + _mask_loss(network, features, proposals, objects, shown, batch)


def _proposal_loss(network: SmallNetwork, logits: Tensor, reached: Tensor, batch: Batch) -> Tensor:
    """Focal loss of the hearts, and generalised IoU (Rezatofighi et al., CVPR 2019) of what they reach."""
    centres: Tensor = network.centres  # type: ignore[assignment]
    there = batch.labels > 0
    middle, extent = (batch.boxes[..., 2:] + batch.boxes[..., :2]) / 2, batch.boxes[..., 2:] - batch.boxes[..., :2]
    away = (centres[:, None] - middle[:, None]).abs()  # (B, cells, G, 2)
    inside = (away <= (_HEART * extent).clamp_min(_LEAST_HEART)[:, None]).all(-1) & there[:, None]
    inside &= (away <= extent[:, None] / 2).all(-1) | (extent[:, None] < 2 * STRIDE).all(-1)
    # Of several objects the smallest: it has the fewest cells.
    area = torch.where(inside, box_areas(batch.boxes)[:, None], torch.inf)
    smallest, owner = area.min(2)
    heart = smallest < torch.inf
    count = heart.sum().clamp_min(1)
    truth = batch.boxes.gather(1, owner[:, :, None].expand(-1, -1, 4))
    return (_focal(logits, heart) + ((1 - _generalised_iou(reached, truth)) * heart).sum()) / count


def _focal(logits: Tensor, positive: Tensor) -> Tensor:
    """Sum of the focal loss with gamma = 2 and alpha = 0.25."""
    error = functional.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
    missed = torch.where(positive, 1 - logits.sigmoid(), logits.sigmoid())
    return (torch.where(positive, 0.25, 0.75) * missed.square() * error).sum()


def _generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Of pairs of boxes (..., 4): (...) in [-1, 1]."""
    (low, high), (other_low, other_high) = first.split(2, -1), second.split(2, -1)
    shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp_min(0).prod(-1)
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1).clamp_min(1e-6)
    union = (box_areas(first) + box_areas(second) - shared).clamp_min(1e-6)
    return shared / union - (hull - union) / hull


def _training_proposals(logits: Tensor, reached: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, R, 4) of the best cells and, moved a little, of the annotation; the object int64 (B, R) that each
    shows most of, and their IoU (B, R)."""
    size = batch.images.shape[-1]
    cells = logits.topk(min(_CELLS, logits.shape[1]), dim=1).indices
    found = reached.gather(1, cells[:, :, None].expand(-1, -1, 4))
    extent = (batch.boxes[..., 2:] - batch.boxes[..., :2]).repeat(1, 1, 2)
    moved = batch.boxes + extent * (torch.rand_like(batch.boxes) * 2 - 1) * _JITTER
    proposals = torch.cat([found, moved], 1).clamp(0, size)
    overlap = box_ious(proposals, batch.boxes) * (batch.labels > 0)[:, None]
    best, objects = overlap.max(2)
    return proposals, objects, best


def _mask_loss(
    network: SmallNetwork,
    features: Features,
    proposals: Tensor,
    objects: Tensor,
    shown: Tensor,
    batch: Batch,
) -> Tensor:
    """Cross-entropy of the pixels of a few proposals that show an object."""
    draw = torch.rand(shown.shape, device=shown.device) * shown
    chance, rows = draw.topk(min(_MASKS, draw.shape[1]), dim=1)
    boxes = proposals.gather(1, rows[:, :, None].expand(-1, -1, 4))
    image, place = (chance > 0).nonzero().unbind(1)
    if not len(image):
        return features.fine.sum() * 0
    pooled = network.pool_masks(features, boxes)[image, place]
    masks = batch.masks[image, objects.gather(1, rows)[image, place]]
    truth = crop_masks(masks, boxes[image, place], 2 * MASK_BINS) > 0.5
    return functional.binary_cross_entropy_with_logits(network.outline(pooled), truth.float())
