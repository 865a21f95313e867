"""Candidates scored by what annotating them really gains: a selector's policy fitted by looking ahead in training.

An episode of active learning tells how good fifteen choices were together, and little of which of them mattered. On
training patients more can be known: at a query every candidate is tried out in a copy of the episode, the learner is
retrained with it alone, and its gain on the reward set is recorded beside what is observed of it. The scoring network
then learns to predict gains, standardised over the candidates of a query, by least squares (learning active learning:
Konyushkova, Sznitman and Fua, NeurIPS 2017; every action of a state counts, as in Asadi et al., "Mean actor critic",
2017). Its own choices lead elsewhere than those that it learned from, so later rounds visit states with it (DAgger:
Ross, Gordon and Bagnell, AISTATS 2011). Labels of training patients are used, of nobody else, and none by the policy.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from seggym.agents.algorithms.scores import ACTOR_CRITICS, best_legal
from seggym.agents.candidate_extractor import CandidateExtractor
from seggym.configs.checking import require_at_least
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.pools import SELECTION_ENGINES, PooledEngine
from seggym.envs.selection.sources import build_engine
from seggym.errors import SeggymError

# Standard deviation of the scores over a query after the fit: as decided as the rule at the start, margin plus
# disagreement, is. Predictions are smaller than what they predict, and a policy gradient needs choices that are made.
_DECIDED = 2**0.5
# Every so manieth pool says when to stop, and is not learned from.
_HELD_OUT = 4


@dataclass(frozen=True)
class Lookahead:
    """``episodes`` in each of ``pools`` deals of the training patients, which the ``rounds`` share.

    At every ``every``-th query all candidates are tried. A pick is random, the best one by looking ahead, or the
    policy's, a third each. After every round the network learns from all pools so far but every fourth, which says
    after which of the ``epochs`` it was best; ``batch_size`` counts queries.
    """

    pools: int = 16
    rounds: int = 2
    episodes: int = 8
    every: int = 2
    epochs: int = 24
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        counts = {"pools": _HELD_OUT, "rounds": 1, "episodes": 1, "every": 1, "epochs": 1, "batch_size": 1}
        require_at_least(self, "lookahead.", **counts, weight_decay=0)
        if self.pools % self.rounds or self.pools // self.rounds < _HELD_OUT:
            raise SeggymError(
                f"lookahead.pools={self.pools} cannot be shared by lookahead.rounds={self.rounds}: choose a multiple, "
                f"at least {_HELD_OUT} for each"
            )
        if not self.learning_rate > 0:
            raise SeggymError(f"lookahead.learning_rate={self.learning_rate} must be positive")


@dataclass(frozen=True)
class Queries:
    """Q queries: what was observed, parts (Q, ...), and the gain of each candidate, float (Q, K), NaN where illegal."""

    observation: dict[str, Tensor]
    gains: Tensor

    def __len__(self) -> int:
        return len(self.gains)

    def of(self, rows: Tensor) -> "Queries":
        """Those of ``rows`` int64 (B,)."""
        return Queries({name: value[rows] for name, value in self.observation.items()}, self.gains[rows])

    @property
    def targets(self) -> Tensor:
        """Gains with mean 0 and standard deviation 1 over the legal candidates of a query, 0 elsewhere."""
        legal = ~self.gains.isnan()
        count = legal.sum(1, keepdim=True).clamp_min(1)
        centred = torch.where(legal, self.gains - self.gains.nanmean(1, keepdim=True), 0)
        spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
        return torch.where(spread > 0, centred / spread.clamp_min(1e-12), 0)


def joined(parts: Sequence[Queries]) -> Queries:
    """All queries of ``parts``, in order."""
    seen = {name: torch.cat([part.observation[name] for part in parts]) for name in parts[0].observation}
    return Queries(seen, torch.cat([part.gains for part in parts]))


def fit_gains(
    model: BaseAlgorithm, engine: KSpaceEngine | SelectionEngine | PooledEngine, settings: Lookahead, seed: int
) -> list[float]:
    """Fit rule and network of ``model`` in place to gains in deals 0, 1, ... of the training patients of ``engine``.

    Returns :func:`captured` in the held-out pools after each round. ``engine`` itself is left alone. Raises
    :class:`SeggymError` for a policy without such an actor, and for other learners than the probe.
    """
    policy: Any = model.policy
    extractor = policy.pi_features_extractor if isinstance(policy, ACTOR_CRITICS) else None
    if not isinstance(extractor, CandidateExtractor) or not isinstance(engine, SELECTION_ENGINES):
        raise SeggymError(
            "lookahead needs an actor with network.extractor=candidates in active learning, whose scores it fits: "
            "leave it out"
        )
    if engine.settings.learner != "probe":
        raise SeggymError(
            f"lookahead retrains the learner with every candidate, which learner={engine.settings.learner!r} takes too "
            "long for: leave it out, or use the probe"
        )
    generator = torch.Generator().manual_seed(seed)
    learned: list[Queries] = []
    held: list[Queries] = []
    found = []
    for number in range(settings.pools):
        with torch.random.fork_rng():
            # Networks that are loaded for the first time draw numbers, which would change those of the training.
            pool = build_engine(replace(engine.settings, split_seed=number), settings.episodes)
        queries = collect(policy, pool, settings.every, generator)
        (held if number % _HELD_OUT == _HELD_OUT - 1 else learned).append(queries)
        if (number + 1) % (settings.pools // settings.rounds) == 0:
            fit(extractor, joined(learned), joined(held), settings, generator)
            found.append(captured(extractor, joined(held)))
    return found


def collect(policy: Any, engine: SelectionEngine, every: int, generator: torch.Generator) -> Queries:
    """One episode in every environment of ``engine``, and the gains at every ``every``-th of its queries."""
    slots = torch.arange(engine.num_envs, device=engine.device)
    engine.begin(slots, engine.draw(torch.randint(2**62, (engine.num_envs,), generator=generator)))
    seen: list[dict[str, Tensor]] = []
    gains: list[Tensor] = []
    ended = torch.zeros(engine.num_envs, dtype=torch.bool, device=engine.device)
    first = int(torch.randint(every, (1,), generator=generator))
    step = 0
    while not bool(ended.all()):
        observation, legal = engine.observe(), engine.action_mask()
        random = torch.rand(legal.shape, generator=generator).to(engine.device)
        chosen = best_legal(policy, observation, legal)
        best = chosen
        if step % every == first:
            ahead = look_ahead(engine, legal & ~ended[:, None])
            useful = ((~ahead.isnan()).sum(1) > 1).nonzero()[:, 0]
            seen.append({name: value[useful].to(policy.device) for name, value in observation.items()})
            gains.append(ahead[useful].to(policy.device, torch.float32))
            best = ahead.nan_to_num(-torch.inf).argmax(1)
        who = torch.randint(3, (engine.num_envs,), generator=generator).to(engine.device)
        anyone = random.masked_fill(~legal, -1).argmax(1)
        actions = torch.where(who == 0, anyone, torch.where(who == 1, best, chosen))
        ended |= engine.step(actions, ~ended).terminated
        step += 1
    return joined([Queries(one, other) for one, other in zip(seen, gains, strict=True)])


def look_ahead(engine: SelectionEngine, legal: Tensor) -> Tensor:
    """Gain in quality if each of the candidates that are ``legal`` bool (N, K) alone were annotated, NaN elsewhere.

    One episode at a time, since each stands for K retrainings.
    """
    gains = torch.full(legal.shape, torch.nan, dtype=engine.dtype, device=engine.device)
    for slot in range(engine.num_envs):
        rows = legal[slot].nonzero()[:, 0]
        if len(rows):
            gains[slot, rows] = engine.lookahead(slot, engine.candidates[slot, rows]) - engine.quality[slot]
    return gains


def fit(
    extractor: CandidateExtractor, learned: Queries, held: Queries, settings: Lookahead, generator: torch.Generator
) -> None:
    """Fit the scores of ``extractor`` to the standardised gains of ``learned``, from no rule and no correction on.

    It ends as it was after the epoch in which those of ``held`` were predicted best; where no epoch says more than
    nothing about those, it stays as it is.
    """
    kept = copy.deepcopy(extractor.state_dict())
    with torch.no_grad():
        extractor.weights.zero_()
        extractor.correction.zero_()
        best = float(_error(extractor, held))
    improved = False
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(learned), generator=generator).split(settings.batch_size):
            optimizer.zero_grad()
            _error(extractor, learned.of(rows.to(learned.gains.device))).backward()
            optimizer.step()
        with torch.no_grad():
            error = float(_error(extractor, held))
        if error < best:
            best, kept, improved = error, copy.deepcopy(extractor.state_dict()), True
    extractor.load_state_dict(kept)
    if not improved:
        return
    with torch.no_grad():
        spread = float((_centred(extractor, held).square().sum() / (~held.gains.isnan()).sum()).sqrt())
        for parameter in (extractor.weights, extractor.correction):
            parameter.mul_(_DECIDED / max(spread, 1e-6))


def _centred(extractor: CandidateExtractor, queries: Queries) -> Tensor:
    """Scores, without ``strength``, less their mean over the legal candidates, 0 for others (Q, K)."""
    legal = ~queries.gains.isnan()
    scores = extractor(queries.observation)[:, : extractor.num_scores] / extractor.strength * legal
    return (scores - scores.sum(1, keepdim=True) / legal.sum(1, keepdim=True)) * legal


def _error(extractor: CandidateExtractor, queries: Queries) -> Tensor:
    """Mean squared error of the standardised gains; 1 is what nothing but zeros has."""
    legal = ~queries.gains.isnan()
    return (_centred(extractor, queries) - queries.targets).square().sum() / legal.sum()


def captured(extractor: CandidateExtractor, queries: Queries) -> float:
    """What the most likely candidates gain over a random one, as a share of what the best ones gain over it."""
    with torch.no_grad():
        scores = extractor(queries.observation)[:, : extractor.num_scores]
    chosen = scores.masked_fill(queries.gains.isnan(), -torch.inf).argmax(1, keepdim=True)
    usual = queries.gains.nanmean(1)
    best = queries.gains.nan_to_num(-torch.inf).amax(1)
    return float((queries.gains.gather(1, chosen)[:, 0] - usual).sum() / (best - usual).sum().clamp_min(1e-12))
