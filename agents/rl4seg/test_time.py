"""Test-time optimisation: the policy is trained a little on one image, rewarded by the reward net, and then forgotten.

As in RL4Seg3D: only images whose mask breaks a rule (or all of them), a few rollouts of the image and changed copies of
it, and of the policies seen on the way the one whose greedy mask has the highest reward near the heart, the one before
included.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seggym.agents.pixel.settings import PixelSettings
from seggym.agents.pixel.training import train_pixel_ppo
from seggym.agents.rl4seg.selection import masked_mean, region
from seggym.agents.rl4seg.stages import actor, load_reward, reward_stages
from seggym.agents.rl4seg.supervised import label_maps
from seggym.agents.rl4seg.trial import ACTOR, Trial, save_masks
from seggym.configs.checking import build
from seggym.reward_models import distortions
from seggym.reward_models.error_net import RewardMap
from seggym.reward_models.networks import UNet

# Of RL4Seg3D: rollouts of an image, changes of contrast and noise of its copies, and the learning rate.
_ROLLOUTS, _CONTRASTS, _NOISE, _RATE = 4, (0.6, 0.8), 0.005, 1e-3


def stage_of(mode: str) -> str:
    """The stage that holds what ``mode`` (on, force) of the optimisation has given."""
    return f"tto/{mode}"


def run_test_time(trial: Trial, iteration: int, mode: str) -> dict[str, Any]:
    """Stage ``tto/<mode>``: optimised label maps of the target's val and test images, from ``iteration``'s policy."""

    def make(folder: Path) -> dict[str, Any]:
        policy, score = trial.load(actor(iteration)), load_reward(trial, iteration)
        masks, changed = {}, {}
        for part in ("val", "test"):
            images = getattr(trial.pair, f"target_{part}").images
            masks[part], changed[part] = _optimised(trial, policy, score, images, mode == "force")
        save_masks(folder, masks)
        return {"images": changed}

    return trial.folder.stage(stage_of(mode), [actor(iteration), ACTOR, *reward_stages(trial, iteration)], make)


def _optimised(trial: Trial, policy: UNet, score: RewardMap, images: Tensor, force: bool) -> tuple[Tensor, int]:
    """Label maps of ``images``, and how many of them were optimised."""
    masks = label_maps(policy, images)
    wrong = torch.ones(len(images), dtype=torch.bool)
    if not force:
        wrong = torch.from_numpy(~trial.valid(masks.cpu().numpy()))
    for place in wrong.nonzero()[:, 0].tolist():
        masks[place] = optimise(trial, policy, score, images[place : place + 1], f"tto, image {place}")
    return masks, int(wrong.sum())


def optimise(trial: Trial, policy: UNet, score: RewardMap, image: Tensor, what: str) -> Tensor:
    """The label map (H, W) of one ``image`` (1, 1, H, W) with the highest reward on the way."""
    generator = torch.Generator().manual_seed(trial.seed(what))
    copies = [image, *(distortions.contrast(image, factor) for factor in _CONTRASTS)]
    copies.append(distortions.noisy(image, _NOISE, generator))
    settings = replace(
        build(PixelSettings, trial.settings.ppo, "ppo."),
        images=_ROLLOUTS * len(copies), batch=len(copies), minibatch=None, actor_rate=_RATE, entropy=0.0,
        beta=trial.settings.loop.weights(trial.settings.loop.iterations)[1], seed=trial.seed(what),
        device=str(trial.device),
    )  # fmt: skip
    first = label_maps(policy, image)
    found = [(masked_mean(score(image, first), region(first, first, trial.settings.choice.band)), first)]

    def progress(images: int, network: nn.Module, row: dict[str, float]) -> None:
        mask = label_maps(network, image)
        where = region(mask, first, trial.settings.choice.band)
        found.append((masked_mean(score(image, mask), where), mask))

    train_pixel_ppo(policy, None, trial.load(ACTOR), torch.cat(copies), score, settings, None, progress)
    return max(found, key=lambda entry: entry[0])[1][0]
