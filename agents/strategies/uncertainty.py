"""Strategies that ask for what the learner is least sure of.

Each is a number per pixel (:mod:`~seggym.agents.strategies.dense`) averaged over the image; the n highest are chosen.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from seggym.agents.strategies import dense
from seggym.agents.strategies.strategy import Query, Strategy, choose_best, choose_in_turn, strata, uniform
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError


class PixelUncertainty(Strategy):
    """The mean over the image of an uncertainty of each pixel."""

    def scores(self, state: SelectionState, indices: np.ndarray) -> np.ndarray:
        """Uncertainty of samples, float64 (n,)."""
        return dense.in_chunks(lambda some: self._images(state, some), indices).cpu().numpy()

    def _images(self, state: SelectionState, indices: np.ndarray) -> Tensor:
        """Uncertainty of a few samples, float64 (n,)."""
        raise NotImplementedError

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        return choose_best(self.scores(state, candidates), candidates, n, generator)


@dataclass(frozen=True)
class LeastConfidence(PixelUncertainty):
    """1 - max_c p_c (Settles, Active Learning Literature Survey, 2009, section 3.1; Lewis and Gale, SIGIR 1994)."""

    name: ClassVar[str] = "least_confidence"

    def _images(self, state: SelectionState, indices: np.ndarray) -> Tensor:
        return dense.image_mean(dense.least_confidence(state.probabilities(indices)))


@dataclass(frozen=True)
class Margin(PixelUncertainty):
    """1 - (p_1st - p_2nd) (Settles 2009, section 3.1; Scheffer et al., IDA 2001)."""

    name: ClassVar[str] = "margin"

    def _images(self, state: SelectionState, indices: np.ndarray) -> Tensor:
        return dense.image_mean(dense.margin(state.probabilities(indices)))


@dataclass(frozen=True)
class Entropy(PixelUncertainty):
    """-sum_c p_c ln p_c (Settles 2009, section 3.1)."""

    name: ClassVar[str] = "entropy"

    def _images(self, state: SelectionState, indices: np.ndarray) -> Tensor:
        return dense.image_mean(dense.entropy(state.probabilities(indices)))


@dataclass(frozen=True)
class MemberUncertainty(PixelUncertainty):
    """What ``members`` predictions disagree on: those of an ensemble, or passes of Monte Carlo dropout."""

    members: int = 20

    def __post_init__(self) -> None:
        if self.members < 2:
            raise SeggymError(f"members={self.members} of {self.name}, expected at least 2 predictions; raise it")


@dataclass(frozen=True)
class Bald(MemberUncertainty):
    """H(mean p) - mean H(p), the information that a label has on the weights.

    Houlsby et al., arXiv:1112.5745, eq. 2; with Monte Carlo dropout Gal et al., ICML 2017, section 3.
    """

    name: ClassVar[str] = "bald"

    def _images(self, state: SelectionState, indices: np.ndarray) -> Tensor:
        return dense.image_mean(dense.mutual_information(state.member_probabilities(indices, self.members)))


@dataclass(frozen=True)
class EnsembleVariance(MemberUncertainty):
    """Variation ratio, 1 - votes for the most frequent class / M (Beluch et al., CVPR 2018)."""

    members: int = 5

    name: ClassVar[str] = "ensemble_variance"

    def _images(self, state: SelectionState, indices: np.ndarray) -> Tensor:
        return dense.image_mean(dense.variation_ratio(state.member_probabilities(indices, self.members)))


@dataclass(frozen=True)
class EnsembleEntropy(MemberUncertainty):
    """Entropy of the members' mean prediction (Beluch et al., CVPR 2018)."""

    members: int = 5

    name: ClassVar[str] = "ensemble_entropy"

    def _images(self, state: SelectionState, indices: np.ndarray) -> Tensor:
        return dense.image_mean(dense.entropy(state.member_probabilities(indices, self.members).mean(0)))


UNCERTAINTIES: dict[str, type[PixelUncertainty]] = {
    kind.name: kind for kind in (LeastConfidence, Margin, Entropy, Bald, EnsembleVariance, EnsembleEntropy)
}


