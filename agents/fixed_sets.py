"""Lines chosen without looking at the patient: a set for every budget, a learned policy's static order, the best order.

All of them are tuned on training patients (the best order is chosen with validation patients as well), scored by the
environment's network. They are what an adaptive policy has to beat before it can be called adaptive.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from seggym.agents.baselines import TuningGround
from seggym.agents.greedy import begin_training_episodes
from seggym.agents.policies import Baseline, FixedOrder, Policy, first_line
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.lookahead import try_lines
from seggym.errors import SeggymError
from seggym.kspace import view_orders
from seggym.kspace.acquisition import Acquisition

EVALUATIONS = 10_000
"""Images that the search for the set of one budget may segment before it stops exchanging lines."""
_LEAST_GAIN = 1e-6  # of the mean quality, for an exchange: what lies below is rounding


class FixedSets(Baseline):
    """For each budget its own set of lines, the same for all scans, measured from the centre outwards.

    ``sets`` maps a budget to its lines. A set has no smaller sets inside, so every protocol runs it anew for every
    budget; it knows the budget beforehand, which makes it the strongest of the fixed comparators.
    """

    anytime = False
    every_budget = True

    def __init__(self, name: str, sets: Mapping[int, Sequence[int]]) -> None:
        super().__init__(name)
        self.sets = {int(budget): [int(line) for line in lines] for budget, lines in sets.items()}
        for budget, lines in self.sets.items():
            if len(set(lines)) != budget or len(lines) != budget:
                raise SeggymError(
                    f"the set of policy {name} for budget {budget} has the lines {lines}, expected {budget} different "
                    "ones; search for it again"
                )
        self.identity = {"sets": {str(budget): sorted(lines) for budget, lines in self.sets.items()}}
        self._orders = torch.zeros(0, 0, dtype=torch.int64)

    def begin(self, engine: KSpaceEngine) -> None:
        """Look up the set of every scan's budget."""
        rows: dict[int, np.ndarray] = {}
        for budget in set(engine.budgets.tolist()):
            if budget not in self.sets and budget > 0:
                raise SeggymError(
                    f"policy {self.name} has no set for budget {budget}, only for {sorted(self.sets)}; search for the "
                    "sets with the budgets of this evaluation"
                )
            rows[budget] = order_of(self.sets.get(budget, []), engine.acquisition)
        self._orders = torch.from_numpy(np.stack([rows[budget] for budget in engine.budgets.tolist()]))
        self._orders = self._orders.to(engine.device)

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        return first_line(self._orders, engine, legal)


def order_of(lines: Sequence[int], acquisition: Acquisition) -> np.ndarray:
    """``lines`` from the centre outwards, then all others so: a permutation int64 (M,)."""
    near = view_orders.plain_order(acquisition).tolist()
    chosen = set(lines)
    return np.asarray([line for line in near if line in chosen] + [line for line in near if line not in chosen])


def find_fixed_sets(
    ground: TuningGround, order: np.ndarray, budgets: Sequence[int], evaluations: int = EVALUATIONS
) -> FixedSets:
    """The best set that was found for each of ``budgets``, from ``order`` (population-greedy) by exchanging lines.

    The search for a budget starts from the better of two sets: the first lines of ``order``, and the set found for the
    budget before with the best line added. Then each line in turn, the oldest first, is exchanged for the one within
    the ground's window that raises the mean quality of the training slices most, until a whole round brings nothing or
    ``evaluations`` images have been segmented. So no set is worse on the training slices than the greedy one.
    """

    def find() -> dict[str, Any]:
        engine = ground.engine()
        if engine.settings.lines_per_step > 1:
            raise SeggymError(
                f"lines_per_step={engine.settings.lines_per_step}: sets of lines are searched for line by line, "
                "expected lines_per_step=1; leave the fixed sets out"
            )
        sets: dict[str, list[int]] = {}
        qualities: dict[str, dict[str, float]] = {}
        last: list[int] = []
        for budget in tqdm(sorted(budgets), desc="fixed sets: budgets", disable=not ground.progress):
            search = _SetSearch(engine, budget, ground.window, evaluations)
            last, quality = search.run([line for line in order.tolist() if line not in search.initial][:budget], last)
            sets[str(budget)] = last
            qualities[str(budget)] = {"greedy": search.greedy, "found": quality}
        return {"sets": sets, "quality": qualities}

    what = {
        "search": "fixed_sets",
        "window": ground.window,
        "order": order.tolist(),
        "budgets": sorted(budgets),
        "evaluations": evaluations,
    }
    found = ground.search(what, find)
    return FixedSets("fixed_sets", {int(budget): lines for budget, lines in found["sets"].items()})


