"""The full learner: a U-Net with dropout, trained anew for every episode and round, from masks or from scribbles.

Scribbles are learned as in DMPLS (Luo et al., MICCAI 2022): an auxiliary decoder sees the encoder's features through
dropout; both decoders learn the scribbles by partial cross-entropy, and both learn, by the Dice loss, a pseudo label:
the most probable class of a mixture of their predictions whose weight is drawn for every batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from seggym.reward_models.learners import UNLABELLED, ScoredSet
from seggym.reward_models.network_learner import NetworkLearner, NetworkOptions, turned
from seggym.reward_models.networks import UNet
from seggym.reward_models.unext import conv_block

# Dropout of the features that the auxiliary decoder sees.
_AUXILIARY_DROPOUT = 0.5
_SMOOTHING = 1e-5


class DropoutUNet(UNet):
    """The suite's U-Net with dropout in the encoder, and a second decoder where ``auxiliary``.

    ``dropout`` is the rate at the deepest level; each level above has half of it, as in WSL4MIS.
    """

    def __init__(
        self,
        num_outputs: int,
        widths: Sequence[int] = (16, 32, 64, 128),
        channels: int = 1,
        dropout: float = 0.5,
        auxiliary: bool = False,
    ) -> None:
        super().__init__(num_outputs, widths)
        self.stem = conv_block(channels, widths[0])
        deepest = len(widths) - 1
        self.dropouts = nn.ModuleList(nn.Dropout(dropout * 0.5 ** (deepest - level)) for level in range(len(widths)))
        self.second = UNet(num_outputs, widths) if auxiliary else None
        if self.second is not None:
            # Its encoder is the first one's.
            del self.second.stem, self.second.down

    def encode(self, x: Tensor) -> list[Tensor]:
        """Features of every level from full resolution down."""
        levels = [self.dropouts[0](self.stem(x))]
        for down, dropout in zip(self.down, list(self.dropouts)[1:], strict=True):
            levels.append(dropout(down(levels[-1])))
        return levels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (B, C, H, W) to (logits (B, K, H, W), what the head sees (B, F, H, W))."""
        return _decode(self, self.encode(x))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the decoder and of the auxiliary one."""
        assert self.second is not None
        levels = self.encode(x)
        dropped = [functional.dropout2d(level, _AUXILIARY_DROPOUT) for level in levels]
        return _decode(self, levels)[0], _decode(self.second, dropped)[0]


def _decode(network: UNet, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    x = levels[-1]
    for level in reversed(range(len(levels) - 1)):
        x = network.merge[level](torch.cat([levels[level], network.up[level](x)], dim=1))
    return network.head(x), x


class UNetLearner(NetworkLearner):
    """U-Nets of N episodes; ``scribbles`` says that annotations are partial."""

    def __init__(
        self,
        images: Tensor,
        scored: Mapping[str, ScoredSet],
        num_classes: int,
        num_envs: int,
        options: NetworkOptions,
        scribbles: bool = False,
    ) -> None:
        super().__init__(images, scored, num_classes, num_envs, options)
        self.scribbles = scribbles

    def build(self) -> nn.Module:
        """A fresh U-Net."""
        channels, options = self.images.shape[1], self.options
        return DropoutUNet(self.num_classes, options.widths, channels, options.dropout, auxiliary=self.scribbles)

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Half cross-entropy and half Dice loss; for scribbles see the module."""
        assert isinstance(network, DropoutUNet)
        images, labels = turned(images, targets, outside=UNLABELLED if self.scribbles else 0)
        images = images.contiguous(memory_format=torch.channels_last)
        if not self.scribbles:
            with self.reduced():
                logits = network(images)[0]
            logits = logits.float()
            return 0.5 * (functional.cross_entropy(logits, labels) + dice_loss(logits.softmax(1), labels))
        with self.reduced():
            both = network.both(images)
        pair = [logits.float() for logits in both]
        annotated = (labels != UNLABELLED).sum().clamp_min(1)
        # A batch may hold no annotated pixel once it is turned: a sum over none is 0, a mean would be no number.
        partial = [
            functional.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum") / annotated
            for logits in pair
        ]
        believed = [logits.softmax(1) for logits in pair]
        share = float(torch.rand(()))
        pseudo = (share * believed[0] + (1 - share) * believed[1]).detach().argmax(1)
        agreement = [dice_loss(probabilities, pseudo) for probabilities in believed]
        return 0.5 * (partial[0] + partial[1]) + 0.25 * (agreement[0] + agreement[1])

    def sibling(self, num_envs: int) -> "UNetLearner":
        """A learner of ``num_envs`` other episodes on the same images."""
        return UNetLearner(self.images, self._scored, self.num_classes, num_envs, self.options, self.scribbles)


def dice_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice over the whole batch, mean over classes: squares in the denominator (Milletari et al., 3DV 2016).

    ``probabilities`` (B, K, H, W), ``labels`` int64 (B, H, W).
    """
    truth = functional.one_hot(labels, probabilities.shape[1]).movedim(-1, 1).to(probabilities)
    axes = (0, 2, 3)
    shared = (probabilities * truth).sum(axes)
    sizes = probabilities.square().sum(axes) + truth.sum(axes)
    return 1 - ((2 * shared + _SMOOTHING) / (sizes + _SMOOTHING)).mean()
