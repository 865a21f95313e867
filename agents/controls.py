"""What a policy has to beat to be called adaptive: itself with swapped observations, and the best fixed order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from seggym.agents import greedy
from seggym.agents.baselines import TuningGround, make_baselines, offered
from seggym.agents.bench import Bench
from seggym.agents.blind import BlindTwin
from seggym.agents.fixed_sets import best_fixed_order, fixed_order_areas
from seggym.agents.policies import Baseline, FixedOrder, Policy
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.kspace import view_orders

_FIXED_ORDERS = ("centre_out", "partial_fourier", "golden_angle", "sequential", "population_greedy")
SELECTION_SLICES = 192
"""Slices of the training, and of the validation patients, that the best of them is chosen on."""


def fixed_orders(ground: TuningGround) -> list[FixedOrder]:
    """The baselines of the trajectory that are one order for every patient.

    A learned policy's static order joins them in benchmarks/k1.
    """
    names = [name for name in _FIXED_ORDERS if name in offered(ground.acquisition.trajectory)]
    return [policy for policy in make_baselines(names, ground) if isinstance(policy, FixedOrder)]


def choose_best_order(
    bench: Bench,
    candidates: Sequence[FixedOrder],
    length: int,
    *,
    slices: int = SELECTION_SLICES,
    cache: Path | None = None,
    progress: bool = True,
) -> FixedOrder:
    """The one of ``candidates`` with the largest area by network A over training and validation patients.

    At most ``slices`` of each role take part, spread evenly; every patient is scored by a network that never saw it.
    """

    def find() -> dict[str, Any]:
        roles = [role for role in ("train", "val") if bench.provenance["split"].get(role) or role == "train"]
        engines = [bench.tuning_engine(role, slices, length) for role in roles]
        return {"areas": fixed_order_areas(engines, candidates, length, progress)}

    key = {
        **bench.key_of("train"),
        "search": "best_fixed_order",
        "orders": {policy.name: policy.order.tolist() for policy in candidates},
        "length": length,
        "max_slices": slices,
    }
    return best_fixed_order(greedy.cached_search(key, find, cache)["areas"], candidates)


def control_policies(bench: Bench, policy: Policy, ground: TuningGround) -> list[Policy]:
    """``policy`` with swapped observations (where it observes), and the best of :func:`fixed_orders`.

    The swapped observation is no retrained blind twin; :mod:`seggym.agents.blind` says what the difference is.
    """
    best = choose_best_order(bench, fixed_orders(ground), ground.length, cache=ground.cache, progress=ground.progress)
    return [*([] if isinstance(policy, Baseline) else [BlindTwin(policy)]), best]


class RemeasureFirst(Baseline):
    """Measures again what is known to be corrupted, nearest to DC first, and otherwise follows ``policy``.

    The simplest reaction to corruption, without learning: where lines may be measured again, a policy that reacts to it
    has to be compared with an order that does so too.
    """

    def __init__(self, policy: Baseline) -> None:
        super().__init__(f"{policy.name}_remeasuring")
        self.policy = policy
        self.anytime, self.every_budget = policy.anytime, policy.every_budget
        self.identity = None if policy.identity is None else {"remeasuring": 1, "policy": policy.identity}

    def begin(self, engine: KSpaceEngine) -> None:
        """New episodes for the policy behind."""
        self.policy.begin(engine)

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        near = torch.from_numpy(view_orders.plain_order(engine.acquisition)).to(legal.device)
        again = (engine.flagged & legal[:, : engine.num_lines])[:, near]
        chosen = near[again.byte().argmax(1)]
        return torch.where(again.any(1), chosen, self.policy.act(engine, observation, legal))
