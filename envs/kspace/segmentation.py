"""What networks make of the current images of a batch, reduced at once to what is rewarded, reported and observed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from seggym.envs.batched import write_rows
from seggym.reward_models import metrics
from seggym.reward_models.frozen import Prediction

# Side of the coarse grid of the observation ``probability_grid``.
GRID = 8


class Segmenter(Protocol):
    """What scores an image: a frozen network, an ensemble, or a stub in a test."""

    @property
    def num_features(self) -> int: ...

    def __call__(self, magnitude: torch.Tensor) -> Prediction: ...


@dataclass
class Segmentation:
    """What is kept of a prediction, B images; probabilities in full would be most of the memory of an environment.

    labels uint8 (B, C, C): most probable classes; dice float32 (B, K - 1): hard Dice per foreground class, NaN where
    absent; absent_area float32 (B, K - 1): pixels predicted for absent classes. The rest are parts of the observation,
    None where they are not observed: probabilities uint8 (B, K, C, C), of 255; probability_grid float32
    (B, K * GRID * GRID): means over the blocks of a coarse grid; features float32 (B, F); overlap float (B, 4, K - 1):
    what a score of several slices at once is made of, intersection with the truth and predicted area, in pixels, of the
    probabilities and then of the labels.
    """

    labels: torch.Tensor
    dice: torch.Tensor
    absent_area: torch.Tensor
    probabilities: torch.Tensor | None
    probability_grid: torch.Tensor | None
    features: torch.Tensor | None
    overlap: torch.Tensor | None


def summarise(prediction: Prediction, truth: metrics.SegmentationTerms, observed: Collection[str]) -> Segmentation:
    """Keep what is asked for of ``prediction``; ``observed`` names parts of the observation, or ``overlap``."""
    probabilities = prediction.probabilities
    labels = metrics.most_probable(probabilities)
    hard = metrics.hard_overlap(labels, truth)
    dice, absent_area = metrics.overlap_scores(hard)
    grid = None
    if "probability_grid" in observed:
        grid = torch.nn.functional.adaptive_avg_pool2d(probabilities, GRID).flatten(1).to(torch.float32).clamp_(0, 1)
    return Segmentation(
        labels=labels,
        dice=dice,
        absent_area=absent_area,
        probabilities=(probabilities * 255).round_().to(torch.uint8) if "probabilities" in observed else None,
        probability_grid=grid,
        features=prediction.features.to(torch.float32) if "features" in observed else None,
        overlap=_overlaps(metrics.soft_overlap(probabilities, truth), hard) if "overlap" in observed else None,
    )


def _overlaps(soft: metrics.Overlap, hard: metrics.Overlap) -> torch.Tensor:
    pairs = (soft.intersection, soft.predicted, hard.intersection, hard.predicted)
    return torch.stack([pair.to(soft.predicted.dtype) for pair in pairs], 1)


def segment(networks: Sequence[Segmenter], route: torch.Tensor, magnitude: torch.Tensor) -> Prediction:
    """Segment magnitude images (B, C, C), image i by ``networks[route[i]]``; one forward pass per network."""
    if len(networks) == 1:
        return networks[0](magnitude)
    joined: Prediction | None = None
    for index, network in enumerate(networks):
        here = (route == index).nonzero()[:, 0]
        if len(here):
            joined = write_rows(joined, here, network(magnitude[here]), len(magnitude))
    assert joined is not None
    return joined
