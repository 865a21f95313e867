"""How sure a network is of what it found, from passes of Monte Carlo dropout.

After maskAL (Blok et al., "Active learning with MaskAL reduces annotation effort for training Mask R-CNN on a broccoli
dataset with visually similar classes", Computers and Electronics in Agriculture 2022, arXiv:2112.06586), whose measure
goes back to Morrison et al. (CVPR 2019 workshops). Detections of all passes are grouped into *observations* of what
should be the same object, and the certainty of an observation is the product of three numbers in [0, 1]:

- semantic: 1 - H / ln K, H the entropy of the K class probabilities without the background, renormalised; its mean
  over the members. With one class there is nothing to confuse, and it is the mean probability of that class;
- spatial: the mean IoU of the members' masks with their consensus (the pixels that at least a quarter of them have)
  times the mean IoU of their boxes with the mean box;
- occurrence: members per pass, at most 1.

An image's certainty is the mean or the minimum over its observations. All images are computed at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seggym.errors import SeggymError
from seggym.reward_models.instances.geometry import PIXELS, box_ious, mask_ious
from seggym.reward_models.instances.segmenter import Detections

MODES = ("mean", "min")
# Share of the members of an observation that must have a pixel of its mask.
_CONSENSUS = 0.25
# Pixels of the masks of several images that are held at once.
_HELD = 1 << 27


@dataclass(frozen=True)
class Observations:
    """The observations of n images, up to m each, in the order of their first detection.

    ``there`` bool (n, m) says which exist; ``members`` int64 (n, m); ``semantic``, ``spatial`` and ``occurrence``
    float64 (n, m), 0 where there is none.
    """

    there: Tensor
    members: Tensor
    semantic: Tensor
    spatial: Tensor
    occurrence: Tensor

    @property
    def certainty(self) -> Tensor:
        """Semantic x spatial x occurrence, float64 (n, m)."""
        return self.semantic * self.spatial * self.occurrence


def image_certainty(observations: Observations, mode: str) -> Tensor:
    """Certainty of each image, float64 (n,) in [0, 1]: the ``mode`` ("mean" or "min") over its observations.

    NaN for an image without detections: what that means is for the sampling to say.
    """
    certainty, there = observations.certainty, observations.there
    if mode not in MODES:
        raise SeggymError(f"mode={mode!r} is unknown, expected one of {', '.join(MODES)}")
    if mode == "mean":
        return certainty.sum(1) / there.sum(1)  # 0 / 0 is NaN
    lowest = certainty.masked_fill(~there, torch.inf)
    lowest = torch.cat([lowest, lowest.new_full((len(lowest), 1), torch.inf)], 1).amin(1)
    return lowest.masked_fill(~there.any(1), torch.nan)


def observe(detections: Sequence[Detections], passes: int, threshold: float = 0.5) -> Observations:
    """Group the ``detections`` of each image, found in ``passes`` passes, by mask IoU above ``threshold``.

    A detection joins the first group whose first member it overlaps enough, else it founds one; passes come one after
    the other, in each the best detection first.
    """
    parts: list[Observations] = []
    start = 0
    while start < len(detections):
        shape = detections[start].masks.shape[-2:]
        most, stop = 1, start
        while stop < len(detections) and detections[stop].masks.shape[-2:] == shape:
            wider = max(most, len(detections[stop]))
            if stop > start and (stop + 1 - start) * wider * shape.numel() > _HELD:
                break
            most, stop = wider, stop + 1
        parts.append(_observe(detections[start:stop], passes, threshold))
        start = stop
    most = max((part.there.shape[1] for part in parts), default=0)
    padded = [
        [torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in vars(some).values()] for some in parts
    ]
    if not padded:
        none = torch.zeros(0, 0)
        return Observations(none.bool(), none.long(), none.double(), none.double(), none.double())
    return Observations(*(torch.cat(columns) for columns in zip(*padded, strict=True)))


def _observe(detections: Sequence[Detections], passes: int, threshold: float) -> Observations:
    """:func:`observe` of images of equal size, padded to as many detections as the fullest has."""
    masks = _padded([image.masks for image in detections])
    boxes = _padded([image.boxes for image in detections]).double()
    probabilities = _padded([image.class_probabilities for image in detections]).double()
    there = _padded([torch.ones_like(image.labels, dtype=torch.bool) for image in detections])
    group = _groups(mask_ious(masks, masks) > threshold, there)
    count = int(group.amax()) + 1 if group.numel() else 0
    # Which detection belongs to which observation, (n, m, k).
    member = (group[:, None] == torch.arange(count, device=group.device)[:, None]).double()
    members = member.sum(2)
    at_least_one = members.clamp_min(1)
    semantic = (member * _semantic(probabilities)[:, None]).sum(2) / at_least_one
    wanted = (_CONSENSUS * at_least_one)[..., None].float()
    # Votes are counted piece by piece: as numbers all masks of a large image would not fit.
    votes = [member.float() @ piece.float() >= wanted for piece in masks.flatten(2).split(PIXELS, 2)]
    consensus = torch.cat(votes, 2).unflatten(2, masks.shape[2:])
    mask_iou = (member * mask_ious(consensus, masks)).sum(2) / at_least_one
    mean_box = member @ boxes / at_least_one[..., None]
    box_iou = (member * box_ious(mean_box, boxes)).sum(2) / at_least_one
    occurrence = (members / passes).clamp(max=1)
    return Observations(members > 0, members.long(), semantic, mask_iou * box_iou, occurrence)


def _padded(parts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def _groups(alike: Tensor, there: Tensor) -> Tensor:
    """The group of each detection, int64 (n, k), -1 where there is none; ``alike`` bool (n, k, k), ``there`` (n, k).

    A group takes all that are alike to its first member and in no group before it, so groups are found one by one:
    the first detection that is left founds the next one.
    """
    group, number = torch.full(there.shape, -1, device=there.device), 0
    left = there.clone()
    while bool(left.any()):
        first = left.byte().argmax(1)
        joins = alike.gather(1, first[:, None, None].expand(-1, 1, alike.shape[2]))[:, 0] & left
        # An empty mask is not even like itself.
        joins |= torch.zeros_like(joins).scatter_(1, first[:, None], True) & left
        group[joins] = number
        left &= ~joins
        number += 1
    return group


def _semantic(probabilities: Tensor) -> Tensor:
    """Semantic certainty (n, k) of class probabilities (n, k, C + 1), the background first."""
    foreground = probabilities[..., 1:]
    classes = foreground.shape[-1]
    if classes == 1:
        return foreground[..., 0]
    shares = foreground / foreground.sum(-1, keepdim=True).clamp_min(1e-12)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum(-1)
    return (1 - entropy / torch.log(torch.tensor(float(classes), dtype=torch.float64))).clamp(0, 1)
