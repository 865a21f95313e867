"""A small convolutional encoder that learns without labels: dense features at a quarter of the resolution.

Two views of an image, one of them turned, scaled and shifted, should have the same features where they show the same
place (invariance), and features should vary over places and differ from each other: VICReg (Bardes et al., ICLR 2022)
applied to single positions, as in VICRegL (Bardes et al., NeurIPS 2022). A linear map of the features must also restore
the undisturbed pixels beneath, so that detail is kept which invariance alone would drop.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seggym.reward_models.seeding import seeded

STRIDE = 4


class Encoder(nn.Module):
    """Images float (B, C, H, W) in [0, 1] to ``num_outputs`` features of each position, a quarter of the resolution.

    Dilated convolutions at a quarter of the resolution see 140 pixels around a position.
    """

    def __init__(self, num_outputs: int, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.num_features, self.channels = num_outputs, channels
        self.stem = nn.Sequential(
            _convolution(channels, 16, stride=2), _convolution(16, width, stride=2), _convolution(width, width)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(width, width, dilation), _convolution(width, width, dilation))
            for dilation in (1, 2, 4)
        )
        self.head = nn.Conv2d((1 + len(self.blocks)) * width, num_outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to (B, num_outputs, H / 4, W / 4)."""
        levels = [self.stem(images)]
        for block in self.blocks:
            levels.append(levels[-1] + block(levels[-1]))
        return self.head(torch.cat(levels, 1))


def _convolution(inputs: int, outputs: int, dilation: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@dataclass(frozen=True)
class EncoderRecipe:
    """How an encoder is trained: Adam with one cosine cycle; ``features`` per position, ``seed`` of everything."""

    features: int = 32
    iterations: int = 250
    batch: int = 24
    learning_rate: float = 2e-3
    seed: int = 0


def train_encoder(images: Tensor, recipe: EncoderRecipe) -> Encoder:
    """An encoder of ``images`` float32 (n, C, H, W) in [0, 1], trained on nothing but them; in evaluation mode."""
    with seeded(recipe.seed, images.device):
        encoder = Encoder(recipe.features, images.shape[1])
        expand = nn.Sequential(
            nn.Conv2d(recipe.features, 128, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 1)
        )
        restore = nn.Conv2d(recipe.features, images.shape[1] * STRIDE**2, 1)
        learned = nn.ModuleList([encoder, expand, restore]).to(images.device).train()
        optimizer = torch.optim.Adam(learned.parameters(), recipe.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.iterations)
        for _ in range(recipe.iterations):
            clean = images[torch.randint(len(images), (recipe.batch,))]
            loss = _loss(clean, encoder, expand, restore)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return encoder.eval().requires_grad_(False)


def _loss(clean: Tensor, encoder: nn.Module, expand: nn.Module, restore: nn.Module) -> Tensor:
    turn = _random_turns(clean)
    grid = functional.affine_grid(turn, list(clean.shape), align_corners=False)
    turned = functional.grid_sample(clean, grid, align_corners=False)
    one, other = (encoder(_disturbed(view)) for view in (clean, turned))
    # Where a position of the turned view lies in the other one.
    coarse = functional.affine_grid(turn, list(one.shape), align_corners=False)
    inside = (coarse.abs() < 1 - 2 / one.shape[-1]).all(-1).flatten()
    seen = functional.grid_sample(expand(one), coarse, align_corners=False)
    pair = [view.permute(0, 2, 3, 1).flatten(0, 2)[inside] for view in (seen, expand(other))]
    patches = functional.pixel_unshuffle(clean, STRIDE)
    return vicreg(*pair) + 10 * functional.mse_loss(restore(one), patches) / patches.var()


def vicreg(one: Tensor, other: Tensor) -> Tensor:
    """Invariance, variance and covariance (Bardes et al., eq. 6) of pairs of features (n, D), weights 25, 25, 1."""
    loss = 25 * functional.mse_loss(one, other)
    for view in (one, other):
        centred = view - view.mean(0)
        loss = loss + 12.5 * functional.relu(1 - (centred.var(0) + 1e-4).sqrt()).mean()
        covariance = centred.T @ centred / (len(view) - 1)
        loss = loss + (covariance.square().sum() - covariance.diagonal().square().sum()) / view.shape[1]
    return loss


def _random_turns(images: Tensor) -> Tensor:
    """Affine maps (B, 2, 3): up to 25 degrees, scale 0.8 to 1.25, shift of up to a tenth of the width."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * math.radians(25)
    scale = torch.exp((torch.rand(count) * 2 - 1) * math.log(1.25))
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    shift = (torch.rand(count, 2) * 2 - 1) * 0.2
    turn = torch.stack([torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)], 1)
    return turn.to(images)


def _disturbed(images: Tensor) -> Tensor:
    """Contrast, brightness, gamma and noise changed at random, per image."""
    shape = (len(images), 1, 1, 1)

    def between(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(shape)).to(images)

    changed = images.clamp_min(1e-3) ** torch.exp(between(-0.4, 0.4)) * between(0.7, 1.3) + between(-0.1, 0.1)
    return changed + between(0, 0.08) * torch.randn(images.shape).to(images)
