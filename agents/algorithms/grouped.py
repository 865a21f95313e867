"""Advantages relative to other attempts at the same episode.

Returns differ far more between slices than between the lines that a policy may choose, and no critic knows in advance
how well a slice can be segmented. Environments of a group therefore run the same episodes (slice, budget, phase,
noise), and the mean advantage of the group at a step is taken off that of its members: what is left is owed to their
lines (leave-one-out baselines, Kool et al., 2019; group-relative policy optimisation, Shao et al., 2024).
"""

import torch

from seggym.errors import SeggymError


def require_whole_groups(group_size: int, num_envs: int) -> None:
    """Raise :class:`SeggymError` unless the environments can be parted into groups of ``group_size``."""
    if num_envs % group_size:
        raise SeggymError(
            f"agent.group_size={group_size} does not divide num_envs={num_envs}: choose one that does, 1 is off"
        )


def relative_to_group(advantages: torch.Tensor, group_size: int) -> torch.Tensor:
    """``advantages`` (N, T) of N environments without their mean over each ``group_size`` neighbours at each step."""
    groups = advantages.unflatten(0, (-1, group_size))
    return (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
