"""The policies that a learned one is compared with where an episode scans a volume.

The engine of each is a :class:`seggym.envs.kspace.volumes.engine.VolumeEngine`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from seggym.agents.policies import Baseline, EpisodeOrder, FixedOrder, Policy
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.errors import SeggymError
from seggym.kspace import orders
from seggym.kspace.keyed_random import uniform

# Stream of an episode's key that random allocation draws from, beside those of the engines.
_RANDOM_STREAM = 3
# Of the mean weight of a slice: nobody knows that a slice without a predicted heart has none.
_LEAST = 0.1


class RandomAllocation(Baseline):
    """Any legal line of any slice, in an order that belongs to the episode."""

    def __init__(self) -> None:
        super().__init__("random")
        self.identity = {"version": 1}

    def begin(self, engine: Any) -> None:
        """Draw the order of every volume."""
        self._scores = uniform(engine.keys, _RANDOM_STREAM, engine.num_actions)

    def act(self, engine: Any, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        return torch.where(legal, self._scores, -1).argmax(1)


class AllocatedCentreOut(Baseline):
    """Every slice from the centre of k-space outwards; the next line goes to the slice that is furthest behind.

    Slices are owed the same number of lines, or with ``proportional`` one in proportion to the area that the network
    predicts for the heart in the first image of the slice. Neither sees a label.
    """

    def __init__(self, name: str, proportional: bool) -> None:
        super().__init__(name)
        self.proportional = proportional
        self.identity = {"version": 1, "proportional": proportional}

    def begin(self, engine: Any) -> None:
        """Fix what every slice is owed."""
        self._weights = engine.real.double()
        if self.proportional:
            assert engine.segmentation is not None
            areas = (engine.segmentation.labels > 0).sum((1, 2)).view_as(engine.real) * engine.real
            mean = areas.sum(1, keepdim=True) / engine.real.sum(1, keepdim=True)
            self._weights = torch.where(mean > 0, (areas + _LEAST * mean) * engine.real, self._weights).double()

    def act(self, engine: Any, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        lines = legal.view(engine.num_envs, engine.num_slots, engine.num_lines)
        # A slice of weight w has had its share of t lines when t / w is that of the others.
        behind = (engine.lines_per_slice() + 0.5) / self._weights
        slot = torch.where(lines.any(2), behind, torch.inf).argmin(1)
        near = torch.from_numpy(orders.centre_out(engine.num_lines)).to(legal.device)
        there = lines[torch.arange(len(legal), device=legal.device), slot]
        return slot * engine.num_lines + near[there[:, near].byte().argmax(1)]


def volume_baselines(names: Sequence[str] | None, settings: VolumeSettings) -> list[Policy]:
    """The baselines ``names`` (default: all) for the actions of ``settings``."""
    matrix = settings.scan.matrix
    if settings.slices == "allocate":
        known: dict[str, Policy] = {
            "random": RandomAllocation(),
            "centre_out": AllocatedCentreOut("centre_out", proportional=False),
            "proportional": AllocatedCentreOut("proportional", proportional=True),
        }
    else:
        drawn = EpisodeOrder("random", lambda rng, budget: orders.uniformly_random(matrix, rng))
        drawn.identity = {"version": 1}
        known = {"random": drawn, "centre_out": FixedOrder("centre_out", np.asarray(orders.centre_out(matrix)))}
    chosen = list(known) if names is None else list(names)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SeggymError(
            f"baselines={unknown} are unknown where slices={settings.slices}, expected some of {', '.join(known)}"
        )
    return [known[name] for name in chosen]
