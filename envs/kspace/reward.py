"""Quality of what has been measured so far, and the reward made of it.

Quality is Q = lambda_seg * Q_seg + lambda_recon * Q_recon. The dense reward is the gain in Q per line; its sum over an
episode is the final minus the initial quality (``objective="final"``), or, with line t of T weighted by
(T - t + 1) / T, the mean of Q_1..Q_T minus Q_0 (``objective="area"``).
"""

from dataclasses import dataclass

import torch

from seggym.envs.kspace.settings import KSpaceSettings
from seggym.reward_models import image_quality, metrics
from seggym.reward_models.frozen import Prediction

_SEGMENTATION = {
    "soft_dice": metrics.soft_quality,
    "dice": metrics.hard_quality,
    "iou": metrics.mean_iou,
}
_RECONSTRUCTION = {
    "ssim": image_quality.ssim,
    "psnr": image_quality.psnr,
    # An error: its sign is turned so that more is better.
    "nmse": lambda image, terms: -image_quality.nmse(image, terms),
}


@dataclass
class Truth:
    """Ground-truth terms of the running episodes, computed once per reset. ``None`` where nobody asks for them."""

    segmentation: metrics.SegmentationTerms | None
    reconstruction: image_quality.ReferenceTerms | None


def quality(
    settings: KSpaceSettings, prediction: Prediction | None, magnitude: torch.Tensor, truth: Truth
) -> torch.Tensor:
    """Q of every image: float (B,). ``magnitude`` is (B, C, C)."""
    total = torch.zeros(len(magnitude), dtype=magnitude.dtype, device=magnitude.device)
    if settings.lambda_seg > 0:
        assert prediction is not None
        assert truth.segmentation is not None
        measure = _SEGMENTATION[settings.seg_metric]
        score = measure(prediction.probabilities, truth.segmentation, absent_weight=settings.absent_weight)
        total = total + settings.lambda_seg * score.to(total.dtype)
    if settings.lambda_recon > 0:
        assert truth.reconstruction is not None
        score = _RECONSTRUCTION[settings.recon_metric](magnitude, truth.reconstruction)
        total = total + settings.lambda_recon * score.to(total.dtype)
    return total


def quality_reward(
    settings: KSpaceSettings,
    before: torch.Tensor,
    after: torch.Tensor,
    initial: torch.Tensor,
    step: torch.Tensor,
    budget: torch.Tensor,
    ended: torch.Tensor,
) -> torch.Tensor:
    """The reward for the line that brought quality from ``before`` to ``after``; all arguments (B,).

    ``step`` counts lines from 1, 0 is before the first of them; ``initial`` is Q_0. An episode that ends early (stop
    action) keeps its last quality for the remaining lines, which is what the weights already say.
    """
    if settings.reward == "level":
        # ASMR (Yen et al., ICML 2024): the level itself, squashed, and nothing during the first steps.
        squashed = after.sign() * ((after.abs() + 1).sqrt() - 1) + 0.001 * after
        return torch.where(step > settings.level_delay, squashed, 0)
    if settings.reward == "terminal":
        return torch.where(ended, after - initial, 0)
    gain = after - before
    if settings.objective == "area":
        gain = gain * (budget - step.clamp_min(1) + 1) / budget
    return gain
