"""Discs in rings on noise: images that a small network learns in seconds."""

import numpy as np
import torch
from torch import Tensor

from seggym.agents.pixel.reward_map_env import RewardMapVecEnv
from seggym.agents.vec_env import BatchedVecEnv
from seggym.envs.adaptation.engine import AdaptationEngine
from seggym.envs.adaptation.environment import AdaptationVectorEnv
from seggym.envs.adaptation.rewards import OracleReward

CLASSES = 3


def rings(count: int, seed: int = 0, size: int = 32) -> tuple[Tensor, Tensor]:
    """Images float32 (n, 1, size, size) in [0, 1] and labels uint8 (n, size, size): disc 1, ring around it 2."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size, size))
    row, column = rng.uniform(0.37 * size, 0.63 * size, (2, count, 1, 1))
    distance = np.hypot(y - row, x - column)
    inner = rng.uniform(0.12 * size, 0.22 * size, (count, 1, 1))
    outer = inner + rng.uniform(0.06 * size, 0.11 * size, (count, 1, 1))
    labels = np.where(distance < inner, 1, np.where(distance < outer, 2, 0)).astype(np.uint8)
    images = np.array([0.2, 0.8, 0.5])[labels] + 0.1 * rng.standard_normal(labels.shape)
    return torch.tensor(images, dtype=torch.float32).clamp(0, 1)[:, None], torch.from_numpy(labels)


def ring_envs(num_envs: int, images: Tensor, labels: Tensor) -> RewardMapVecEnv:
    """Environments of rings, rewarded by accuracy, as stable-baselines3 trains in them."""
    engine = AdaptationEngine(images, OracleReward(labels, CLASSES), CLASSES, num_envs, labels)
    batch = AdaptationVectorEnv(num_envs, engine=engine, autoreset_mode="SameStep")
    return RewardMapVecEnv(BatchedVecEnv(batch))
