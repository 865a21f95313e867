"""Greedy choice by the true labels: what a strategy that is told the answers asks for."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from seggym.agents.strategies.dense import in_chunks
from seggym.agents.strategies.strategy import Query, Strategy, choose_best
from seggym.envs.selection.state import SelectionState


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
