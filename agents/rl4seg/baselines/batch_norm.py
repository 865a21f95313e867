"""Adaptation through batch norm, for a batch-norm twin of the source network: AdaBN and TENT.

The networks of RL4Seg have group norm, which has no statistics to adapt; these two need a network of their own, trained
on the source in the same way.
"""

import copy

import torch
from torch import Tensor, nn

from seggym.reward_models.seeding import seeded


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """The layers that are adapted."""
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


@torch.no_grad()
def adabn(network: nn.Module, images: Tensor, batch: int) -> nn.Module:
    """AdaBN (Li et al., 2016): a copy whose statistics are those of ``images`` (n, 1, H, W), its weights unchanged.

    Batches of ``batch`` images are averaged with equal weight, as ``momentum=None`` does.
    """
    adapted = copy.deepcopy(network)
    layers = batch_norms(adapted)
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    adapted.train()
    for part in _whole_batches(images, batch):
        adapted(part)
    for layer, before in zip(layers, batch_norms(network), strict=True):
        layer.momentum = before.momentum
    return adapted.eval()


def tent(network: nn.Module, images: Tensor, batch: int, iterations: int, rate: float, seed: int) -> nn.Module:
    """TENT (Wang et al., ICLR 2021): a copy whose batch-norm scales and offsets minimise the entropy of predictions.

    As there: statistics are those of the batch while it adapts, Adam on the affine parameters alone. ``iterations``
    batches of random target images, no labels. Afterwards the statistics are those of all of ``images`` (AdaBN), so
    that a prediction does not depend on what it is batched with.
    """
    adapted = copy.deepcopy(network).requires_grad_(False).train()
    affine = [parameter.requires_grad_(True) for layer in batch_norms(adapted) for parameter in layer.parameters()]
    optimizer = torch.optim.Adam(affine, rate)
    with seeded(seed):
        for _ in range(iterations):
            chosen = torch.randperm(len(images))[:batch].to(images.device)
            logits = adapted(images[chosen])[0]
            entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
            optimizer.zero_grad(set_to_none=True)
            entropy.backward()
            optimizer.step()
    return adabn(adapted, images, batch).requires_grad_(False)


def _whole_batches(images: Tensor, batch: int) -> list[Tensor]:
    """Batches of equal size; what is left over would weigh as much as a whole one, so it is left out."""
    parts = list(images.split(batch))
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) < batch else parts
