"""Several pools in one batch, so that an agent learns what holds in all of them and not what one of them wants."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seggym.envs.batched import StepResult
from seggym.envs.selection.engine import Episodes, SelectionEngine
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.sources import build_engine
from seggym.errors import SeggymError

# What is asked of a batch of episodes, with a leading axis N each; the last ones where instances are outlined.
_OF_INSTANCES = ("instances", "vertices")
_BY_EPISODE = (
    "keys",
    "budgets",
    "remaining",
    "steps",
    "candidates",
    "count",
    "rounds",
    "minutes",
    "quality",
    "scores",
    *_OF_INSTANCES,
)


def build_engines(settings: Mapping[str, Any], num_envs: int) -> "SelectionEngine | PooledEngine":
    """The engine of keyword arguments; with a list as ``split_seed`` one that deals the roles anew for each of them."""
    return pooled(settings, num_envs, build_engine)


def pooled(
    settings: Mapping[str, Any], num_envs: int, build: Callable[[SelectionSettings, int], SelectionEngine]
) -> "SelectionEngine | PooledEngine":
    """What ``build`` makes of keyword arguments, once for each of the ``split_seed`` where those are several."""
    seeds = settings.get("split_seed")
    if not isinstance(seeds, (list, tuple)):
        return build(SelectionSettings(**settings), num_envs)
    if not seeds or num_envs % len(seeds):
        raise SeggymError(
            f"split_seed={list(seeds)} deals {len(seeds)} pools, expected at least one, and equally many of the "
            f"num_envs={num_envs} environments for each: change one of them"
        )
    chosen = [SelectionSettings(**{**settings, "split_seed": seed}) for seed in seeds]
    return PooledEngine([build(one, num_envs // len(seeds)) for one in chosen])


class PooledEngine:
    """Engines of equal shape side by side as one of N episodes: the first N / P environments are those of the first.

    Whatever an environment or a trainer asks of a :class:`~seggym.envs.selection.engine.SelectionEngine` it can ask
    here; ``pools`` are the engines themselves. ``settings`` and ``pool`` are those of the first: what the pools have in
    common can be read from them. Raises :class:`SeggymError` for engines that differ in their spaces.
    """

    def __init__(self, pools: Sequence[SelectionEngine]) -> None:
        first = pools[0]
        self.pools = tuple(pools)
        for other in pools:
            if other.num_actions != first.num_actions or other.pool.num_classes != first.pool.num_classes:
                raise SeggymError(
                    f"pools of {len(first.pool)} and {len(other.pool)} samples offer {first.num_actions} and "
                    f"{other.num_actions} candidates, expected equally many: lower candidates, or use action=candidates"
                )
        self.settings, self.pool, self.device, self.dtype = first.settings, first.pool, first.device, first.dtype
        self.num_actions, self.num_candidates = first.num_actions, first.num_candidates
        self.part_names = first.part_names
        self.num_envs = sum(part.num_envs for part in pools)
        self._starts = [0]
        for part in pools:
            self._starts.append(self._starts[-1] + part.num_envs)

    def __getattr__(self, name: str) -> Any:
        if name in _BY_EPISODE:
            return torch.cat([getattr(part, name) for part in self.pools])
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def _rows(self) -> Any:
        return zip(self.pools, self._starts[:-1], self._starts[1:], strict=True)

    def draw(self, keys: Tensor) -> Episodes:
        """The episodes that belong to ``keys``; an episode takes place in the pool of its environment."""
        return self.pools[0].draw(keys)

    def begin(self, slots: Tensor, episodes: Episodes) -> None:
        """Start ``episodes`` in the environments ``slots`` int64 (B,)."""
        for part, start, stop in self._rows():
            here = (slots >= start) & (slots < stop)
            if bool(here.any()):
                part.begin(slots[here] - start, Episodes(episodes.budgets[here], episodes.keys[here]))

    def action_mask(self) -> Tensor:
        """Legal candidates, bool (N, K)."""
        return torch.cat([part.action_mask() for part in self.pools])

    def step(self, actions: Tensor, active: Tensor | None = None) -> StepResult:
        """Annotate candidate ``actions`` int64 (N,) in every environment that is ``active`` bool (N,)."""
        results = [
            part.step(actions[start:stop], None if active is None else active[start:stop])
            for part, start, stop in self._rows()
        ]
        return StepResult(
            {name: torch.cat([result.parts[name] for result in results]) for name in self.part_names},
            torch.cat([result.terminated for result in results]),
            torch.cat([result.illegal for result in results]),
        )

    def observe(self) -> dict[str, Tensor]:
        """The parts of the observation, each (N, ...)."""
        seen = [part.observe() for part in self.pools]
        return {name: torch.cat([one[name] for one in seen]) for name in seen[0]}

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on exactly; copies."""
        return {"pools": [part.state_dict() for part in self.pools]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state`` of an engine with as many of the same pools."""
        if len(state.get("pools", ())) != len(self.pools):
            raise SeggymError(
                f"the state of the environments is not one of {len(self.pools)} pools; make the environments with the "
                "same split_seed"
            )
        for part, saved in zip(self.pools, state["pools"], strict=True):
            part.load_state_dict(saved)


SELECTION_ENGINES = (SelectionEngine, PooledEngine)
