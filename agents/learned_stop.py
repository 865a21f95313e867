"""When to stop a scan, learned: whether another line is worth its price, by regression on training patients.

Optimal stopping by simulation (Longstaff and Schwartz, Review of Financial Studies 14, 2001): training scans are
followed to the end of the budget, and from the last line backwards the gain of going on, by the rule found so far, is
regressed on what is seen of a scan (:func:`look`). A scan stops where the expected gain is below the price of a line.
Where fewer lines cost no quality on the average scan, a threshold of the entropy can find that too; a regression may
also tell a scan that is uncertain and will stay so from one that another line would settle.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from seggym.agents.echo_baselines import FRACTION, Stopping, predicted
from seggym.agents.greedy import begin_training_episodes
from seggym.agents.policies import Baseline
from seggym.envs.kspace.engine import KSpaceEngine

if TYPE_CHECKING:
    from seggym.agents.baselines import TuningGround

REPEATS = 3
"""Scans of every training slice, each with a phase, a noise and corrupted lines of its own."""
PENALTY = 10.0
"""Of the ridge regression of one line, in scans: features are standardised."""
_PRICES = 40


class LearnedStop(Stopping):
    """Follows ``policy`` until the expected gain of another line is below its price.

    ``weights`` (T, F + 1) of :func:`look` and of a constant: row t is the expected gain of going on, less the price,
    after t decisions. It sees the images of the measured lines through the network of the environment and no label.
    """

    def __init__(self, policy: Baseline, weights: np.ndarray) -> None:
        super().__init__("learned_stop", policy)
        self.weights = np.asarray(weights, dtype=np.float64)
        self.identity = {"weights": self.weights.tolist(), "policy": policy.identity, "name": policy.name}
        self._step, self._before = 0, torch.zeros(0)

    def begin(self, engine: KSpaceEngine) -> None:
        """New episodes: nothing has been seen of them."""
        super().begin(engine)
        self._step, self._before = 0, torch.zeros(0)

    def finished(self, engine: KSpaceEngine) -> Tensor:
        """Which scans have seen enough, bool (N,)."""
        seen, self._before = look(engine, self._before)
        if self._step >= len(self.weights):
            return torch.zeros(len(seen), dtype=torch.bool, device=engine.device)
        weights = torch.from_numpy(self.weights[self._step]).to(seen)
        self._step += 1
        return seen @ weights[:-1] + weights[-1] < 0


def look(engine: KSpaceEngine, before: Tensor) -> tuple[Tensor, Tensor]:
    """What is seen of every scan, float64 (N, F), and its probabilities (N, C, H, W).

    ``before`` are those before the last line, empty at the first look. The features: mean entropy in nats; area of each
    structure, as the mean probability; entropy for each pixel of the structures; how far the probabilities moved; share
    of the measured lines that are flagged as corrupted; the squares of all of these.
    """
    probabilities = predicted(engine, engine.magnitude)
    entropy = torch.special.entr(probabilities).sum(1).mean((1, 2))
    areas = probabilities[:, 1:].mean((2, 3))
    moved = (probabilities - before).abs().sum(1).mean((1, 2)) if len(before) else torch.zeros_like(entropy)
    flagged = (engine.flagged & engine.acquired).sum(1) / engine.acquired.sum(1)
    # A pixel in a thousand is what an empty slice has of structures.
    doubt = entropy / (areas.sum(1) + 1e-3)
    features = torch.stack([entropy, *areas.unbind(1), doubt.clamp_max(10), moved, flagged], 1).double()
    return torch.cat([features, features.square()], 1), probabilities


def tuned_learned_stop(ground: "TuningGround", policy: Baseline, fraction: float = FRACTION) -> LearnedStop:
    """``policy`` with the rule of the highest price that keeps ``fraction`` of the quality of the whole budget.

    Both are means over training scans.
    """

    def find() -> dict[str, Any]:
        seen, quality = follow(ground.engine(), policy, ground.length)
        return {"weights": dearest_rule(seen, quality, fraction).tolist()}

    what = {"search": "learned_stop", "policy": policy.name, "identity": policy.identity, "fraction": fraction}
    return LearnedStop(policy, np.asarray(ground.search(what, find)["weights"]))


def follow(engine: KSpaceEngine, policy: Baseline, length: int) -> tuple[np.ndarray, np.ndarray]:
    """What is seen (T + 1, N, F) of training scans after 0..T decisions of ``policy``, and the quality (T + 1, N)."""
    features, qualities = [], []
    for repeat in range(REPEATS):
        begin_training_episodes(engine, length, repeat)
        policy.begin(engine)
        active = torch.ones(engine.num_envs, dtype=torch.bool, device=engine.device)
        now, before = look(engine, torch.zeros(0))
        seen, quality = [now], [engine.quality.clone()]
        for _ in range(length):
            result = engine.step(policy.act(engine, {}, engine.action_mask()), active)
            active = active & ~result.terminated
            now, before = look(engine, before)
            seen.append(now)
            quality.append(engine.quality.clone())
        features.append(torch.stack(seen).cpu().numpy())
        qualities.append(torch.stack(quality).double().cpu().numpy())
    return np.concatenate(features, 1), np.concatenate(qualities, 1)


def stopping_rule(seen: np.ndarray, quality: np.ndarray, price: float) -> np.ndarray:
    """Weights (T, F + 1) for a ``price`` of a line in units of quality, by backward induction.

    ``seen`` (T + 1, N, F) and ``quality`` (T + 1, N) as from :func:`follow`.
    """
    steps = len(quality) - 1
    weights = np.empty((steps, seen.shape[2] + 1))
    value = quality[-1]
    for step in reversed(range(steps)):
        going_on = value - price - quality[step]
        weights[step] = _ridge(seen[step], going_on)
        expected = seen[step] @ weights[step, :-1] + weights[step, -1]
        # What was expected decides; what came of it is what counts (no optimism of a maximum of estimates).
        value = np.where(expected < 0, quality[step], value - price)
    return weights


def stops(seen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """After how many decisions each scan stops, int64 (N,)."""
    expected = np.einsum("tnf,tf->tn", seen[:-1], weights[:, :-1]) + weights[:, -1:]
    finished = expected < 0
    return np.where(finished.any(0), finished.argmax(0), len(weights))


def dearest_rule(seen: np.ndarray, quality: np.ndarray, fraction: float) -> np.ndarray:
    """The :func:`stopping_rule` of the highest price that keeps ``fraction`` of the mean quality of the last line."""
    goal = fraction * quality[-1].mean()
    for price in np.geomspace(0.1, 1e-4, _PRICES):
        weights = stopping_rule(seen, quality, price)
        if np.take_along_axis(quality, stops(seen, weights)[None], 0).mean() >= goal:
            return weights
    return stopping_rule(seen, quality, 0.0)


def _ridge(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights (F + 1,), the constant last, of a ridge regression on standardised features (N, F)."""
    mean, spread = features.mean(0), features.std(0)
    # A feature that does not vary says nothing.
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    standard = (features - mean) * scale
    inverse = standard.T @ standard + PENALTY * np.eye(standard.shape[1])
    slopes = np.linalg.solve(inverse, standard.T @ (target - target.mean())) * scale
    return np.append(slopes, target.mean() - mean @ slopes)
