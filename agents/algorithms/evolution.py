"""Policy search before the first step: weights of a scoring rule by an evolution strategy, on training patients.

A policy gradient improves the policy that draws its lines; what is evaluated is its most likely line, and of the two
only the first got better on the Hard scans (docs/results.md). An evolution strategy (CMA-ES: Hansen and Ostermeier,
Evolutionary Computation 9, 2001; for policies: Salimans et al., arXiv 1703.03864) compares deterministic policies. All
candidates of a generation measure the same scans with the same noise, so that they differ by their lines alone, and
only the last image of an episode is segmented: where the area counts, budgets are spread evenly over 1..T instead.
Labels of training patients are used, of nobody else.
"""

from dataclasses import dataclass
from typing import Any

import cma
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from seggym.agents.algorithms.scores import ACTOR_CRITICS
from seggym.agents.echo_extractor import LINE_PARTS, EchoExtractor
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.errors import SeggymError


@dataclass(frozen=True)
class Evolution:
    """``generations`` of ``population`` candidates that measure ``scans`` scans each, new ones every generation.

    ``sigma`` is the standard deviation of the weights at the start. The result is the centre of the population,
    averaged over the second half of the generations, because the scans of a generation are few.
    """

    generations: int = 24
    population: int = 12
    scans: int = 128
    sigma: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("generations", 1), ("population", 4), ("scans", 1)):
            if getattr(self, name) < least:
                raise SeggymError(f"evolution.{name}={getattr(self, name)} must be at least {least}")
        if not self.sigma > 0:
            raise SeggymError(f"evolution.sigma={self.sigma} must be positive")


def evolve(model: BaseAlgorithm, engine: KSpaceEngine, settings: Evolution, seed: int) -> list[float]:
    """Improve the weights of the extractor ``echo`` of ``model`` in place, on episodes like those of ``engine``.

    Returns, for each generation, by how much the mean quality of the population was above that of the weights at the
    start on the same scans. Raises :class:`SeggymError` for a policy that has no such weights, for episodes over
    volumes, and where the axis of phase encoding is an action.
    """
    policy: Any = model.policy
    extractor = policy.pi_features_extractor if isinstance(policy, ACTOR_CRITICS) else None
    if not isinstance(extractor, EchoExtractor):
        raise SeggymError(
            "evolution needs an actor with network.extractor=echo, whose weights it looks for: leave it out"
        )
    if isinstance(engine.settings, VolumeSettings):
        raise SeggymError("evolution follows single scans and no volumes: leave it out")
    if engine.settings.choose_axis:
        raise SeggymError("evolution scores lines, the first action of choose_axis=true is none: leave it out")
    parts = tuple(part for part in LINE_PARTS if part in engine.settings.observation)
    largest = engine.settings.budget_range[1]
    scans = engine.sibling(settings.scans, reward="terminal", objective="final", budget=(1, largest), observation=parts)
    # The start takes part in every generation.
    copies = scans.sibling((settings.population + 1) * settings.scans)
    start = extractor.weights.detach().cpu().numpy().astype(np.float64)
    rng = np.random.default_rng(seed)
    options = {
        "popsize": settings.population,
        "randn": lambda *shape: rng.standard_normal(shape),
        "seed": np.nan,  # leaves NumPy's global generator alone
        "verbose": -9,
    }
    strategy = cma.CMAEvolutionStrategy(start, settings.sigma, options)
    budgets = _budgets(engine, settings.scans)
    centres, gains = [], []
    for _ in range(settings.generations):
        candidates = strategy.ask()
        keys = torch.from_numpy(rng.integers(2**62, size=settings.scans))
        values = _values(extractor, scans, copies, keys, budgets, np.stack([*candidates, start]))
        strategy.tell(candidates, list(-values[:-1]))
        centres.append(strategy.mean.copy())
        gains.append(float(values[:-1].mean() - values[-1]))
    centre = np.mean(centres[len(centres) // 2 :], axis=0)
    with torch.no_grad():
        extractor.weights.copy_(torch.from_numpy(centre))
    return gains


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
    """Mean final quality (C,) of the scans ``keys`` int64 (S,), with lines by each of ``weights`` (C, F)."""
    count = len(keys)
    episodes = scans.draw(keys.to(scans.device))
    episodes.budgets.copy_(budgets)
    scans.begin(torch.arange(count, device=scans.device), episodes)
    copies.take(scans, torch.arange(count, device=scans.device).repeat(len(weights)))
    own = torch.from_numpy(weights).to(extractor.weights).repeat_interleave(count, 0)
    ended = torch.zeros(copies.num_envs, dtype=torch.bool, device=copies.device)
    while not bool(ended.all()):
        observation = {name: value.to(own.device) for name, value in copies.observe().items()}
        with torch.no_grad():
            scores = extractor.scores(observation, own).to(copies.device)
        legal = copies.action_mask()[:, : copies.num_lines]
        ended |= copies.step(scores.masked_fill(~legal, -torch.inf).argmax(1), ~ended).terminated
    return copies.quality.view(len(weights), count).mean(1).double().cpu().numpy()
