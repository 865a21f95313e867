"""A warm start by rollouts: what several lines at the same state lead to, if the policy itself goes on from there.

At the states that the policy reaches several lines are tried in copies of the scan, and the policy measures the next
lines of each copy; the mean quality over the lines that are left is the value of the line. All copies of a scan share
noise and corruption, so that their values differ by the lines alone. The policy then climbs the value that it expects
of the lines that were tried, which is a policy improvement step from rollouts (Lagoudakis and Parr, ICML 2003) with an
all-action gradient (Asadi et al., "Mean actor critic", 2017). Rollouts follow the most likely line, as an evaluation
does: a policy that is improved where it still chooses at random gets better at choosing at random. Labels of training
patients are used, of nobody else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from seggym.agents.algorithms.scores import ACTOR_CRITICS, best_legal
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.errors import SeggymError


@dataclass(frozen=True)
class WarmStart:
    """How long and how far ahead.

    ``rounds`` of one episode in ``scans`` environments; every ``every`` lines ``candidates`` lines are tried, the most
    likely one and others drawn at ``temperature``, each followed for ``horizon`` further lines, after which the quality
    is taken to stay. A scan leaves the most likely path with probability ``explore`` per line. The states of a round
    are gone through ``epochs`` times in minibatches of ``batch_size``, with steps of ``learning_rate``, falling to a
    fifth.
    """

    rounds: int = 20
    scans: int = 48
    candidates: int = 6
    horizon: int = 6
    every: int = 3
    temperature: float = 1.5
    explore: float = 0.1
    epochs: int = 6
    batch_size: int = 128
    learning_rate: float = 1.5e-4

    def __post_init__(self) -> None:
        for name in ("rounds", "scans", "candidates", "every", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SeggymError(f"warm_start.{name}={getattr(self, name)} must be at least 1")
        if self.candidates < 2:
            raise SeggymError("warm_start.candidates=1 compares nothing, expected at least 2")
        if self.horizon < 0 or not 0 <= self.explore <= 1:
            raise SeggymError("warm_start.horizon must not be negative, and warm_start.explore is a probability")
        if not (self.temperature > 0 and self.learning_rate > 0):
            raise SeggymError("warm_start.temperature and warm_start.learning_rate must be positive")


@dataclass(frozen=True)
class _States:
    """S states: the observation, the lines that were tried, and the value of each, float (S, K), NaN where illegal."""

    observation: dict[str, Tensor]
    lines: Tensor
    values: Tensor

    def batches(self, size: int, generator: torch.Generator) -> Iterator["_States"]:
        order = torch.randperm(len(self.lines), generator=generator).to(self.lines.device)
        for rows in order.split(size):
            seen = {name: value[rows] for name, value in self.observation.items()}
            yield _States(seen, self.lines[rows], self.values[rows])


def climb_values(model: BaseAlgorithm, engine: KSpaceEngine, settings: WarmStart, seed: int) -> list[float]:
    """Improve the actor of ``model`` in place on episodes like those of ``engine``, which itself is left alone.

    Returns the mean final quality of each round. Raises :class:`SeggymError` for a policy without an actor, for
    episodes over volumes, and where the axis of phase encoding is an action.
    """
    policy: Any = model.policy
    if not isinstance(policy, ACTOR_CRITICS):
        raise SeggymError(f"warm_start needs an actor, {type(model).__name__} has none: leave it out")
    if isinstance(engine.settings, VolumeSettings):
        raise SeggymError("warm_start follows single scans and no volumes: leave it out")
    if engine.settings.choose_axis:
        raise SeggymError("warm_start tries lines, the first action of choose_axis=true is none: leave it out")
    scans, branches = engine.sibling(settings.scans), engine.sibling(settings.scans * settings.candidates)
    parameters = [*policy.pi_features_extractor.parameters(), *policy.mlp_extractor.policy_net.parameters()]
    parameters += list(policy.action_net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, settings.rounds)
    generator = torch.Generator().manual_seed(seed)
    qualities = []
    for _ in range(settings.rounds):
        policy.set_training_mode(False)
        states = _visit(policy, scans, branches, settings, generator)
        qualities.append(float(scans.quality.mean()))
        policy.set_training_mode(True)
        for _ in range(settings.epochs):
            for batch in states.batches(settings.batch_size, generator):
                optimizer.zero_grad()
                _loss(policy, batch).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        schedule.step()
    return qualities


def _visit(
    policy: Any, scans: KSpaceEngine, branches: KSpaceEngine, settings: WarmStart, generator: torch.Generator
) -> _States:
    """One episode of the largest budget in every scan, acted by the policy; everything that was tried in it."""
    keys = torch.randint(2**62, (scans.num_envs,), generator=generator)
    episodes = scans.draw(keys)
    episodes.budgets.fill_(scans.settings.budget_range[1])
    scans.begin(torch.arange(scans.num_envs, device=scans.device), episodes)
    seen: list[dict[str, Tensor]] = []
    tried: list[tuple[Tensor, Tensor]] = []
    ended = torch.zeros(scans.num_envs, dtype=torch.bool, device=scans.device)
    # Rounds begin at different lines, so that all are tried at some time, but within the shortest episode.
    steps = -(-scans.settings.budget_range[1] // scans.settings.lines_per_step)
    number = -int(torch.randint(min(settings.every, steps), (1,), generator=generator))
    while not bool(ended.all()):
        legal = scans.action_mask()
        observation = {name: value.to(policy.device) for name, value in scans.observe().items()}
        with torch.no_grad():
            scores = policy.get_distribution(observation).distribution.logits.to(scans.device)
        scores = scores.masked_fill(~legal, -torch.inf)
        best = scores.argmax(1)
        # Sorting perturbed scores is sampling without replacement (Gumbel's trick).
        uniform = torch.rand(scores.shape, generator=generator).clamp_(1e-9, 1 - 1e-7).to(scans.device)
        drawn = scores / settings.temperature - (-uniform.log()).log()
        if number % settings.every == 0:
            count = min(settings.candidates, scans.num_lines)
            likely = scores[:, : scans.num_lines].argmax(1, keepdim=True)
            lines = drawn[:, : scans.num_lines].scatter(1, likely, torch.inf)
            lines = lines.topk(count, 1).indices
            values = _values(policy, scans, branches, lines, settings.horizon)
            values = values.masked_fill(~legal.gather(1, lines) | ended[:, None], torch.nan)
            kept = (~values.isnan()).sum(1) >= 2
            seen.append({name: value[kept] for name, value in observation.items()})
            tried.append((lines[kept].to(policy.device), values[kept].to(policy.device, torch.float32)))
        number += 1
        strays = torch.rand(scans.num_envs, generator=generator).to(scans.device) < settings.explore
        ended |= scans.step(torch.where(strays, drawn.argmax(1), best), ~ended).terminated
    observation = {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
    lines, values = (torch.cat(parts) for parts in zip(*tried, strict=True))
    return _States(observation, lines, values)


def _values(policy: Any, scans: KSpaceEngine, branches: KSpaceEngine, lines: Tensor, horizon: int) -> Tensor:
    """Mean quality over what is left of the budget (or the last one, where that is the objective): float (N, K).

    ``lines`` int64 (N, K) are measured in copies of the scans, the most likely ones of the policy follow.
    """
    copies = lines.numel()
    slots = torch.arange(scans.num_envs, device=scans.device).repeat_interleave(lines.shape[1])
    branches.take(scans, slots.repeat(-(-branches.num_envs // copies))[: branches.num_envs])
    going = branches.remaining > 0
    actions = torch.zeros_like(branches.remaining)
    actions[:copies] = lines.flatten()
    left = branches.remaining.clone()
    total = torch.zeros_like(branches.quality)
    for step in range(horizon + 1):
        if step:
            actions = best_legal(policy, branches.observe(), branches.action_mask())
        before = branches.remaining.clone()
        ended = branches.step(actions, going).terminated
        total += branches.quality * (before - branches.remaining)
        going = going & ~ended
    total += branches.quality * branches.remaining
    final = scans.settings.objective == "final"
    values = branches.quality if final else total / left.clamp_min(1)
    return values[:copies].view(lines.shape)


def _loss(policy: Any, batch: _States) -> Tensor:
    """Minus the value that the policy expects of the lines that were tried, in units of their spread at a state."""
    logits = policy.get_distribution(batch.observation).distribution.logits.gather(1, batch.lines)
    known = ~batch.values.isnan()
    values = torch.where(known, batch.values, 0)
    mean = values.sum(1, keepdim=True) / known.sum(1, keepdim=True)
    relative = torch.where(known, values - mean, 0)
    spread = (relative.square().sum() / known.sum()).sqrt().clamp_min(1e-12)
    chosen = logits.masked_fill(~known, -torch.inf).softmax(1)
    return -(chosen * relative).sum(1).mean() / spread
