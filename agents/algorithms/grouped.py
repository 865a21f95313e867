"""Advantages relative to other attempts at the same episode.

Returns differ far more between slices than between the lines that a policy may choose, and no critic knows in advance
how well a slice can be segmented. Environments of a group therefore run the same episodes (slice, budget, phase,
noise), and the mean advantage of the group at a step is taken off that of its members: what is left is owed to their
lines (leave-one-out baselines, Kool et al., 2019; group-relative policy optimisation, Shao et al., 2024).
"""

from typing import Any

import torch
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer

from seggym.errors import SeggymError


class _Grouped(DictRolloutBuffer):
    """A rollout buffer of groups of ``group_size`` neighbouring environments that are always at the same step."""

    def __init__(self, *args: Any, group_size: int = 1, **kwargs: Any) -> None:
        self.group_size = group_size
        super().__init__(*args, **kwargs)
        if self.n_envs % group_size:
            raise SeggymError(
                f"agent.group_size={group_size} does not divide num_envs={self.n_envs}: choose one that does, 1 is off"
            )

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: Any) -> None:
        """Returns as ever, for the critic; advantages (T, N) without their mean over each group."""
        super().compute_returns_and_advantage(last_values, dones)
        if self.group_size > 1:
            groups = self.advantages.reshape(self.buffer_size, -1, self.group_size)
            self.advantages = (groups - groups.mean(2, keepdims=True)).reshape(self.advantages.shape)


class GroupedRolloutBuffer(_Grouped):
    """For PPO."""


class GroupedMaskableRolloutBuffer(_Grouped, MaskableDictRolloutBuffer):
    """For MaskablePPO."""
