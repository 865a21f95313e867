"""Confidence of a segmentation from several sources, on one footing: 1 - uncertainty, P(label of a pixel is correct).

Maximum softmax (Hendrycks and Gimpel, ICLR 2017), Monte Carlo dropout (Gal and Ghahramani, ICML 2016), deep ensembles
(Lakshminarayanan et al., NeurIPS 2017), test-time augmentation (Wang et al., Neurocomputing 2019) and the reward map of
an error net (RL4Seg, Judge et al., MICCAI 2024). Each gets one temperature, fitted in the same way on the same
validation images, and is scored on foreground united with prediction by :func:`evaluate_uncertainty`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from seggym.errors import SeggymError
from seggym.reward_models import distortions
from seggym.reward_models.calibration import confidence_logit, fit_temperature, score_pixels, scored_region
from seggym.reward_models.error_net import RewardMap
from seggym.reward_models.networks import UNet
from seggym.reward_models.reward_pairs import policy_logits
from seggym.reward_models.seeding import seeded

# Changes of contrast, and shifts as shares of the image, of test-time augmentation.
_FACTORS = (0.75, 0.9, 1.1, 1.25)
_SHIFTS = ((0.06, 0.0), (-0.06, 0.0), (0.0, 0.06), (0.0, -0.06))


class Confidence(NamedTuple):
    """Label maps uint8 (n, H, W) and the confidence in each label, float32 (n, H, W)."""

    masks: Tensor
    values: Tensor


def of_probabilities(probabilities: Tensor, masks: Tensor | None = None) -> Confidence:
    """The probability of each label of ``masks``; by default of the most probable ones of (n, K, H, W)."""
    chosen = probabilities.argmax(1) if masks is None else masks.long()
    return Confidence(chosen.to(torch.uint8), probabilities.gather(1, chosen[:, None])[:, 0])


def softmax(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 (n, K, H, W): their maximum is the confidence of maximum softmax."""
    return policy_logits(network, images).softmax(1)


def ensemble(networks: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Mean probabilities of networks that were trained apart."""
    return torch.stack([softmax(network, images) for network in networks]).mean(0)


def mc_dropout(network: UNet, images: Tensor, passes: int = 20, rate: float = 0.3, seed: int = 0) -> Tensor:
    """Mean probabilities of ``passes`` with :func:`dropping`; meant for a network that was trained with it."""
    with dropping(network, rate, seed):
        return torch.stack([softmax(network, images) for _ in range(passes)]).mean(0)


@contextmanager
def dropping(network: UNet, rate: float, seed: int | None = None) -> Iterator[None]:
    """Dropout in the encoder of ``network``, ``rate`` at the deepest level and half as much with every level above.

    It is active in evaluation mode too, so one mechanism serves training and Monte Carlo passes. With ``seed`` torch's
    generators are as before afterwards.
    """
    if not 0 <= rate < 1:
        raise SeggymError(f"dropout rate is {rate}, expected at least 0 and less than 1")

    def hook(share: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _module, _inputs, output: functional.dropout(output, share, training=True)

    levels = list(network.down)
    handles = [level.register_forward_hook(hook(rate * 0.5**above)) for above, level in enumerate(reversed(levels))]
    try:
        with nullcontext() if seed is None else seeded(seed, next(network.parameters()).device):
            yield
    finally:
        for handle in handles:
            handle.remove()


def augmented(network: nn.Module, images: Tensor) -> Tensor:
    """Mean probabilities over the image, its contrasts and its shifts, which are undone; nothing is mirrored."""
    height, width = images.shape[-2:]
    views = [softmax(network, images)]
    views += [softmax(network, distortions.contrast(images, factor)) for factor in _FACTORS]
    for down, right in _SHIFTS:
        rows, columns = round(down * height), round(right * width)
        views.append(_moved(softmax(network, _moved(images, rows, columns)), -rows, -columns))
    return torch.stack(views).mean(0)


def of_reward(reward: RewardMap, network: nn.Module, images: Tensor, masks: Tensor | None = None) -> Confidence:
    """The reward map of ``masks``, by default of what ``network`` draws."""
    chosen = policy_logits(network, images).argmax(1).to(torch.uint8) if masks is None else masks.to(torch.uint8)
    return Confidence(chosen, reward(images, chosen))


def temperature_of(confidence: Confidence, truths: Tensor) -> float:
    """The temperature of ``confidence`` on foreground united with prediction, given ``truths`` (n, H, W)."""
    region = scored_region(confidence.masks, truths)
    return fit_temperature(confidence_logit(confidence.values[region]), (confidence.masks == truths)[region])


def scaled(confidence: Confidence, temperature: float) -> Confidence:
    """The same masks, their confidence divided by ``temperature`` as a logit."""
    return Confidence(confidence.masks, (confidence_logit(confidence.values) / temperature).sigmoid())


def evaluate_uncertainty(
    val: Confidence, val_truths: Tensor, test: Confidence, test_truths: Tensor
) -> dict[str, float]:
    """The temperature fitted on ``val``, and what ``score_pixels`` says of ``test`` with it."""
    temperature = temperature_of(val, val_truths)
    scores = score_pixels(scaled(test, temperature).values, test.masks, test_truths)
    return {"temperature": temperature, **scores}


def _moved(images: Tensor, rows: int, columns: int) -> Tensor:
    """Images (n, C, H, W) moved down and right; the border is repeated."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) - rows).clamp(0, height - 1)
    x = (torch.arange(width, device=images.device) - columns).clamp(0, width - 1)
    return images[:, :, y][:, :, :, x]