class _SetSearch:
    """The search for one budget on the training slices in ``engine``."""

    def __init__(self, engine: KSpaceEngine, budget: int, window: int, evaluations: int) -> None:
        self.engine, self.budget, self.left = engine, budget, evaluations
        begin_training_episodes(engine, budget)
        self.initial = set(engine.acquired[0].nonzero()[:, 0].tolist())
        legal = (engine.action_mask()[0, : engine.num_lines] & ~engine.acquired[0]).cpu().numpy()
        near = view_orders.near_centre(engine.acquisition, window).tolist()
        self.candidates = [line for line in near if legal[line]]
        self.greedy = float("nan")

    def run(self, first: list[int], smaller: list[int]) -> tuple[list[int], float]:
        """The set that was found, oldest line first, and its mean quality."""
        chosen, quality = first, self._with(first[:-1], first[-1:])[0]
        self.greedy = quality
        if len(smaller) == self.budget - 1 and smaller:
            line, found = self._best(smaller)
            if found > quality + _LEAST_GAIN:
                chosen, quality = [*smaller, line], found
        unchanged = 0
        while unchanged < self.budget and self.left > 0:
            rest = chosen[1:]
            line, found = self._best(rest)
            if found > quality + _LEAST_GAIN:
                chosen, quality, unchanged = [*rest, line], found, 0
            else:
                chosen, unchanged = [*rest, chosen[0]], unchanged + 1
        return chosen, quality

    def _best(self, lines: list[int]) -> tuple[int, float]:
        """The line that makes the best set with ``lines``, and the quality of that set."""
        candidates = [line for line in self.candidates if line not in lines]
        if not candidates:
            return -1, float("-inf")
        means = self._with(lines, candidates)
        return candidates[int(np.argmax(means))], max(means)

    def _with(self, lines: list[int], candidates: list[int]) -> list[float]:
        """Mean quality of ``lines`` with each of ``candidates``."""
        engine = self.engine
        begin_training_episodes(engine, self.budget)
        every = torch.arange(engine.num_envs, device=engine.device)
        for line in lines:
            engine.step(torch.full_like(every, line))
        tried = torch.tensor(candidates, device=engine.device).repeat_interleave(len(every))
        self.left -= len(tried) + len(lines) * len(every)
        found = try_lines(engine, every.repeat(len(candidates)), tried)
        return found.view(len(candidates), -1).double().mean(1).tolist()


def static_order(policy: Policy, engine: KSpaceEngine, length: int) -> np.ndarray:
    """The order (M,) of ``policy`` where it must choose the same line for everybody, by the votes of training slices.

    All scans of ``engine`` are measured along the order so far; every scan votes for the line that the policy would
    measure next (among those not measured yet), the line with the most votes (of two, the nearer to DC) is measured in
    all of them. After ``length`` lines the rest follows centre-out. The policy sees the observations of ``engine``,
    whose patients it may have been trained on: nothing is scored here.
    """
    begin_training_episodes(engine, length)
    near = torch.from_numpy(view_orders.plain_order(engine.acquisition)).to(engine.device)
    every = torch.arange(engine.num_envs, device=engine.device)
    found: list[int] = []
    for _ in range(length):
        legal = engine.action_mask()
        legal[:, : engine.num_lines] &= ~engine.acquired
        legal[:, engine.num_lines :] = False
        if not bool(legal.any()):
            break
        chosen = policy.act(engine, engine.observe(), legal)
        votes = torch.bincount(chosen, minlength=engine.num_lines)[near]
        found.append(int(near[int(votes.argmax())]))
        engine.step(torch.full_like(every, found[-1]))
    first = [*engine.acquisition.initial_views.tolist(), *found]
    return np.asarray(first + [line for line in near.tolist() if line not in first])


def fixed_order_areas(
    engines: Sequence[KSpaceEngine], candidates: Sequence[FixedOrder], length: int, progress: bool = True
) -> dict[str, float]:
    """Mean quality over lines 1..``length`` and over all slices of ``engines``, for each candidate by name."""
    areas: dict[str, float] = {}
    for policy in tqdm(candidates, desc="best fixed order", disable=not progress):
        total, count = 0.0, 0
        for engine in engines:
            begin_training_episodes(engine, length)
            policy.begin(engine)
            area = torch.zeros(engine.num_envs, dtype=torch.float64, device=engine.device)
            for _ in range(length):
                engine.step(policy.act(engine, {}, engine.action_mask()))
                area += engine.quality
            total, count = total + float(area.sum()) / length, count + engine.num_envs
        areas[policy.name] = total / count
    return areas


def best_fixed_order(areas: Mapping[str, float], candidates: Sequence[FixedOrder]) -> FixedOrder:
    """The candidate with the largest area, as the policy ``best_fixed_order``."""
    best = max(candidates, key=lambda policy: areas[policy.name])
    return FixedOrder("best_fixed_order", best.order)
