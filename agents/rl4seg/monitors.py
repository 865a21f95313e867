"""What is watched while a policy is rewarded: reward against truth, divergence, validity, and what is suspicious."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from seggym.agents.rl4seg.selection import Valid, masked_mean, region
from seggym.reward_models.calibration import correlation
from seggym.reward_models.error_net import RewardMap
from seggym.reward_models.metrics import dice_per_class, encode_truth, most_probable

# Mean divergence from the supervised network, nats per pixel near the heart, beyond which a policy has forgotten it.
_FAR = 1.0
COLUMNS = (
    "iteration", "phase", "part", "dice", "validity", "reward", "reward_region", "accuracy", "accuracy_region",
    "corr_reward_accuracy", "corr_uncertainty_dice", "kl", "entropy", "foreground",
)  # fmt: skip


def observe(
    believed: Tensor, supervised: Tensor, images: Tensor, truth: Tensor | None, reward: RewardMap | None, valid: Valid,
    band: int,
) -> dict[str, float]:  # fmt: skip
    """Numbers of one policy on n images; what needs a label is NaN without ``truth`` (n, H, W).

    ``believed`` and ``supervised`` (n, K, H, W) are the probabilities of the policy and of the supervised network.
    "Region" is the foreground of either with ``band`` pixels around it; correlations are over images, of means over
    the region. ``kl`` is that of the policy from the supervised network, in nats, a mean over the region.
    """
    masks, reference = most_probable(believed), most_probable(supervised)
    where = region(masks, reference, band)
    logs, before = believed.clamp_min(1e-8).log(), supervised.clamp_min(1e-8).log()
    row = dict.fromkeys(COLUMNS[3:], float("nan"))
    row["validity"] = float(np.mean(valid(masks.cpu().numpy())))
    row["kl"] = masked_mean((believed * (logs - before)).sum(1), where)
    row["entropy"] = masked_mean(-(believed * logs).sum(1), where)
    row["foreground"] = float((masks > 0).float().mean())
    rewards = reward(images, masks) if reward is not None else None
    if rewards is not None:
        row["reward"], row["reward_region"] = float(rewards.mean()), masked_mean(rewards, where)
    if truth is None:
        return row
    right = (masks == truth.to(masks)).float()
    dice = dice_per_class(masks, encode_truth(truth.long(), believed.shape[1])).nanmean(1)
    row["dice"] = float(dice.nanmean())
    row["accuracy"], row["accuracy_region"] = float(right.mean()), masked_mean(right, where)
    if rewards is not None:
        local, actual = (_means(values, where) for values in (rewards, right))
        row["corr_reward_accuracy"] = correlation(local, actual)
        row["corr_uncertainty_dice"] = correlation(1 - local, dice)
    return row


def suspicions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What looks like a policy that exploits its reward, in rows of ``iteration``, ``part`` and ``phase``."""
    found = []
    befores = {(row["iteration"], row["part"]): row for row in rows if row["phase"] == "before"}
    for row in rows:
        if row["phase"] != "after":
            continue
        before, where = befores[row["iteration"], row["part"]], f"iteration {row['iteration']} on {row['part']}"
        if row["reward_region"] > before["reward_region"] and row["dice"] < before["dice"] - 0.005:
            found.append(f"{where}: the reward rose and Dice fell by {before['dice'] - row['dice']:.3f}")
        if row["corr_uncertainty_dice"] > 0:
            found.append(f"{where}: masks that the reward net is less sure of have the higher Dice")
        if row["kl"] > _FAR:
            found.append(f"{where}: the policy is {row['kl']:.2f} nats per pixel from the supervised network")
        if row["foreground"] == 0:
            found.append(f"{where}: the policy predicts background alone")
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """``metrics.csv``; a number that does not exist is left empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = [row[name] for name in COLUMNS]
        writer.writerow(["" if isinstance(value, float) and np.isnan(value) else value for value in values])
    return buffer.getvalue().encode()


def _means(values: Tensor, where: Tensor) -> Tensor:
    weights = where.to(values)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)
