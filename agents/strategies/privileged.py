"""Greedy choice by the true labels: what a strategy that is told the answers asks for."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from seggym.agents.strategies.dense import in_chunks
from seggym.agents.strategies.strategy import Query, Strategy, choose_best
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError


@runtime_checkable
class LookaheadState(SelectionState, Protocol):
    """A state that can try samples out, for a privileged strategy."""

    def lookahead(self, indices: np.ndarray) -> np.ndarray:
        """The learner's score on the reward set, float64 (n,), retrained with each sample alone."""
        ...


@dataclass(frozen=True)
class Greedy(Strategy):
    """What raises the score on the reward set most when the learner is retrained with it (privileged).

    One retraining per candidate, one step ahead: the greedy oracle of Werner et al., "A Cross-Domain Benchmark for
    Active Learning", NeurIPS 2024. Several samples are the best ones taken singly. It needs a state that can look
    ahead, which cheap learners afford. A reference rather than a bound: a sequence may gain more than its best single
    steps.
    """

    name: ClassVar[str] = "greedy"
    privileged: ClassVar[bool] = True

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        if not isinstance(state, LookaheadState):
            raise SeggymError(
                "strategy greedy tries every candidate out, which this state does not offer: use the learner probe, or "
                "label_greedy"
            )
        return choose_best(state.lookahead(candidates), candidates, n, generator)


@dataclass(frozen=True)
class LabelGreedy(Strategy):
    """What the learner now gets most wrong, by the true labels (privileged).

    A utility is the balanced error: 1 - the mean probability of the true class, over the pixels of each class that the
    label shows, then over those classes. It is what uncertainty tries to guess, and no upper bound: samples that are
    always wrong (the basal slices of a heart) need not be those that teach most.
    """

    name: ClassVar[str] = "label_greedy"
    privileged: ClassVar[bool] = True

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        errors = in_chunks(lambda some: balanced_error(state.probabilities(some), state.labels(some)), candidates)
        return choose_best(errors.cpu().numpy(), candidates, n, generator)


def balanced_error(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes present of 1 - mean probability on their pixels: float64 (n,).

    ``probabilities`` (n, classes, h, w); ``labels`` (n, H, W), reduced to h x w by nearest neighbour, or (n,). Values
    beyond the last class are no label; a sample without any label has error 0.
    """
    count, classes, *size = probabilities.shape
    truth = labels.reshape(count, 1, *(labels.shape[1:] or (1, 1))).to(probabilities.device, torch.float32)
    truth = torch.nn.functional.interpolate(truth, size=size, mode="nearest-exact").long()
    mine = truth == torch.arange(classes, device=truth.device)[:, None, None]
    pixels = mine.sum((2, 3))
    wrong = ((1 - probabilities.double()) * mine).sum((2, 3)) / pixels.clamp(min=1)
    present = pixels > 0
    return (wrong * present).sum(1) / present.sum(1).clamp(min=1)
