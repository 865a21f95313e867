"""Policy search before the first step: weights of a scoring rule by an evolution strategy, on training patients.

A policy gradient improves the policy that draws its lines; what is evaluated is its most likely line, and of the two
only the first got better on the Hard scans (docs/results.md). An evolution strategy (CMA-ES: Hansen and Ostermeier,
Evolutionary Computation 9, 2001; for policies: Salimans et al., arXiv 1703.03864) compares deterministic policies. All
candidates of a generation measure the same scans with the same noise, so that they differ by their lines alone, and
only the last image of an episode is segmented: where the area counts, budgets are spread evenly over 1..T instead.
Candidates for a selector of samples begin with the same ones and are offered the same ones, and are worth the rewards
of their episodes. Labels of training patients are used, of nobody else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cma
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from seggym.agents.algorithms.scores import ACTOR_CRITICS
from seggym.agents.candidate_extractor import RULE_PARTS, CandidateExtractor
from seggym.agents.echo_extractor import LINE_PARTS, EchoExtractor
from seggym.configs.checking import require_at_least
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.pools import SELECTION_ENGINES, PooledEngine
from seggym.errors import SeggymError


@dataclass(frozen=True)
class Evolution:
    """``generations`` of ``population`` candidates with ``scans`` episodes each, new ones every generation.

    ``sigma`` is the standard deviation of the weights at the start. The result is the centre of the population,
    averaged over the second half of the generations, because the episodes of a generation are few.
    """

    generations: int = 24
    population: int = 12
    scans: int = 128
    sigma: float = 0.5

    def __post_init__(self) -> None:
        require_at_least(self, "evolution.", generations=1, population=4, scans=1)
        if not self.sigma > 0:
            raise SeggymError(f"evolution.sigma={self.sigma} must be positive")


def evolve(
    model: BaseAlgorithm, engine: KSpaceEngine | SelectionEngine | PooledEngine, settings: Evolution, seed: int
) -> list[float]:
    """Improve the weights of the rule of ``model`` in place, on episodes like those of ``engine``.

    Returns, for each generation, by how much the population was on average better than the weights at the start, on the
    same episodes. Raises :class:`SeggymError` for a policy that has no such weights, for scans of volumes, and where
    the axis of phase encoding is an action.
    """
    policy: Any = model.policy
    extractor = policy.pi_features_extractor if isinstance(policy, ACTOR_CRITICS) else None
    rate: Callable[[Tensor, np.ndarray], np.ndarray]
    # The start takes part in every generation.
    if isinstance(extractor, EchoExtractor) and not isinstance(engine, SELECTION_ENGINES):
        rate = _scans(extractor, engine, settings.scans, settings.population + 1)
    elif isinstance(extractor, CandidateExtractor) and isinstance(engine, SELECTION_ENGINES):
        rate = _episodes(extractor, engine, settings.scans, settings.population + 1)
    else:
        raise SeggymError(
            "evolution needs an actor with network.extractor=echo (scans) or candidates (active learning), whose "
            "weights it looks for: leave it out"
        )
    start = extractor.weights.detach().cpu().numpy().astype(np.float64)
    rng = np.random.default_rng(seed)
    options = {
        "popsize": settings.population,
        "randn": lambda *shape: rng.standard_normal(shape),
        "seed": np.nan,  # leaves NumPy's global generator alone
        "verbose": -9,
    }
    strategy = cma.CMAEvolutionStrategy(start, settings.sigma, options)
    centres, gains = [], []
    for _ in range(settings.generations):
        candidates = strategy.ask()
        keys = torch.from_numpy(rng.integers(2**62, size=settings.scans))
        values = rate(keys, np.stack([*candidates, start]))
        strategy.tell(candidates, list(-values[:-1]))
        centres.append(strategy.mean.copy())
        gains.append(float(values[:-1].mean() - values[-1]))
    centre = np.mean(centres[len(centres) // 2 :], axis=0)
    with torch.no_grad():
        extractor.weights.copy_(torch.from_numpy(centre))
    return gains


def _scans(
    extractor: EchoExtractor, engine: KSpaceEngine, count: int, policies: int
) -> Callable[[Tensor, np.ndarray], np.ndarray]:
    """Rates weights (C, F) by the scans of keys (S,): their mean final quality (C,)."""
    if isinstance(engine.settings, VolumeSettings):
        raise SeggymError("evolution follows single scans and no volumes: leave it out")
    if engine.settings.choose_axis:
        raise SeggymError("evolution scores lines, the first action of choose_axis=true is none: leave it out")
    parts = tuple(part for part in LINE_PARTS if part in engine.settings.observation)
    largest = engine.settings.budget_range[1]
    scans = engine.sibling(count, reward="terminal", objective="final", budget=(1, largest), observation=parts)
    copies, budgets = scans.sibling(policies * count), _budgets(engine, count)
    return lambda keys, weights: _values(extractor, scans, copies, keys, budgets, weights)


def _budgets(engine: KSpaceEngine, count: int) -> Tensor:
    """Budgets int64 (count,): spread evenly over 1..T where the area counts, else T."""
    largest = engine.settings.budget_range[1]
    if engine.settings.objective == "final":
        return torch.full((count,), largest, device=engine.device)
    return 1 + torch.arange(count, device=engine.device) * largest // count


def _values(
    extractor: EchoExtractor,
    scans: KSpaceEngine,
    copies: KSpaceEngine,
    keys: Tensor,
    budgets: Tensor,
    weights: np.ndarray,
) -> np.ndarray:
    """Mean final quality (C,), as rewarded, of scans ``keys`` int64 (S,) with lines by each of ``weights`` (C, F)."""
    count = len(keys)
    episodes = scans.draw(keys.to(scans.device))
    episodes.budgets.copy_(budgets)
    scans.begin(torch.arange(count, device=scans.device), episodes)
    copies.take(scans, torch.arange(count, device=scans.device).repeat(len(weights)))
    _play(extractor, copies, weights)
    return copies.rewarded.view(len(weights), count).mean(1).double().cpu().numpy()


def _episodes(
    extractor: CandidateExtractor, engine: SelectionEngine | PooledEngine, count: int, policies: int
) -> Callable[[Tensor, np.ndarray], np.ndarray]:
    """Rates weights (C, F) by the episodes of active learning of keys (E,): the mean sum of their rewards (C,).

    Several pools share the episodes equally.
    """
    pools = engine.pools if isinstance(engine, PooledEngine) else (engine,)
    if count % len(pools):
        raise SeggymError(f"evolution.scans={count} cannot be shared by {len(pools)} pools: choose a multiple of them")
    each = count // len(pools)
    starts = [pool.sibling(each, observation=RULE_PARTS) for pool in pools]
    copies = [start.sibling(policies * each) for start in starts]

    def rate(keys: Tensor, weights: np.ndarray) -> np.ndarray:
        found = []
        for start, copy, own in zip(starts, copies, keys.split(each), strict=True):
            slots = torch.arange(each, device=start.device)
            start.begin(slots, start.draw(own))
            copy.take(start, slots.repeat(len(weights)))
            found.append(_play(extractor, copy, weights).view(len(weights), each))
        return torch.cat(found, 1).mean(1).cpu().numpy()

    return rate


def _play(
    extractor: EchoExtractor | CandidateExtractor, copies: KSpaceEngine | SelectionEngine, weights: np.ndarray
) -> Tensor:
    """Run the episodes that have begun in ``copies`` to their ends, equally many by each of ``weights`` (C, F).

    Returns the sum of the rewards of each, float64 (N,).
    """
    own = torch.from_numpy(weights).to(extractor.weights).repeat_interleave(copies.num_envs // len(weights), 0)
    ended = torch.zeros(copies.num_envs, dtype=torch.bool, device=copies.device)
    total = torch.zeros(copies.num_envs, dtype=torch.float64, device=copies.device)
    while not bool(ended.all()):
        observation = {name: value.to(own.device) for name, value in copies.observe().items()}
        with torch.no_grad():
            scores = extractor.scores(observation, own).to(copies.device)
        # A line may be followed by the action to stop, which has no score.
        legal = copies.action_mask()[:, : scores.shape[1]]
        result = copies.step(scores.masked_fill(~legal, -torch.inf).argmax(1), ~ended)
        total += torch.stack(list(result.parts.values())).sum(0)
        ended |= result.terminated
    return total
