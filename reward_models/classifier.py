"""The learner of a classification: a small convolutional network, trained anew for every episode and round."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from seggym.reward_models.network_learner import NetworkLearner, NetworkOptions
from seggym.reward_models.unext import conv_block

CLASSIFIER_OPTIONS = NetworkOptions(iterations=150, batch=16, widths=(8, 16, 32), dropout=0.25)
"""Seconds per retraining for images of 32 x 32 pixels."""


class SmallCNN(nn.Module):
    """Convolution blocks of ``widths`` channels with pooling between them, their maxima, dropout and a linear layer."""

    def __init__(self, num_outputs: int, widths: tuple[int, ...], channels: int, dropout: float) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        self.blocks = nn.ModuleList(conv_block(before, width) for before, width in zip(inputs, widths, strict=True))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (B, C, H, W) to (logits (B, K), what the last layer sees (B, F, 1))."""
        for number, block in enumerate(self.blocks):
            x = block(functional.max_pool2d(x, 2) if number else x)
        # Maxima: what tells shapes apart is a corner somewhere, which a mean over the image would drown.
        x = self.dropout(x.amax((2, 3)))
        return self.head(x), x[:, :, None]


class ClassifierLearner(NetworkLearner):
    """Classifiers of N episodes; a target is int64 (1,), the class of the image."""

    def build(self) -> nn.Module:
        """A fresh network."""
        options = self.options
        return SmallCNN(self.num_classes, tuple(options.widths), self.images.shape[1], options.dropout)

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of images that are mirrored at random and changed in contrast."""
        mirrored = torch.where(torch.rand(len(images), 1, 1, 1).to(images) < 0.5, images.flip(-1), images)
        contrast = 1 + 0.2 * (torch.rand(len(images), 1, 1, 1).to(images) * 2 - 1)
        with self.reduced():
            logits = network((mirrored * contrast).contiguous(memory_format=torch.channels_last))[0]
        return functional.cross_entropy(logits.float(), targets)


def classifier_options(**given: object) -> NetworkOptions:
    """:data:`CLASSIFIER_OPTIONS` with those ``given``."""
    return replace(CLASSIFIER_OPTIONS, **given)  # type: ignore[arg-type]
