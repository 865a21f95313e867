"""Which checkpoint an iteration keeps, decided without a label on held-out target images.

Each of the obvious scores can be had without a good mask. The mean reward is made of background and saturates; validity
is 1 for a plausible mask in the wrong place (a toy run kept such an actor: Dice .85, validity 100 %); agreement with an
earlier network is 1 for that network. So three are added up: the reward near the heart, where masks differ, over a
region that a candidate cannot shrink by predicting less; validity; and agreement with the *anchors*, masks of the
supervised network that are valid and that the corrector leaves alone, which counts only up to a level that says "still
the same organ in the same place". The supervised network and the last iteration's actor are always candidates, so an
iteration that learned nothing leaves nothing worse.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seggym.agents.rl4seg.settings import SelectionWeights
from seggym.reward_models.error_net import RewardMap

Valid = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Held:
    """Held-out target images, of which no label is known, and what the candidates are held against.

    ``images`` (n, 1, H, W); ``reference`` (n, H, W), the supervised network's label maps; ``anchored`` bool (n,), which
    of those are anchors.
    """

    images: Tensor
    reference: Tensor
    anchored: Tensor


@dataclass(frozen=True)
class Evidence:
    """Of a candidate: reward in the region, share of valid masks, Dice with the anchors (NaN without any)."""

    reward: float
    validity: float
    agreement: float

    def total(self, weights: SelectionWeights) -> float:
        """The weighted sum; where there is no anchor agreement is the same for every candidate and left out."""
        agreement = 0.0 if np.isnan(self.agreement) else min(self.agreement, weights.enough)
        return weights.reward * self.reward + weights.validity * self.validity + weights.agreement * agreement


def evidence(masks: Tensor, held: Held, reward: RewardMap | None, valid: Valid, band: int) -> Evidence:
    """Evidence for a candidate whose label maps of ``held.images`` are ``masks``; no ``reward`` net: its part is 0."""
    value = 0.0
    if reward is not None:
        where = region(masks, held.reference, band)
        value = masked_mean(reward(held.images, masks), where)
    there = held.anchored
    agreement = foreground_dice(masks[there], held.reference[there]).mean() if bool(there.any()) else torch.nan
    return Evidence(value, float(np.mean(valid(masks.cpu().numpy()))), float(agreement))


def choose(found: Mapping[str, Evidence], weights: SelectionWeights) -> tuple[str, dict[str, Any]]:
    """The best candidate (the first of equals) and a record of all."""
    totals = {name: entry.total(weights) for name, entry in found.items()}
    best = max(totals, key=lambda name: totals[name])
    record = {name: {**asdict(entry), "total": totals[name]} for name, entry in found.items()}
    return best, {"chosen": best, "candidates": record}


def region(masks: Tensor, reference: Tensor, band: int) -> Tensor:
    """bool (n, H, W): foreground of either label map and ``band`` pixels around it; all of an image without any."""
    either = ((masks > 0) | (reference > 0)).float()[:, None]
    wide = functional.max_pool2d(either, 2 * band + 1, stride=1, padding=band)[:, 0] > 0
    return wide | ~wide.flatten(1).any(1)[:, None, None]


def masked_mean(values: Tensor, where: Tensor) -> float:
    """Mean over images of the mean of ``values`` (n, H, W) ``where`` (n, H, W) there is something."""
    weights = where.to(values)
    means = (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp_min(1)
    return float(means.mean())


def foreground_dice(first: Tensor, second: Tensor) -> Tensor:
    """(n,): Dice of label maps (n, H, W), mean over the classes that either has; 1 where both are empty."""
    highest = int(max(int(first.max()), int(second.max()), 1)) if len(first) else 1
    classes = torch.arange(1, highest + 1, device=first.device)[:, None, None, None]
    ours, theirs = first[None] == classes, second[None] == classes
    sizes = ours.flatten(2).sum(2) + theirs.flatten(2).sum(2)
    shared = (ours & theirs).flatten(2).sum(2)
    dice = (2 * shared / sizes.clamp_min(1)).masked_fill(sizes == 0, torch.nan)
    return dice.nanmean(0).nan_to_num(1.0)
