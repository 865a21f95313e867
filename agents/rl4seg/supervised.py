"""Segmentation networks learned from label maps: the start of RL4Seg and of its baselines."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seggym.configs.checking import require_at_least
from seggym.errors import SeggymError
from seggym.reward_models.metrics import dice_per_class, encode_truth, most_probable
from seggym.reward_models.network_learner import turned
from seggym.reward_models.networks import UNet
from seggym.reward_models.schedules import rise_and_fall
from seggym.reward_models.seeding import seeded
from seggym.reward_models.unet_learner import dice_loss

# Images that pass through a network at a time when it predicts.
_BATCH = 32
# Changes a batch of images (B, 1, H, W), drawn from the places (B,) of the training images; the labels stay.
Style = Callable[[Tensor, Tensor], Tensor]
# A number that is better when larger, of a network in evaluation mode.
Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class FitSettings:
    """How a network is trained from label maps.

    ``iterations`` of AdamW with batches of ``batch`` images, the learning rate rising to ``learning_rate`` over a tenth
    of them and falling again; every ``validate_every`` iterations the network is scored, where there is a score.
    """

    iterations: int = 600
    batch: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    validate_every: int = 100

    def __post_init__(self) -> None:
        require_at_least(self, "pretrain.", iterations=1, batch=1, validate_every=1)
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise SeggymError(
                f"pretrain.learning_rate={self.learning_rate} must be positive and pretrain.weight_decay="
                f"{self.weight_decay} not negative"
            )


@dataclass(frozen=True)
class Fitted:
    """A network in evaluation mode, and what its scores were: (iteration, score) each."""

    network: UNet
    scores: tuple[tuple[int, float], ...]

    @property
    def best(self) -> float:
        """The best score, NaN without one."""
        return max((score for _, score in self.scores), default=math.nan)


def fit(
    network: UNet,
    images: Tensor,
    masks: Tensor,
    settings: FitSettings,
    seed: int,
    *,
    style: Style | None = None,
    score: Score | None = None,
) -> Fitted:
    """Train a copy of ``network`` on ``images`` (n, 1, H, W) and ``masks`` (n, H, W); everything random is ``seed``'s.

    The loss is half cross-entropy, half Dice. Images are turned, scaled and mirrored never upside down, and changed in
    contrast; ``style`` changes them before. With ``score`` the weights with the best one are kept, else the last ones.

    Raises:
        SeggymError: there is no image, or the loss is not finite.
    """
    if not len(images):
        raise SeggymError("there is no image to learn from, expected at least 1; use more patients or other frames")
    network = copy.deepcopy(network).requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rise_and_fall(settings.iterations))
    scores: list[tuple[int, float]] = []
    best: dict[str, Tensor] = {}
    with seeded(seed):
        for number in range(1, settings.iterations + 1):
            network.train()
            chosen = torch.randint(len(images), (settings.batch,))
            batch = images[chosen.to(images.device)]
            if style is not None:
                batch = style(batch, chosen)
            loss = _loss(network, batch, masks[chosen.to(masks.device)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if number % settings.validate_every and number < settings.iterations:
                continue
            if not torch.isfinite(loss):
                raise SeggymError(f"the loss is {loss.item()} at iteration {number}: lower pretrain.learning_rate")
            if score is not None:
                scores.append((number, score(network.eval())))
                if scores[-1][1] >= max(value for _, value in scores):
                    best = copy.deepcopy(network.state_dict())
    if best:
        network.load_state_dict(best)
    return Fitted(network.eval().requires_grad_(False), tuple(scores))


def _loss(network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    images, labels = turned(images, masks, outside=0)
    logits = network(images.contiguous(memory_format=torch.channels_last))[0]
    return 0.5 * (functional.cross_entropy(logits, labels) + dice_loss(logits.softmax(1), labels))


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities (n, K, H, W) of ``images`` (n, 1, H, W); the network is in evaluation mode meanwhile."""
    training = network.training
    network.eval()
    found = [network(part.contiguous(memory_format=torch.channels_last))[0].softmax(1) for part in images.split(_BATCH)]
    network.train(training)
    return torch.cat(found).contiguous()


def label_maps(network: nn.Module, images: Tensor) -> Tensor:
    """Greedy label maps, uint8 (n, H, W)."""
    return most_probable(probabilities(network, images))


def mean_dice(masks: Tensor, truth: Tensor, num_classes: int) -> float:
    """Mean over the structures present, then over images; NaN where there is none."""
    return float(dice_per_class(masks, encode_truth(truth.long(), num_classes)).nanmean(1).nanmean())


def dice_score(images: Tensor, truth: Tensor, num_classes: int) -> Score:
    """Scores a network by its Dice on labelled images."""
    return lambda network: mean_dice(label_maps(network, images), truth, num_classes)
