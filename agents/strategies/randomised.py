"""Random choice, and random choice that favours what shows the foreground."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from seggym.agents.strategies.dense import in_chunks
from seggym.agents.strategies.strategy import Query, Strategy, choose_best, choose_in_turn, strata, uniform
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError


@dataclass(frozen=True)
class Random(Strategy):
    """Uniformly at random."""

    name: ClassVar[str] = "random"

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        return choose_best(uniform(generator, len(candidates)), candidates, n, generator)


@dataclass(frozen=True)
class ForegroundRandom(Strategy):
    """A share ``foreground`` of the picks shows a class of the foreground, every class equally often (privileged).

    The control that active learning in 3-D biomedical images does not reliably beat: random sampling that favours the
    foreground by a third or two thirds (Luth et al., nnActive, TMLR 2025). A pick first draws a class among those that
    a candidate shows, then a candidate that shows it. Where none shows any foreground the choice is random.
    """

    foreground: float = 0.66

    name: ClassVar[str] = "foreground_random"
    privileged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.foreground <= 1:
            raise SeggymError(f"foreground={self.foreground} of {self.name}, expected a share from 0 to 1; mend it")

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        shown = self._classes_shown(state, candidates)[:, 1:]
        classes = np.flatnonzero(shown.any(0))
        share = self.foreground if len(classes) else 0.0
        weights = np.append(np.full(len(classes), share / max(len(classes), 1)), 1 - share)
        wanted = strata(n, weights, generator)
        noise = uniform(generator, len(candidates))

        def utilities(chosen: list[int]) -> np.ndarray:
            stratum = wanted[len(chosen)]
            favoured = shown[:, classes[stratum]] if stratum < len(classes) else np.zeros(len(noise))
            return noise + favoured

        return choose_in_turn(utilities, candidates, n, generator)

    def _classes_shown(self, state: SelectionState, candidates: np.ndarray) -> np.ndarray:
        """Which classes each candidate shows, bool (K, classes)."""
        labels = state.labels(candidates).long().cpu()
        return _classes_in(labels.reshape(len(candidates), -1), state.num_classes)


@dataclass(frozen=True)
class PredictedForegroundRandom(ForegroundRandom):
    """:class:`ForegroundRandom` on the foreground that the learner predicts instead of the true one."""

    name: ClassVar[str] = "predicted_foreground_random"
    privileged: ClassVar[bool] = False

    def _classes_shown(self, state: SelectionState, candidates: np.ndarray) -> np.ndarray:
        def shown(indices: np.ndarray) -> torch.Tensor:
            predicted = state.probabilities(indices).argmax(1).flatten(1).cpu()
            return torch.from_numpy(_classes_in(predicted, state.num_classes))

        return in_chunks(shown, candidates).numpy()


def _classes_in(labels: torch.Tensor, num_classes: int) -> np.ndarray:
    """Classes that occur in each row of ``labels`` int64 (n, pixels): bool (n, classes).

    Values beyond the last class (scribbles mark unlabelled pixels so) are none.
    """
    shown = torch.zeros(len(labels), 256, dtype=torch.bool)
    return shown.scatter_(1, labels, True)[:, :num_classes].numpy()
