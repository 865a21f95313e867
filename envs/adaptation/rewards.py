"""Rewards of a label map, as maps: for every pixel how right its label is, float32 (n, H, W) in [0, 1].

A learned one, a :class:`~seggym.reward_models.error_net.RewardMap`, knows images and label maps; the oracle of this
module knows the truth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seggym.errors import SeggymError
from seggym.reward_models.metrics import encode_truth, hard_overlap, overlap_quality

ORACLES = ("accuracy", "dice")


@dataclass(frozen=True)
class OracleReward:
    """The reward of who knows the ``truth``, integer (n, H, W), of the n images of an engine.

    ``kind`` is "accuracy" (1 where a pixel's label is right, else 0) or "dice" (the smoothed Dice of the image, mean
    over the classes present, at every one of its pixels; the share of background where no class is present).
    """

    truth: Tensor
    num_classes: int
    kind: str = "accuracy"

    def __post_init__(self) -> None:
        if self.kind not in ORACLES:
            raise SeggymError(f"the oracle's kind is {self.kind!r}, expected one of {', '.join(ORACLES)}")

    def of(self, samples: Tensor, masks: Tensor) -> Tensor:
        """Label maps integer (B, H, W) of the images ``samples`` int64 (B,): float32 (B, H, W)."""
        truth = self.truth[samples]
        if self.kind == "accuracy":
            return (masks == truth).float()
        terms = encode_truth(truth, self.num_classes)
        quality = overlap_quality(hard_overlap(masks, terms), truth[0].numel(), 0.0)
        background = (masks == 0).float().mean(dim=(1, 2))
        quality = torch.where(terms.present.any(1), quality, background)
        return quality[:, None, None].expand(masks.shape).contiguous()

    def to(self, device: torch.device | str) -> "OracleReward":
        """The same, with the truth on ``device``."""
        return OracleReward(self.truth.to(device), self.num_classes, self.kind)
