"""Rules without learning for scans that are hard to plan: where the echo is, which axis, and when to stop.

All but the oracle read measured lines, and what a network makes of their image.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seggym.agents.greedy import begin_training_episodes
from seggym.agents.policies import Baseline
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.segmentation import segment
from seggym.errors import SeggymError
from seggym.reward_models import metrics

if TYPE_CHECKING:
    from seggym.agents.baselines import TuningGround

FRACTION = 0.95
"""Of the quality that the whole budget brings (entropy), or all of k-space (oracle): where to stop."""


class EchoFollowing(Baseline):
    """Measures the line nearest to the echo that is not measured, or known to be corrupted.

    The rule that :class:`seggym.agents.echo_extractor.EchoExtractor` starts from, without learning: the echo is the
    centre of the measured amplitudes. Of two lines at the same distance the one of the higher index comes first.
    """

    def __init__(self) -> None:
        super().__init__("echo_following")
        self.identity = {"version": 1}

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        # Imported here because the extractors come with stable-baselines3, which no other baseline needs.
        from seggym.agents.echo_extractor import amplitude_centre

        acquired = engine.acquired
        echo = amplitude_centre(engine.scanner.energy.sqrt() * acquired)
        line = torch.arange(engine.num_lines, device=legal.device)
        wanted = legal[:, : engine.num_lines] & (~acquired | engine.flagged)
        distance = torch.where(wanted, (line - echo[:, None]).abs(), torch.inf)
        nearest = engine.num_lines - 1 - distance.flip(1).argmin(1)
        return torch.where(wanted.any(1), nearest, legal.byte().argmax(1))


class AxisFirst(Baseline):
    """Chooses ``axis`` of phase encoding (0 columns, 1 rows) for all scans and then follows ``policy``."""

    def __init__(self, policy: Baseline, axis: int) -> None:
        super().__init__(f"{policy.name}_{('columns', 'rows')[axis]}")
        self.policy, self.axis = policy, axis
        self.anytime, self.privileged = policy.anytime, policy.privileged
        self.identity = None if policy.identity is None else {"axis": axis, "policy": policy.identity}

    def begin(self, engine: KSpaceEngine) -> None:
        """New episodes for the policy behind; raises :class:`SeggymError` where the axis is not chosen."""
        if engine.axis_index is None:
            raise SeggymError(f"policy {self.name} chooses the axis of phase encoding: set choose_axis=true")
        self.policy.begin(engine)

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        assert engine.axis_index is not None
        chosen = self.policy.act(engine, observation, legal)
        return torch.where(legal[:, engine.axis_index], engine.axis_index + self.axis, chosen)


class Stopping(Baseline):
    """Follows ``policy`` and stops a scan as soon as :meth:`finished` says so."""

    def __init__(self, name: str, policy: Baseline) -> None:
        super().__init__(name)
        self.policy, self.anytime = policy, policy.anytime

    def begin(self, engine: KSpaceEngine) -> None:
        """New episodes for the policy behind; raises :class:`SeggymError` where nothing can be stopped."""
        if engine.stop_index is None:
            raise SeggymError(f"policy {self.name} stops scans: set stop_action=true, or leave it out")
        self.policy.begin(engine)

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        assert engine.stop_index is not None
        chosen = self.policy.act(engine, observation, legal)
        stopping = legal[:, engine.stop_index] & self.finished(engine)
        return torch.where(stopping, engine.stop_index, chosen)

    def finished(self, engine: KSpaceEngine) -> torch.Tensor:
        """Which scans have seen enough, bool (N,)."""
        raise NotImplementedError


class EntropyStop(Stopping):
    """Stops where the network is sure: its mean entropy over the image is below ``threshold`` nats.

    It sees the image of the measured lines through the network of the environment and no label.
    """

    def __init__(self, policy: Baseline, threshold: float) -> None:
        super().__init__("entropy_stop", policy)
        self.threshold = threshold
        self.identity = {"threshold": threshold, "policy": policy.identity, "name": policy.name}

    def finished(self, engine: KSpaceEngine) -> torch.Tensor:
        """Which scans have seen enough, bool (N,)."""
        return mean_entropy(engine) < self.threshold


class OracleStop(Stopping):
    """Stops where the Dice of the slice reaches ``fraction`` of that at full k-space, by the environment's network.

    Privileged: it compares with the labels, and knows what full k-space would have brought.
    """

    privileged = True

    def __init__(self, policy: Baseline, fraction: float = FRACTION) -> None:
        super().__init__("oracle_stop", policy)
        self.fraction = fraction
        self.identity = {"fraction": fraction, "policy": policy.identity, "name": policy.name}
        self._target = torch.zeros(0)

    def begin(self, engine: KSpaceEngine) -> None:
        """Look at full k-space."""
        super().begin(engine)
        every = torch.arange(engine.num_envs, device=engine.device)
        self._target = self.fraction * _dice(engine, engine.scanner.full(every))

    def finished(self, engine: KSpaceEngine) -> torch.Tensor:
        """Which scans have seen enough, bool (N,); one of a slice without any structure from the start."""
        return ~(_dice(engine, engine.magnitude) < self._target)


def mean_entropy(engine: KSpaceEngine) -> torch.Tensor:
    """Entropy in nats of the class probabilities, the mean over the pixels of each scan's image: float (N,)."""
    probabilities = predicted(engine, engine.magnitude)
    return torch.special.entr(probabilities).sum(1).mean((1, 2))