@dataclass(frozen=True)
class StochasticBatches(Strategy):
    """The random batch whose mean uncertainty is highest (Gaillochet et al., Medical Image Analysis 2023).

    The candidates are shuffled and cut into batches of n, ``rounds`` times over; the samples left over by a cut take
    no part in it. A sample's utility is the mean of the best batch that it is in (minus infinity where it is in none):
    a batch that one doubtful slice would have led alone must be doubtful as a whole. ``uncertainty`` is one of
    :data:`UNCERTAINTIES` with its default options.
    """

    uncertainty: str = "entropy"
    rounds: int = 1

    name: ClassVar[str] = "stochastic_batches"

    def __post_init__(self) -> None:
        if self.uncertainty not in UNCERTAINTIES or self.rounds < 1:
            raise SeggymError(
                f"uncertainty={self.uncertainty!r}, rounds={self.rounds} of {self.name}, expected one of "
                f"{', '.join(UNCERTAINTIES)} and at least 1 round; mend them"
            )

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        scores = UNCERTAINTIES[self.uncertainty]().scores(state, candidates)
        count = len(candidates) // n
        orders = np.argsort(uniform(generator, self.rounds, len(candidates)), axis=1)
        batches = orders[:, : count * n].reshape(-1, n)
        means = scores[batches].mean(1)
        best = batches[means.argmax()]
        utilities = np.full(len(candidates), -np.inf)
        np.maximum.at(utilities, batches, means[:, None])
        return Query(candidates[best[np.argsort(-scores[best], kind="stable")]], utilities)


@dataclass(frozen=True)
class ClaspPE(Strategy):
    """Class-stratified, scheduled power predictive entropy: ClaSP PE, the successor of nnActive's strategies.

    A share ``stratified`` of the picks belongs to the classes of the foreground in equal parts and scores a slice by
    the mean over pixels of H * p_c; the other picks score by H alone. Scores s are noised to ln s + G / beta, with G
    from a standard Gumbel distribution (power acquisition: Kirsch et al., "Stochastic Batch Acquisition", TMLR 2023),
    and beta grows geometrically from ``beta_first`` to ``beta_last`` over the first ``rounds`` retrainings: first
    diverse, then greedy.
    """

    stratified: float = 0.66
    beta_first: float = 1.0
    beta_last: float = 100.0
    rounds: int = 5

    name: ClassVar[str] = "clasp_pe"

    def __post_init__(self) -> None:
        if not 0 <= self.stratified <= 1 or not 0 < self.beta_first <= self.beta_last or self.rounds < 1:
            raise SeggymError(
                f"stratified={self.stratified}, beta_first={self.beta_first}, beta_last={self.beta_last}, "
                f"rounds={self.rounds} of {self.name}, expected a share from 0 to 1, 0 < beta_first <= beta_last and "
                "at least 1 round; mend them"
            )

    def beta(self, retrainings: int) -> float:
        """The exponent of the power noise after ``retrainings``."""
        progress = min(retrainings / max(self.rounds - 1, 1), 1.0)
        return float(self.beta_first * (self.beta_last / self.beta_first) ** progress)

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        def scores(indices: np.ndarray) -> Tensor:
            probabilities = state.probabilities(indices)
            entropy = dense.entropy(probabilities)[:, None]
            return dense.image_mean(torch.cat([entropy * probabilities[:, 1:], entropy], 1))

        found = dense.in_chunks(scores, candidates).cpu().numpy()
        classes = found.shape[1] - 1
        wanted = strata(n, np.append(np.full(classes, self.stratified / classes), 1 - self.stratified), generator)
        gumbel = -np.log(-np.log(np.clip(uniform(generator, len(candidates)), 1e-300, None)))
        # The smallest number that a score can be: a slice without any doubt keeps its noise and stays a candidate.
        noised = np.log(np.maximum(found, 1e-300)) + (gumbel / self.beta(state.round))[:, None]
        return choose_in_turn(lambda chosen: noised[:, wanted[len(chosen)]], candidates, n, generator)
