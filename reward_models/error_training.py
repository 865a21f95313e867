"""Training of an error net on reward pairs, and the temperature that calibrates it.

What makes it good with few images (measured in docs/reward_net.md): pairs with true labels whose images look different,
and a training that leaves the easiest first answer, that every label is right, by a high learning rate and masks that
are hidden at times. The true label is learned beside P(correct), predictions are drawn anew at every iteration
(distortions of the true mask that were never stored), images are changed in intensity and mirrored, and the loss looks
at the boundary. The weights of the loss depend on the *input* mask alone, never on the truth: a weight that is a
function of the input leaves P(correct | input) the optimum, a weight on errors would make the net pessimistic and spoil
its calibration.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seggym.configs.checking import require_at_least
from seggym.errors import SeggymError
from seggym.reward_models import distortions
from seggym.reward_models.calibration import BAND, boundary_band, fit_temperature, score_pixels, scored_region
from seggym.reward_models.error_net import ErrorNet, log_odds
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.reward_dataset import RewardDataset
from seggym.reward_models.schedules import rise_and_fall
from seggym.reward_models.seeding import seeded

# Pairs that validation looks at: enough for a temperature, few enough for a training of seconds.
_VALIDATION_PAIRS = 384
_BATCH = 64


@dataclass(frozen=True)
class ErrorNetSettings:
    """How an error net is trained.

    ``iterations`` of AdamW on ``batch`` pairs, the rate rising to ``learning_rate`` and falling again; ``widths`` of
    the U-Net. The loss of a pixel has weight 1, plus ``foreground_weight`` in the predicted foreground, plus
    ``boundary_weight`` within five pixels of the prediction's boundaries. It is the cross-entropy of being correct,
    plus ``label_weight`` times that of the true label. ``fresh`` is the share of a batch whose prediction is a new
    distortion of the truth, ``hidden`` the share whose mask the network does not see: it then has to look at the image,
    while otherwise it may be content with the mask for long. ``flip`` mirrors left and right, ``intensity`` (0 to 1) is
    the strength of random changes of gamma, gain over the image, sharpness and noise. ``validation`` is the share of
    patients that choose the best weights (every ``validate_every`` iterations) and fit the temperature.
    """

    iterations: int = 600
    batch: int = 16
    learning_rate: float = 1e-2
    weight_decay: float = 1e-4
    widths: Sequence[int] = (16, 32, 64, 128)
    foreground_weight: float = 1.0
    boundary_weight: float = 3.0
    label_weight: float = 1.0
    fresh: float = 0.25
    hidden: float = 0.25
    flip: bool = True
    intensity: float = 0.5
    validation: float = 0.2
    validate_every: int = 100
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch, self.validate_every) < 1 or not self.learning_rate > 0:
            raise SeggymError(
                f"error net: iterations={self.iterations}, batch={self.batch}, validate_every={self.validate_every} "
                f"and learning_rate={self.learning_rate} must be positive; mend them"
            )
        for name in ("fresh", "hidden", "intensity"):
            if not 0 <= getattr(self, name) <= 1:
                raise SeggymError(f"error net: {name}={getattr(self, name)} must lie in 0 to 1")
        require_at_least(self, "error net: ", foreground_weight=0, boundary_weight=0, label_weight=0)


def train_error_net(
    dataset: RewardDataset,
    settings: ErrorNetSettings | None = None,
    start: ErrorNet | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> ErrorNet:
    """Train on the pairs of most patients of ``dataset``; calibrated, frozen, on the CPU.

    ``start`` gives the weights to begin with (an error net of the iteration before). ``progress(iteration, loss)`` is
    called at every validation, with its loss. ``metrics`` of the result hold
    :func:`~seggym.reward_models.calibration.score_pixels` of the validation patients' pairs.
    """
    settings = settings or ErrorNetSettings()
    train, val = dataset.split(settings.validation, settings.seed)
    device = resolve_device(settings.device)
    with seeded(settings.seed):
        net = ErrorNet(dataset.class_names, settings.widths)
    if start is not None:
        start.require_classes(dataset.class_names)
        if start.widths != net.widths:
            raise SeggymError(
                f"start has widths {list(start.widths)}, settings say {list(net.widths)}: make them equal"
            )
        net.load_state_dict(start.state_dict())
    net.requires_grad_(True).to(device).train()
    batches = _Batches(train, settings, device)
    held_out = _validation_pairs(val, settings.seed)
    optimizer = torch.optim.AdamW(net.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rise_and_fall(settings.iterations, rise=0.05))
    best, best_state = math.inf, copy.deepcopy(net.state_dict())
    for number in range(1, settings.iterations + 1):
        images, truths, predictions = batches.draw()
        label_logits = net.label_logits(images, predictions, batches.shown())
        loss = error_loss(label_logits, predictions, truths, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if number % settings.validate_every == 0 or number == settings.iterations:
            logits = _logits(net, held_out, device)
            value = float(weighted_bce(logits, held_out.predictions, held_out.correct, settings))
            if progress is not None:
                progress(number, value)
            if value < best:
                best, best_state = value, copy.deepcopy(net.state_dict())
    net.load_state_dict(best_state)
    net.eval().requires_grad_(False)
    _calibrate(net, held_out, device)
    net.to("cpu")
    net.patients = tuple(sorted(set(dataset.patients)))
    labelled = {p for p, origin in zip(dataset.patients, dataset.origins, strict=True) if origin == "labels"}
    net.labelled = tuple(sorted(labelled))
    net.metrics.update(loss=best, settings=_plain(settings), pairs=len(train), validation_pairs=len(val))
    return net


def error_loss(label_logits: Tensor, predictions: Tensor, truths: Tensor, settings: ErrorNetSettings) -> Tensor:
    """:func:`weighted_bce` of being correct, and the cross-entropy of ``truths``, with the same weights."""
    logits = log_odds(label_logits, predictions)
    loss = weighted_bce(logits, predictions, predictions == truths, settings)
    if settings.label_weight:
        weights = pixel_weights(predictions, settings)
        labels = functional.cross_entropy(label_logits, truths.long(), reduction="none")
        loss = loss + settings.label_weight * (labels * weights).sum() / weights.sum()
    return loss


def weighted_bce(logits: Tensor, predictions: Tensor, correct: Tensor, settings: ErrorNetSettings) -> Tensor:
    """Binary cross-entropy of ``logits`` (n, H, W) with ``correct`` bool, weighted by :func:`pixel_weights`."""
    weights = pixel_weights(predictions, settings)
    losses = functional.binary_cross_entropy_with_logits(logits, correct.to(logits.dtype), reduction="none")
    return (losses * weights).sum() / weights.sum()


def pixel_weights(predictions: Tensor, settings: ErrorNetSettings) -> Tensor:
    """How much each pixel counts, float32 (n, H, W): a function of ``predictions`` (n, H, W) alone."""
    weights = torch.ones(predictions.shape, device=predictions.device)
    if settings.foreground_weight:
        weights = weights + settings.foreground_weight * (predictions > 0)
    if settings.boundary_weight:
        weights = weights + settings.boundary_weight * boundary_band(predictions, BAND)
    return weights


class _Pairs(NamedTuple):
    images: Tensor
    truths: Tensor
    predictions: Tensor
    correct: Tensor


def _validation_pairs(val: RewardDataset, seed: int) -> _Pairs:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(val), generator=generator)[:_VALIDATION_PAIRS].sort().values
    truths, predictions = val.truths[val.items[chosen]], val.predictions[chosen]
    return _Pairs(val.images[val.items[chosen]], truths, predictions, truths == predictions)


@torch.no_grad()
def _logits(net: ErrorNet, pairs: _Pairs, device: torch.device) -> Tensor:
    parts = zip(pairs.images.split(_BATCH), pairs.predictions.split(_BATCH), strict=True)
    return torch.cat([net.logits(images.to(device), masks.to(device)).float().cpu() for images, masks in parts])


def _calibrate(net: ErrorNet, pairs: _Pairs, device: torch.device) -> None:
    """Fit the temperature on foreground united with prediction, and score the pairs with it."""
    logits = _logits(net, pairs, device)
    region = scored_region(pairs.predictions, pairs.truths)
    net.temperature = fit_temperature(logits[region], pairs.correct[region])
    net.metrics = score_pixels((logits / net.temperature).sigmoid(), pairs.predictions, pairs.truths)


class _Batches:
    """Random pairs, changed at random; everything follows from the seed."""

    def __init__(self, dataset: RewardDataset, settings: ErrorNetSettings, device: torch.device) -> None:
        self.dataset, self.settings, self.device = dataset, settings, device
        self.generator = torch.Generator().manual_seed(settings.seed)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images float32 (B, 1, H, W), truths and predictions uint8 (B, H, W)."""
        dataset, settings = self.dataset, self.settings
        chosen = torch.randint(len(dataset), (settings.batch,), generator=self.generator)
        items = dataset.items[chosen]
        images, truths, predictions = (
            source.to(self.device)
            for source in (dataset.images[items], dataset.truths[items], dataset.predictions[chosen])
        )
        fresh = round(settings.fresh * settings.batch)
        if fresh:
            made = distort(truths[:fresh], dataset.num_classes, self.generator)
            predictions = torch.cat([made, predictions[fresh:]])
        if settings.flip:
            mirrored = (torch.rand(settings.batch, generator=self.generator) < 0.5).to(self.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
            truths, predictions = (
                torch.where(mirrored[:, None, None], masks.flip(-1), masks) for masks in (truths, predictions)
            )
        if settings.intensity:
            images = vary(images, settings.intensity, self.generator)
        return images, truths, predictions

    def shown(self) -> Tensor:
        """Whose mask the network sees in this batch, bool (B,)."""
        chance = torch.rand(self.settings.batch, generator=self.generator)
        return (chance >= self.settings.hidden).to(self.device)


def distort(masks: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """One kind of distortion of random strength, the same for all ``masks`` uint8 (n, H, W)."""
    kind, strength, size = torch.rand(3, generator=generator).tolist()
    if kind < 0.4:
        return distortions.elastic(masks, 0.5 + 5 * strength, 1 + int(7 * size), generator)
    if kind < 0.65:
        return distortions.morphological(masks, num_classes, 1 + int(3 * strength), generator)
    if kind < 0.9:
        return distortions.patches(masks, num_classes, 0.005 + 0.1 * strength, 4 + int(9 * size), generator)
    return distortions.missing(masks, num_classes, generator)


def vary(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Images (n, 1, H, W) in [0, 1] of another gamma, bias field, sharpness and noise, each at random."""
    count, _, height, width = images.shape

    def drawn(*shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1).to(images.device)

    gamma = torch.exp(strength * drawn(1, 1, 1))
    bias = functional.interpolate(drawn(1, 3, 3), (height, width), mode="bicubic", align_corners=True)
    varied = images.clamp(1e-4, 1) ** gamma * torch.exp(0.6 * strength * bias)
    blurred = functional.avg_pool2d(functional.pad(varied, (1, 1, 1, 1), mode="replicate"), 3, 1)
    varied = torch.lerp(varied, blurred, (strength * (1 + drawn(1, 1, 1))).clamp(0, 1))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return varied + 0.1 * strength * drawn(1, 1, 1).clamp_min(0) * noise


def _plain(settings: ErrorNetSettings) -> dict[str, object]:
    return {**asdict(settings), "widths": [int(width) for width in np.asarray(settings.widths)]}
