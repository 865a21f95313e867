"""A warm start from what every line would have gained: lower variance than rewards of the line that was measured.

At each state that the policy reaches several lines are tried, with labels, on training patients only, without measuring
them (:mod:`seggym.envs.kspace.lookahead`). Their gains in quality are the exact one-step advantages of those lines at
that state, and the policy climbs the gain that it expects of them: an all-action policy gradient (Sutton et al.,
"Comparing policy-gradient algorithms", 2001; Asadi et al., "Mean actor critic", 2017) on the states of the policy
itself, as in DAgger (Ross et al., AISTATS 2011). One step is all that it looks ahead; what pays later is left to the
algorithm that follows. One thing cannot be left to it: to measure again what was measured well changes nothing, which
one step ahead looks better than a new line that may be corrupted, and a policy that learns so never gets anywhere. Such
a line counts as the worst of those that were tried.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from seggym.agents.algorithms.scores import ACTOR_CRITICS
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.lookahead import try_lines
from seggym.errors import SeggymError


@dataclass(frozen=True)
class WarmStart:
    """How long and how boldly: ``rounds`` of one episode in every environment, then ``epochs`` over its states.

    At every state ``candidates`` lines are tried, drawn without replacement from the policy at ``temperature``; the
    gradient's step is ``learning_rate``, falling to a tenth, for minibatches of ``batch_size`` states.
    """

    rounds: int = 16
    candidates: int = 12
    temperature: float = 2.0
    epochs: int = 4
    batch_size: int = 256
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("rounds", "candidates", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SeggymError(f"warm_start.{name}={getattr(self, name)} must be at least 1")
        if self.candidates < 2:
            raise SeggymError("warm_start.candidates=1 compares nothing, expected at least 2")
        if not (self.temperature > 0 and self.learning_rate > 0):
            raise SeggymError("warm_start.temperature and warm_start.learning_rate must be positive")


@dataclass(frozen=True)
class _States:
    """S states: the observation, the lines that were tried, and the gain of each, float (S, K), NaN where illegal."""

    observation: dict[str, Tensor]
    lines: Tensor
    gains: Tensor

    def batches(self, size: int, generator: torch.Generator) -> Iterator["_States"]:
        order = torch.randperm(len(self.lines), generator=generator).to(self.lines.device)
        for rows in order.split(size):
            seen = {name: value[rows] for name, value in self.observation.items()}
            yield _States(seen, self.lines[rows], self.gains[rows])


def climb_gains(model: BaseAlgorithm, engine: KSpaceEngine, settings: WarmStart, seed: int) -> list[float]:
    """Improve the actor of ``model`` in place on episodes of ``engine``; the mean final quality of each round.

    The episodes that ``engine`` was running are abandoned: begin new ones afterwards. Raises :class:`SeggymError` for a
    policy without an actor.
    """
    policy: Any = model.policy
    if not isinstance(policy, ACTOR_CRITICS):
        raise SeggymError(f"warm_start needs an actor, {type(model).__name__} has none: leave it out")
    parameters = [*policy.pi_features_extractor.parameters(), *policy.mlp_extractor.policy_net.parameters()]
    parameters += list(policy.action_net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, settings.rounds)
    generator = torch.Generator().manual_seed(seed)
    qualities = []
    for _ in range(settings.rounds):
        policy.set_training_mode(False)
        states = _visit(policy, engine, settings, generator)
        qualities.append(float(engine.quality.mean()))
        policy.set_training_mode(True)
        for _ in range(settings.epochs):
            for batch in states.batches(settings.batch_size, generator):
                optimizer.zero_grad()
                _loss(policy, batch).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        schedule.step()
    return qualities


def _visit(policy: Any, engine: KSpaceEngine, settings: WarmStart, generator: torch.Generator) -> _States:
    """One episode of the largest budget in every environment, acted by the policy; everything that was tried in it."""
    keys = torch.randint(2**62, (engine.num_envs,), generator=generator)
    every = torch.arange(engine.num_envs, device=engine.device)
    episodes = engine.draw(keys)
    episodes.budgets.fill_(engine.settings.budget_range[1])
    engine.begin(every, episodes)
    seen: list[dict[str, Tensor]] = []
    tried: list[tuple[Tensor, Tensor]] = []
    ended = torch.zeros(engine.num_envs, dtype=torch.bool, device=engine.device)
    while not bool(ended.all()):
        legal = engine.action_mask()[:, : engine.num_lines]
        observation = {name: value.to(policy.device) for name, value in engine.observe().items()}
        with torch.no_grad():
            scores = policy.get_distribution(observation).distribution.logits[:, : engine.num_lines]
        scores = scores.to(engine.device).masked_fill(~legal, -torch.inf)
        # Sorting perturbed scores is sampling without replacement (Gumbel's trick).
        uniform = torch.rand(scores.shape, generator=generator).clamp_(1e-9, 1 - 1e-7).to(engine.device)
        noise = -(-uniform.log()).log()
        lines = (scores / settings.temperature + noise).topk(min(settings.candidates, scores.shape[1]), 1).indices
        gains = try_lines(engine, every.repeat_interleave(lines.shape[1]), lines.flatten()).view(lines.shape)
        gains = (gains - engine.quality[:, None]).masked_fill(~legal.gather(1, lines) | ended[:, None], torch.nan)
        pointless = (engine.acquired & ~engine.scanner.flagged).gather(1, lines) & ~gains.isnan()
        worst = gains.masked_fill(pointless, torch.inf).nan_to_num(torch.inf).amin(1, keepdim=True)
        gains = torch.where(pointless, torch.minimum(gains, worst), gains)
        seen.append(observation)
        tried.append((lines, gains.to(torch.float32)))
        # The same noise at the temperature of the policy itself: one sample of it.
        ended |= engine.step((scores + noise).argmax(1), ~ended).terminated
    observation = {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
    lines, gains = (torch.cat(parts).to(policy.device) for parts in zip(*tried, strict=True))
    kept = (~gains.isnan()).sum(1) >= 2
    return _States({name: value[kept] for name, value in observation.items()}, lines[kept], gains[kept])


def _loss(policy: Any, batch: _States) -> Tensor:
    """Minus the gain that the policy expects of the lines that were tried, in units of its spread over them."""
    logits = policy.get_distribution(batch.observation).distribution.logits.gather(1, batch.lines)
    known = ~batch.gains.isnan()
    gains = torch.where(known, batch.gains, 0)
    mean = gains.sum(1, keepdim=True) / known.sum(1, keepdim=True)
    relative = torch.where(known, gains - mean, 0)
    spread = (relative.square().sum() / known.sum()).sqrt().clamp_min(1e-12)
    chosen = logits.masked_fill(~known, -torch.inf).softmax(1)
    return -(chosen * relative).sum(1).mean() / spread
