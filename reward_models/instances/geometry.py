"""Boxes and masks of many objects at once: overlaps, offsets between boxes, suppression, pooling and pasting.

Boxes are (x0, y0, x1, y1); see :mod:`seggym.reward_models.instances.segmenter` for the coordinates.
"""

import torch
from torch import Tensor
from torch.nn import functional

# Offsets of sizes are logarithms; no refinement makes a box more than this many times larger.
_LARGEST_STEP = 4.0
# The variances by which box offsets are scaled (Girshick, Fast R-CNN; Detectron2's BBOX_REG_WEIGHTS).
_OFFSET_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Pixels whose masks are multiplied at a time.
PIXELS = 1 << 16
# Pixels of masks that are pasted at a time.
_PASTED = 1 << 23


def box_areas(boxes: Tensor) -> Tensor:
    """Areas (...) of ``boxes`` (..., 4); 0 for those turned inside out."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def box_ious(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union (..., n, m) of ``first`` (..., n, 4) and ``second`` (..., m, 4); 0 for empty boxes."""
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = box_areas(first)[..., :, None] + box_areas(second)[..., None, :] - shared
    return shared / union.clamp_min(1e-9)


def mask_ious(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union float64 (..., n, m) of masks bool (..., n, H, W) and (..., m, H, W); 0 for empty ones.

    Pixels are counted exactly.
    """
    one, two = first.flatten(-2), second.flatten(-2)
    shared = torch.zeros(*one.shape[:-1], two.shape[-2], dtype=torch.float64, device=one.device)
    # Pieces of 2^16 pixels: their counts are exact in float32, and so is the sum in float64.
    for start in range(0, one.shape[-1], PIXELS):
        piece = slice(start, start + PIXELS)
        shared += one[..., piece].float() @ two[..., piece].float().transpose(-1, -2)
    union = one.sum(-1)[..., :, None] + two.sum(-1)[..., None, :] - shared
    return shared / union.clamp_min(1)


def mask_boxes(masks: Tensor) -> Tensor:
    """The smallest boxes float32 (..., 4) around ``masks`` bool (..., H, W); zeros for empty ones."""
    columns, rows = masks.any(-2), masks.any(-1)
    parts = []
    for line in (columns, rows):
        size = line.shape[-1]
        place = torch.arange(size, device=masks.device)
        parts.append((torch.where(line, place, size).amin(-1), torch.where(line, place + 1, 0).amax(-1)))
    (left, right), (top, bottom) = parts
    boxes = torch.stack([left, top, right, bottom], -1).float()
    return boxes * masks.flatten(-2).any(-1, keepdim=True)


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets (..., 4) that :func:`decode_boxes` needs to make ``boxes`` of ``anchors`` (..., 4)."""
    sizes, anchor_sizes = ((part[..., 2:] - part[..., :2]).clamp_min(1e-3) for part in (boxes, anchors))
    centres, anchor_centres = ((part[..., 2:] + part[..., :2]) / 2 for part in (boxes, anchors))
    offsets = torch.cat([(centres - anchor_centres) / anchor_sizes, (sizes / anchor_sizes).log()], -1)
    return offsets * offsets.new_tensor(_OFFSET_WEIGHTS)


def decode_boxes(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) that lie at ``offsets`` (..., 4) from ``anchors`` (..., 4) (Girshick et al., CVPR 2014)."""
    offsets = offsets / offsets.new_tensor(_OFFSET_WEIGHTS)
    sizes = anchors[..., 2:] - anchors[..., :2]
    centres = (anchors[..., 2:] + anchors[..., :2]) / 2 + offsets[..., :2] * sizes
    sizes = sizes * offsets[..., 2:].clamp(max=torch.tensor(_LARGEST_STEP).log().item()).exp()
    return torch.cat([centres - sizes / 2, centres + sizes / 2], -1)


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression of many sets at once: which of ``boxes`` (B, n, 4) stay, bool (B, n).

    A box goes where one of a higher score (the earlier one of equals) stays and their IoU is above ``threshold``.
    Scores (B, n) of minus infinity are no boxes.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    ordered = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    over = box_ious(ordered, ordered) > threshold
    stay = scores.gather(1, order) > -torch.inf
    for place in range(int(stay.sum(1).amax()) if len(stay) else 0):
        later = over[:, place] & stay[:, place : place + 1]
        later[:, : place + 1] = False
        stay &= ~later
    return torch.zeros_like(stay).scatter_(1, order, stay)


def pool_regions(features: Tensor, boxes: Tensor, size: int, stride: float) -> Tensor:
    """RoIAlign (He et al., Mask R-CNN, ICCV 2017): what ``features`` (B, F, h, w) hold within ``boxes`` (B, n, 4).

    A box is cut into ``size`` x ``size`` bins, and each is the bilinear sample at its centre: (B, n, F, size, size).
    ``stride`` is the pixels of the image per cell of the features. Beyond the border the last cell goes on.
    """
    count, regions = boxes.shape[:2]
    height, width = features.shape[-2:]
    centres = (torch.arange(size, device=boxes.device) + 0.5) / size
    low, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    x = (low[..., :1] + extent[..., :1] * centres) * (2 / (stride * width)) - 1
    y = (low[..., 1:] + extent[..., 1:] * centres) * (2 / (stride * height)) - 1
    shape = (count, regions, size, size)
    grid = torch.stack([x[:, :, None, :].expand(shape), y[:, :, :, None].expand(shape)], -1)
    found = functional.grid_sample(
        features, grid.view(count, regions * size, size, 2).to(features), padding_mode="border", align_corners=False
    )
    return found.view(count, features.shape[1], regions, size, size).transpose(1, 2)


def crop_masks(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What :func:`pool_regions` samples of ``masks`` bool (n, H, W) in ``boxes`` (n, 4): float32 (n, size, size)."""
    return pool_regions(masks[:, None].float(), boxes[:, None], size, 1.0)[:, 0, 0]


def paste_masks(patches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Logits ``patches`` (n, m, m) of what lies in ``boxes`` (n, 4), as masks bool (n, height, width).

    A pixel belongs to a mask where the bilinear sample at its centre is above 0 and within the box.
    """
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    step = max(1, _PASTED // (height * width))
    for start in range(0, len(boxes), step):
        rows = slice(start, start + step)
        masks[rows] = _paste(patches[rows], boxes[rows], height, width)
    return masks


def _paste(patches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3)
    x = (torch.arange(width, device=boxes.device) + 0.5 - boxes[:, :1]) / sizes[:, :1]
    y = (torch.arange(height, device=boxes.device) + 0.5 - boxes[:, 1:2]) / sizes[:, 1:]
    shape = (len(boxes), height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1) * 2 - 1
    values = functional.grid_sample(patches[:, None], grid.to(patches), padding_mode="border", align_corners=False)[
        :, 0
    ]
    inside = ((x >= 0) & (x <= 1))[:, None, :] & ((y >= 0) & (y <= 1))[:, :, None]
    return (values > 0) & inside
