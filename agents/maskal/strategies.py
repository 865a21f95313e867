"""maskAL's strategies, and which of the others apply to images with instances."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from seggym.agents.strategies.naming import nearest
from seggym.agents.strategies.registry import STRATEGIES, make_strategy
from seggym.agents.strategies.strategy import Query, Strategy, uniform
from seggym.configs.checking import build
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError
from seggym.reward_models.instances.segmenter import McDropout

_NO_PATIENTS = "it goes by patients, volumes and heights, which single images do not have"
_PRIVILEGED = "it sees labels of the pool that nobody has annotated"
NOT_FOR_INSTANCES = {
    **dict.fromkeys(("patient_stratified", "evenly_spaced", "metadata_kcenter", "coreclr"), _NO_PATIENTS),
    **dict.fromkeys(("foreground_random", "greedy", "label_greedy"), _PRIVILEGED),
}
"""Strategies that cannot be had, and why."""


class InstanceState(SelectionState, Protocol):
    """What maskAL's strategies may ask beside what others may: certainty by Monte Carlo dropout."""

    def certainty(self, indices: np.ndarray, dropout: McDropout, threshold: float, mode: str) -> np.ndarray:
        """float64 (n,) in [0, 1], NaN without detections; ``threshold`` is the mask IoU of one observation.

        See :mod:`seggym.reward_models.instances.certainty`.
        """
        ...


@dataclass(frozen=True)
class CertaintyStrategy(Strategy):
    """Chooses by the certainty of images.

    An image without any detection says nothing, or that all in it is new. With ``empty`` "uncertain" its certainty is
    0, but at most the share ``empty_share`` of a query (rounded down) are such images, unless there are no others:
    empty images must not eat the budget. With "skip" it is never chosen, as in maskAL, and a query may be smaller.
    """

    mode: str = "mean"
    passes: int = 10
    method: str = "head"
    threshold: float = 0.5
    empty: str = "uncertain"
    empty_share: float = 0.2

    # 1 where the most certain image is wanted, -1 for the least.
    _sign: ClassVar[int]

    def __post_init__(self) -> None:
        McDropout(self.passes, self.method)
        if self.empty not in ("uncertain", "skip") or not 0 <= self.empty_share <= 1:
            raise SeggymError(
                f"empty_images={self.empty!r} and empty_share={self.empty_share}, expected uncertain or skip "
                "and a share"
            )

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        assert hasattr(state, "certainty"), "an InstanceState"
        known = state.certainty(candidates, McDropout(self.passes, self.method), self.threshold, self.mode)
        nothing = np.isnan(known)
        utilities = self._sign * np.where(nothing, 0.0, known)
        # Ties are broken at random, as everywhere.
        order = np.lexsort((uniform(generator, len(candidates)), -utilities))
        if self.empty == "skip":
            return Query(candidates[order[~nothing[order]][:n]], np.where(nothing, -np.inf, utilities))
        allowed = max(int(self.empty_share * n + 1e-9), n - int((~nothing).sum()))
        beyond = nothing[order] & (np.cumsum(nothing[order]) > allowed)
        return Query(candidates[order[~beyond][:n]], utilities)


@dataclass(frozen=True)
class Uncertainty(CertaintyStrategy):
    """The images that the network is least certain of (Blok et al. 2022)."""

    name: ClassVar[str] = "uncertainty"
    _sign: ClassVar[int] = -1


@dataclass(frozen=True)
class Certainty(CertaintyStrategy):
    """The images that the network is most certain of: maskAL's control."""

    name: ClassVar[str] = "certainty"
    _sign: ClassVar[int] = 1


_OWN: dict[str, type[CertaintyStrategy]] = {kind.name: kind for kind in (Uncertainty, Certainty)}
INSTANCE_STRATEGIES = (*_OWN, *(name for name in STRATEGIES if name not in NOT_FOR_INSTANCES))
"""Names of all strategies that apply to images with instances."""


def make_instance_strategy(name: str, common: Mapping[str, Any], options: Mapping[str, Any]) -> Strategy:
    """The strategy called ``name``: of maskAL's with the options ``common``, of the others with ``options``."""
    if name in NOT_FOR_INSTANCES:
        raise SeggymError(
            f"strategies={name!r} does not apply to instances: {NOT_FOR_INSTANCES[name]}; use another one"
        )
    if name not in INSTANCE_STRATEGIES:
        raise SeggymError(f"strategies={name!r} is unknown; {nearest(name, INSTANCE_STRATEGIES)}")
    if name in _OWN:
        return build(_OWN[name], {**common, **options}, f"strategy_options.{name}.")
    return make_strategy(name, **options)
