"""Scores for spokes and for points from a network that all of them share, which sees each with its neighbourhood.

What :class:`~seggym.agents.extractors.LineExtractor` is for lines: the neighbours of a spoke are those at the next
angles, half a turn closing the circle; those of a point lie around it in two dimensions.
"""

import math

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from seggym.agents.extractors import DictExtractor
from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.points import block_centres
from seggym.kspace.radial import spoke_angles


class ViewExtractor(BaseFeaturesExtractor):
    """What both have in common; a subclass lays views out as images and states the rule that training starts from.

    Input: a Dict with ``acquired`` (N, V), ``budget`` (N, 1), and optionally ``energy`` (N, V) and whatever
    :class:`~seggym.agents.extractors.DictExtractor` takes. Output: float32 (N, V + context): scores, which the head
    passes on (:func:`seggym.agents.priors.start_head`), then the context, which the critic works with.
    """

    name = ""

    def __init__(
        self, observation_space: spaces.Dict, channels: int, kernel: tuple[int, int], strength: float, width: int
    ) -> None:
        parts = observation_space.spaces
        if "acquired" not in parts or "budget" not in parts:
            raise SeggymError(
                f"the extractor {self.name!r} needs acquired and budget among the parts of the observation, found "
                f"{', '.join(parts)}: add them to env.kwargs.observation or choose the extractor 'dict'"
            )
        context = DictExtractor(observation_space, embedding=width)
        self.num_scores = math.prod(parts["acquired"].shape or ())
        super().__init__(observation_space, self.num_scores + context.features_dim)
        self.context, self.strength, self.has_energy = context, strength, "energy" in parts
        self.local = nn.Conv2d(channels, width, kernel)
        self.shared = nn.Linear(context.features_dim, width)
        self.hidden = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU())
        # Training starts from the rule: corrections of zero everywhere. No layer, because stable-baselines3 initialises
        # those anew.
        self.weight = nn.Parameter(torch.zeros(1, width, 1, 1))

    def laid_out(self, acquired: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
        """What is seen of the views of both float (N, V), padded by the neighbourhood: (N, channels, height, width)."""
        raise NotImplementedError

    def rule(self, acquired: torch.Tensor) -> torch.Tensor:
        """Scores (N, V) before training, in units of the strength, where ``acquired`` float (N, V) is measured."""
        raise NotImplementedError

    def in_order(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (N, height, width) in the order of the views: (N, V)."""
        return scores.flatten(1)

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """(N, features_dim): scores, then context."""
        acquired = observations["acquired"].float()
        energy = observations["energy"] if self.has_energy else torch.zeros_like(acquired)
        context = self.context(observations)
        seen = self.laid_out(acquired, energy).contiguous(memory_format=torch.channels_last)
        seen = self.local(seen) + self.shared(context)[:, :, None, None]
        corrections = self.in_order(nn.functional.conv2d(self.hidden(seen), self.weight)[:, 0])
        return torch.cat([self.strength * self.rule(acquired) + corrections, context], 1)


class SpokeExtractor(ViewExtractor):
    """One score per spoke; without training the spoke farthest from the measured ones is the best.

    ``angles`` is that of the acquisition, ``neighbours`` how many spokes are seen on either side, ``strength`` the
    score of a whole turn between a spoke and the nearest measured one.
    """

    name = "spokes"

    def __init__(
        self,
        observation_space: spaces.Dict,
        angles: str = "uniform",
        strength: float = 96.0,
        width: int = 32,
        neighbours: int = 6,
    ) -> None:
        super().__init__(observation_space, 5, (1, 2 * neighbours + 1), strength, width)
        angle = spoke_angles(Acquisition(trajectory="radial", spokes=self.num_scores, angles=angles))
        turn = np.abs(angle[:, None] - angle)
        self.neighbours = neighbours
        self.distance: torch.Tensor
        self.direction: torch.Tensor
        self.by_angle: torch.Tensor
        self.place: torch.Tensor
        # A spoke is the same half a turn later.
        distance = torch.from_numpy(np.minimum(turn, math.pi - turn) / (2 * math.pi)).float()
        direction = torch.from_numpy(np.stack([np.cos(2 * angle), np.sin(2 * angle)])).float()
        order = torch.from_numpy(np.argsort(angle, kind="stable"))
        for name, value in (("distance", distance), ("direction", direction)):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("by_angle", order, persistent=False)
        self.register_buffer("place", order.argsort(), persistent=False)

    def laid_out(self, acquired: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
        """A row of spokes by angle, closed to a circle: (N, 5, 1, V + 2 neighbours)."""
        gap = 4 * self.rule(acquired)
        parts = torch.stack([acquired, energy, gap, *self.direction.expand(len(acquired), -1, -1).unbind(1)], 1)
        row = parts[:, :, None, self.by_angle]
        return nn.functional.pad(row, (self.neighbours, self.neighbours, 0, 0), mode="circular")

    def rule(self, acquired: torch.Tensor) -> torch.Tensor:
        """Distance to the nearest measured spoke in turns."""
        return torch.where(acquired[:, None] > 0, self.distance, 1.0).amin(2)

    def in_order(self, scores: torch.Tensor) -> torch.Tensor:
        """From the order by angle to that of the actions."""
        return scores[:, 0, self.place]


class PointExtractor(ViewExtractor):
    """One score per point (block of them); without training the one nearest to DC is the best.

    ``block`` is that of the acquisition, ``neighbours`` how many views are seen in each direction, ``strength`` what a
    view at the edge of k-space loses against DC.
    """

    name = "points"

    def __init__(
        self,
        observation_space: spaces.Dict,
        block: int = 1,
        strength: float = 24.0,
        width: int = 32,
        neighbours: int = 2,
    ) -> None:
        super().__init__(observation_space, 7, (2 * neighbours + 1, 2 * neighbours + 1), strength, width)
        self.side, self.neighbours = math.isqrt(self.num_scores), neighbours
        if self.side**2 != self.num_scores:
            raise SeggymError(
                f"the extractor 'points' needs a square of points, found {self.num_scores} views: choose the extractor "
                "of the trajectory"
            )
        scan = Acquisition(self.side * block, self.side * block, initial_lines=1, trajectory="points", block=block)
        # In halves of k-space.
        centre = torch.from_numpy(block_centres(scan)).float() / (scan.matrix / 2)
        self.position: torch.Tensor
        position = torch.cat([centre.T, centre.square().sum(1).sqrt()[None]])
        self.register_buffer("position", position, persistent=False)
        # The block of -k: with single points and an even matrix the outermost ones are their own mirror images.
        self._shift = int(block == 1 and self.side % 2 == 0)

    def laid_out(self, acquired: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
        """Points at their places in k-space, zeros around it: (N, 7, side + 2 neighbours, the same)."""
        seen = torch.stack([acquired, energy], 1).unflatten(2, (self.side, self.side))
        mirrored = seen.flip(2, 3).roll((self._shift, self._shift), (2, 3))
        position = self.position.unflatten(1, (self.side, self.side)).expand(len(seen), -1, -1, -1)
        return nn.functional.pad(torch.cat([seen, mirrored, position], 1), (self.neighbours,) * 4)

    def rule(self, acquired: torch.Tensor) -> torch.Tensor:
        """The distance from DC, negative."""
        return -self.position[2].expand(len(acquired), -1)
