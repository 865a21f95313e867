"""UNeXt: a small segmentation network with convolutions at high and shifted MLPs at low resolution.

After J. M. J. Valanarasu and V. M. Patel, "UNeXt: MLP-based Rapid Medical Image Segmentation Network", MICCAI 2022.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from seggym.errors import SeggymError

GROUPS = 5  # channel groups of a shift; group g moves by g - 2 pixels


def conv_block(inputs: int, outputs: int, norm: str = "batch") -> nn.Sequential:
    """3 x 3 convolution, ``norm`` (batch norm, or "group"), ReLU; the size stays."""
    layer = group_norm(outputs) if norm == "group" else nn.BatchNorm2d(outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), layer, nn.ReLU(inplace=True))


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm (Wu and He, ECCV 2018) of at most eight groups, of two channels or more where there are any."""
    groups = math.gcd(8, channels)
    return nn.GroupNorm(groups // 2 if groups == channels and groups > 1 else groups, channels)


def check_widths(architecture: str, widths: Any, at_least: int, at_most: int) -> None:
    """Raise :class:`SeggymError` unless ``widths`` is a list of ``at_least`` to ``at_most`` positive integers."""
    valid = isinstance(widths, Sequence) and at_least <= len(widths) <= at_most
    if not valid or not all(isinstance(width, int) and width > 0 for width in widths):
        count = f"{at_least}" if at_least == at_most else f"{at_least} to {at_most}"
        raise SeggymError(f"option widths of {architecture} is {widths!r}, expected {count} positive integers")


def shift(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Move the channel groups of x (B, C, H, W) by -2 to 2 pixels along ``dim``; zeros come in at the border."""
    reach, size = GROUPS // 2, x.shape[dim]
    padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
    groups = functional.pad(x, padding).tensor_split(GROUPS, dim=1)
    return torch.cat([group.narrow(dim, 2 * reach - index, size) for index, group in enumerate(groups)], dim=1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ShiftedMLP(nn.Module):
    """Tokenized MLP block: shift along height, MLP, depthwise convolution, GELU, shift along width, MLP; residual.

    A token is a pixel, so the linear layers are 1 x 1 convolutions and the map keeps its shape (B, width, H, W).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in = ChannelNorm(width)
        self.first = nn.Conv2d(width, width, 1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.second = nn.Conv2d(width, width, 1)
        self.norm_out = ChannelNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(shift(self.norm_in(x), dim=2))
        y = functional.gelu(self.depthwise(y))
        return self.norm_out(x + self.second(shift(y, dim=3)))


class Tokenize(nn.Sequential):
    """Overlapping patches of half the resolution as tokens of ``outputs`` channels, and one shifted MLP on them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), ChannelNorm(outputs), ShiftedMLP(outputs))


class UNeXt(nn.Module):
    """Three convolutional and two tokenized stages; the decoder upsamples bilinearly and adds the skips.

    ``widths`` are the channels of the five stages, at 1/2 to 1/32 of the resolution.
    """

    def __init__(self, num_outputs: int, widths: Sequence[int] = (16, 32, 128, 160, 256)) -> None:
        super().__init__()
        check_widths("unext", widths, at_least=5, at_most=5)
        self.num_features = widths[4]
        inputs = (1, *widths)
        self.encoder = nn.ModuleList(
            nn.Sequential(conv_block(inputs[stage], inputs[stage + 1]), nn.MaxPool2d(2)) for stage in range(3)
        )
        self.encoder.extend(Tokenize(inputs[stage], inputs[stage + 1]) for stage in (3, 4))
        self.decoder = nn.ModuleList(conv_block(widths[stage], widths[max(stage - 1, 0)]) for stage in range(5))
        # Tokens are mixed again after the two deepest additions, at 1/16 and 1/8.
        self.mixers = nn.ModuleDict({"3": ShiftedMLP(widths[3]), "2": ShiftedMLP(widths[2])})
        self.head = nn.Conv2d(widths[0], num_outputs, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x (B, 1, H, W) to (logits (B, K, H, W), features of the deepest stage (B, F, H/32, W/32))."""
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        bottleneck = skips.pop()
        for level in (3, 2, 1, 0):
            x = upsample(self.decoder[level + 1](x)) + skips[level]
            if str(level) in self.mixers:
                x = self.mixers[str(level)](x)
        return self.head(upsample(self.decoder[0](x))), bottleneck


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Twice the resolution, bilinearly."""
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
