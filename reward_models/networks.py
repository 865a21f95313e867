"""Segmentation and reconstruction networks, chosen by a registry key."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from seggym.errors import SeggymError
from seggym.reward_models.encoders import Encoder
from seggym.reward_models.unext import UNeXt, check_widths, conv_block
from seggym.reward_models.unrolled import Unrolled


class UNet(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015) with normalised and padded convolutions.

    ``widths`` are the channels of the levels from full resolution down; each level halves the resolution.
    The level at full resolution has one convolution instead of two on the way down and on the way up, because there a
    convolution costs most time for the fewest weights. The default has five levels, so that the deepest one sees 138
    pixels, more than the image; at 128 x 128 it takes no longer than four levels of 16 to 128 channels.
    ``norm`` is "batch" or "group": group norm has no statistics that drift and is the same in training and evaluation,
    batch norm folds into the convolutions of a frozen network. Images have ``in_channels`` channels.
    """

    def __init__(
        self,
        num_outputs: int,
        widths: Sequence[int] = (16, 24, 48, 96, 160),
        norm: str = "batch",
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        check_widths("unet", widths, at_least=2, at_most=5)
        if norm not in ("batch", "group"):
            raise SeggymError(f"option norm of unet is {norm!r}, expected 'batch' or 'group'")
        if not isinstance(in_channels, int) or in_channels < 1:
            raise SeggymError(f"option in_channels of unet is {in_channels!r}, expected a positive integer")
        # What build_network needs to make another one of its kind.
        self.options = {"widths": list(widths), "norm": norm, "in_channels": in_channels}
        self.num_features = widths[-1]
        self.stem = conv_block(in_channels, widths[0], norm)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), conv_block(above, width, norm), conv_block(width, width, norm))
            for above, width in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, width, 2, stride=2) for width, below in itertools.pairwise(widths)
        )
        self.merge = nn.ModuleList(
            conv_block(2 * width, width, norm)
            if level == 0
            else nn.Sequential(conv_block(2 * width, width, norm), conv_block(width, width, norm))
            for level, width in enumerate(widths[:-1])
        )
        self.head = nn.Conv2d(widths[0], num_outputs, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x (B, in_channels, H, W) to (logits (B, K, H, W), features of the deepest level (B, F, h, w))."""
        skips = [self.stem(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        bottleneck = x = skips.pop()
        for level in reversed(range(len(skips))):
            x = self.merge[level](torch.cat([skips[level], self.up[level](x)], dim=1))
        return self.head(x), bottleneck


class UNetPlusPlus(nn.Module):
    """U-Net++ (Zhou et al., DLMIA 2018) from the blocks of MONAI's ``BasicUNetPlusPlus``, without deep supervision.

    ``widths`` are the channels of the five levels and of the last node.
    """

    def __init__(self, num_outputs: int, widths: Sequence[int] = (16, 16, 32, 64, 128, 16)) -> None:
        # Imported here, because MONAI takes 2 s and only this network needs it.
        from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

        super().__init__()
        check_widths("unetpp", widths, at_least=6, at_most=6)
        self.num_features = widths[4]
        self.nodes = BasicUNetPlusPlus(
            spatial_dims=2,
            in_channels=1,
            out_channels=num_outputs,
            features=tuple(widths),
            norm=("batch", {"affine": True}),
            bias=False,
        )
        # Heads of deep supervision: they would never receive a gradient, which distributed training refuses.
        for level in (1, 2, 3):
            delattr(self.nodes, f"final_conv_0_{level}")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map x (B, 1, H, W) to (logits (B, K, H, W), features of the deepest encoder node (B, F, H/16, W/16))."""
        # MONAI's forward keeps the encoder to itself, so the grid is walked here: rows[i] holds nodes x_i_0, x_i_1, ...
        rows: list[list[torch.Tensor]] = []
        for level in range(5):
            x = getattr(self.nodes, f"conv_{level}_0")(x)
            rows.append([x])
            for column in range(1, level + 1):
                row = rows[level - column]
                row.append(
                    getattr(self.nodes, f"upcat_{level - column}_{column}")(
                        rows[level - column + 1][column - 1], torch.cat(row, dim=1)
                    )
                )
        return self.nodes.final_conv_0_4(rows[0][4]), rows[4][0]


# Image to image: logits of a segmentation, or the reconstruction of the zero-filled image.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "unetpp": UNetPlusPlus, "unext": UNeXt}
# Lines to image.
RECONSTRUCTORS: dict[str, Callable[..., nn.Module]] = {"unrolled": Unrolled}
# Image to features of its positions, learned without labels.
ENCODERS: dict[str, Callable[..., nn.Module]] = {"encoder": Encoder}


def build_network(architecture: str, num_outputs: int, **options: Any) -> nn.Module:
    """Build the network ``architecture`` with ``num_outputs`` output channels.

    Those of :data:`ARCHITECTURES` map float (B, 1, H, W) to (logits (B, num_outputs, H, W), bottleneck features
    (B, F, h, w)); their attribute ``num_features`` is F. H and W are multiples of 16 (``unext``: of 32). Those of
    :data:`RECONSTRUCTORS` map lines to images and those of :data:`ENCODERS` images to features, as their docstrings
    say. Raises :class:`SeggymError` for an unknown
    architecture, option or value.
    """
    known_constructors = {**ARCHITECTURES, **RECONSTRUCTORS, **ENCODERS}
    if architecture not in known_constructors:
        raise SeggymError(
            f"architecture {architecture!r} is unknown, expected one of {', '.join(sorted(known_constructors))}"
        )
    if not isinstance(num_outputs, int) or num_outputs < 1:
        raise SeggymError(f"num_outputs of {architecture} is {num_outputs!r}, expected a positive integer")
    constructor = known_constructors[architecture]
    known = [name for name in inspect.signature(constructor).parameters if name != "num_outputs"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise SeggymError(f"{architecture} has no option {', '.join(unknown)}; its options are {', '.join(known)}")
    return constructor(num_outputs, **options)
