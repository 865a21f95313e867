"""A small two-stage network for instances in plain torch: what runs wherever torch does.

After Mask R-CNN (He et al., ICCV 2017): a backbone, proposals, and for each proposal a head for class and box and one
for the mask. Proposals have no anchors: each cell says whether it lies at the heart of an object, and how far the
object reaches from there (Tian et al., FCOS, ICCV 2019). Dropout lies where maskAL has it: before each linear layer of
the box head, before class and box, and twice in the mask head; a little of it at the end of the backbone is what makes
complete passes differ from those of the heads.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from seggym.errors import SeggymError
from seggym.reward_models.instances.geometry import pool_regions, suppress
from seggym.reward_models.unext import conv_block, group_norm

STRIDE = 4
"""Pixels per cell of the features that proposals and classes are read from; masks are read from cells of half that."""

BOX_BINS, MASK_BINS = 7, 14
# Cells that may become proposals, and the overlap above which the lesser one of two does not.
_CELLS, _OVERLAP = 96, 0.7
# What an object's reach is measured in, in cells, so that the network need not learn large numbers.
_REACH = 2.0


@dataclass(frozen=True)
class SmallOptions:
    """``size``: the side of the square that images are fitted into, a multiple of 16 pixels. Larger images are scaled
    down, smaller ones padded. ``width``: channels at a quarter of the resolution. ``dropout`` of the heads and
    ``backbone_dropout``; ``proposals`` per image."""

    size: int = 64
    width: int = 48
    dropout: float = 0.25
    backbone_dropout: float = 0.1
    proposals: int = 32

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 16:
            raise SeggymError(f"size={self.size} must be a multiple of 16 pixels, at least 32")
        if self.width < 8 or self.width % 8 or self.proposals < 1:
            raise SeggymError(
                f"width={self.width} and proposals={self.proposals}, expected a multiple of 8 and at least 1"
            )
        for name in ("dropout", "backbone_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise SeggymError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")


class Features(NamedTuple):
    """What the backbone sees: ``coarse`` (B, F, S/4, S/4) and ``fine`` (B, F/2, S/2, S/2)."""

    coarse: Tensor
    fine: Tensor


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(conv_block(width, width, "group"), conv_block(width, width, "group"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, h, w) to the same shape."""
        return x + self.blocks(x)


class Backbone(nn.Module):
    """Down to 1/16 of the resolution and back up to 1/4 and 1/2."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(_down(3, half), conv_block(half, half, "group"))
        self.quarter = nn.Sequential(_down(half, width), Residual(width))
        self.eighth = nn.Sequential(_down(width, 2 * width), Residual(2 * width))
        self.sixteenth = nn.Sequential(_down(2 * width, 2 * width), Residual(2 * width))
        self.merge = conv_block(2 * width, width, "group")
        self.coarse = conv_block(width, width, "group")
        self.lateral = nn.Conv2d(width, half, 1)
        self.fine = conv_block(half, half, "group")
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, images: Tensor) -> Features:
        """Map images (B, 3, S, S) to :class:`Features`."""
        half = self.stem(images * 4 - 2)
        quarter = self.quarter(half)
        eighth = self.eighth(quarter)
        deep = self.merge(eighth + _up(self.sixteenth(eighth)))
        coarse = self.dropout(self.coarse(quarter + _up(deep)))
        return Features(coarse, self.fine(half + _up(self.lateral(coarse))))


class SmallNetwork(nn.Module):
    """The network for ``classes`` classes without the background."""

    def __init__(self, classes: int, options: SmallOptions) -> None:
        super().__init__()
        self.options = options
        width, hidden = options.width, 128
        self.backbone = Backbone(width, options.backbone_dropout)
        self.proposal_block = conv_block(width, width, "group")
        self.proposal = nn.Conv2d(width, 5, 1)
        # Few cells are the heart of an object: begin by saying so (Lin et al., focal loss, ICCV 2017).
        self.proposal.bias = nn.Parameter(torch.tensor([-3.0, 0, 0, 0, 0]))

        def dropped(layer: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.Dropout(options.dropout), layer)

        self.box_head = nn.Sequential(
            dropped(nn.Linear(width * BOX_BINS**2, hidden)), nn.ReLU(), dropped(nn.Linear(hidden, hidden)), nn.ReLU()
        )
        self.classify, self.refine = dropped(nn.Linear(hidden, classes + 1)), dropped(nn.Linear(hidden, 4))
        half = width // 2
        self.mask_head = nn.Sequential(
            conv_block(half, 32, "group"),
            conv_block(32, 32, "group"),
            dropped(nn.ConvTranspose2d(32, 16, 2, 2)),
            nn.ReLU(),
            dropped(nn.Conv2d(16, 1, 1)),
        )
        side = options.size // STRIDE
        place = (torch.arange(side) + 0.5) * STRIDE
        y, x = torch.meshgrid(place, place, indexing="ij")
        self.register_buffer("centres", torch.stack([x, y], -1).flatten(0, 1), persistent=False)

    def reach(self, features: Features) -> tuple[Tensor, Tensor]:
        """Of every cell: logit (B, n) of lying at the heart of an object, and the box (B, n, 4) of that object."""
        raw = self.proposal(self.proposal_block(features.coarse)).flatten(2).transpose(1, 2)
        centres: Tensor = self.centres  # type: ignore[assignment]
        distance = raw[..., 1:].clamp(max=4).exp() * (_REACH * STRIDE)
        return raw[..., 0], torch.cat([centres - distance[..., :2], centres + distance[..., 2:]], -1)

    def propose(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The best of what :meth:`reach` found: boxes (B, R, 4), and which of them are there, bool (B, R)."""
        score, cells = logits.topk(min(_CELLS, logits.shape[1]), dim=1)
        boxes = boxes.gather(1, cells[:, :, None].expand(-1, -1, 4)).clamp(0, self.options.size)
        score = score.masked_fill(~suppress(boxes, score, _OVERLAP), -torch.inf)
        best, rows = score.topk(min(self.options.proposals, score.shape[1]), dim=1)
        return boxes.gather(1, rows[:, :, None].expand(-1, -1, 4)), best > -torch.inf

    def pool_boxes(self, features: Features, boxes: Tensor) -> Tensor:
        """What the box head sees of ``boxes`` (B, R, 4): (B, R, F * 49)."""
        return pool_regions(features.coarse, boxes, BOX_BINS, STRIDE).flatten(2)

    def judge(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (..., C + 1), background first, and box offsets (..., 4) of ``pooled`` (..., F * 49)."""
        hidden = self.box_head(pooled)
        return self.classify(hidden), self.refine(hidden)

    def pool_masks(self, features: Features, boxes: Tensor) -> Tensor:
        """What the mask head sees of ``boxes`` (B, n, 4): (B, n, F/2, 14, 14)."""
        return pool_regions(features.fine, boxes, MASK_BINS, STRIDE / 2)

    def outline(self, pooled: Tensor) -> Tensor:
        """Mask logits (n, 28, 28) of ``pooled`` (n, F/2, 14, 14)."""
        return self.mask_head(pooled)[:, 0]


def _down(inputs: int, outputs: int) -> nn.Sequential:
    """A 3 x 3 convolution that halves the resolution."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), group_norm(outputs), nn.ReLU(inplace=True))


def _up(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