def predicted(engine: KSpaceEngine, magnitude: torch.Tensor) -> torch.Tensor:
    """Class probabilities (N, C, H, W) of images (N, H, W), by the network of each scan."""
    if not engine.networks:
        raise SeggymError("the policy asks a network when to stop, this environment has none: pass reward_model")
    return segment(engine.networks, engine.routing[engine.samples], magnitude).probabilities


def _dice(engine: KSpaceEngine, magnitude: torch.Tensor) -> torch.Tensor:
    """Hard Dice of each scan's slice, the mean over the classes that it has, float (N,); NaN where it has none."""
    labels = metrics.most_probable(predicted(engine, magnitude))
    truth = metrics.encode_truth(engine.stack.labels[engine.samples], engine.stack.num_classes)
    return metrics.dice_per_class(labels, truth).nanmean(1)


def tuned_entropy_stop(ground: "TuningGround", policy: Baseline, fraction: float = FRACTION) -> EntropyStop:
    """``policy`` with the largest threshold that keeps ``fraction`` of the quality that the whole budget brings.

    That is the mean over training slices; the largest threshold is the one that stops soonest.
    """

    def find() -> dict[str, Any]:
        entropy, quality = _along(ground.engine(), policy, ground.length)
        return {"threshold": soonest_threshold(entropy, quality, fraction)}

    what = {"search": "entropy_stop", "policy": policy.name, "identity": policy.identity, "fraction": fraction}
    return EntropyStop(policy, ground.search(what, find)["threshold"])


def soonest_threshold(entropy: np.ndarray, quality: np.ndarray, fraction: float) -> float:
    """The largest threshold whose mean quality is at least ``fraction`` of that without stopping.

    ``entropy`` and ``quality`` (T + 1, N) after 0..T lines. A scan stops where its entropy is first below it.
    """
    goal = fraction * quality[-1].mean()
    for threshold in np.unique(entropy)[::-1]:
        below = entropy < threshold
        stop = np.where(below.any(0), below.argmax(0), len(entropy) - 1)
        if np.take_along_axis(quality, stop[None], 0).mean() >= goal:
            return float(threshold)
    return 0.0


def _along(engine: KSpaceEngine, policy: Baseline, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean entropy and quality of training slices after 0..``length`` decisions of ``policy``, (length + 1, N) each."""
    begin_training_episodes(engine, length)
    policy.begin(engine)
    active = torch.ones(engine.num_envs, dtype=torch.bool, device=engine.device)
    found = [(mean_entropy(engine), engine.quality.clone())]
    for _ in range(length):
        result = engine.step(policy.act(engine, {}, engine.action_mask()), active)
        active = active & ~result.terminated
        found.append((mean_entropy(engine), engine.quality.clone()))
    entropy, quality = (torch.stack(values).double().cpu().numpy() for values in zip(*found, strict=True))
    return entropy, quality
