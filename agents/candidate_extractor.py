"""Scores for candidates of active learning from a network that all of them share: where one stands says nothing.

Deep sets (Zaheer et al., NeurIPS 2017): each candidate is embedded by the same network, the embeddings are pooled, and
each candidate is scored from its own embedding and what is pooled. Permuting the candidates permutes the scores, and
empty rows change nothing; there is no parameter that belongs to a row.
"""

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from seggym.envs.selection.observation import CANDIDATE_FEATURES, CLASS_FEATURES, QUANTILES
from seggym.errors import SeggymError

_NEEDED = ("candidates", "learner", "budget", "progress")

RULE_PARTS = ("candidates", "learner", "progress")
"""Parts of the observation that the rule is made of."""

_PLAIN = (
    "margin", "entropy", "entropy_spread", "foreground_entropy", "disagreement", "nearest_labelled", "mean_labelled",
    "mean_unlabelled", "labelled_of_volume", "labelled_of_patient", "gap_in_volume", "minutes",
)  # fmt: skip
FEATURES = (*_PLAIN, "foreground", "rare", "off_centre", "early_disagreement", "early_foreground", "early_unlabelled")
"""What the weights of :class:`CandidateExtractor` stand for; :func:`candidate_features` says what each is."""

# What a candidate must differ in to be told apart: smaller spreads are not blown up to 1.
_LEAST_SPREAD = 1e-3
# Annotated share that counts for a class which nobody has annotated.
_LEAST_SHARE = 2e-3


class CandidateExtractor(BaseFeaturesExtractor):
    """One score per candidate: a rule with a dozen and a half weights, and what a deep-sets network adds to it.

    The rule is a weighted sum of :func:`candidate_features`, which are relative to the other candidates of the same
    query, so that weights found in one cohort mean the same in another. At the start ``disagreement`` and ``margin``
    have the weight 1, the others 0, and the network adds nothing. With ``corrections=False`` it never does.

    Input: a Dict with ``candidates`` (N, K, F), ``learner`` (N, L), ``budget`` (N, 1), ``progress`` (N, 2) and
    optionally ``embeddings`` (N, K, E); empty candidates are rows of zeros. Output: float32 (N, K + context):
    ``strength`` times the scores, 0 for empty rows, which only an algorithm with action masks can tell from others;
    then the context, which the critic works with. Scores must reach the actions as they are, so the head is fixed
    (:attr:`equivariant`, see :func:`seggym.agents.priors.start_head`). ``width`` is that of the network.
    """

    equivariant = True

    def __init__(
        self, observation_space: spaces.Dict, strength: float = 1.0, width: int = 32, corrections: bool = True
    ) -> None:
        parts = observation_space.spaces
        missing = [name for name in _NEEDED if name not in parts]
        if missing:
            raise SeggymError(
                f"the extractor 'candidates' needs {', '.join(missing)} among the parts of the observation, found "
                f"{', '.join(parts)}: add them to env.kwargs.observation, in an ALSelect environment"
            )
        rows, columns = parts["candidates"].shape or ()
        self.num_scores = rows
        shared = sum((parts[name].shape or (0,))[0] for name in _NEEDED[1:])
        super().__init__(observation_space, rows + 2 * width + shared)
        self.strength, self.corrections = strength, corrections
        self.embedded = "embeddings" in parts
        own = 2 * columns + len(FEATURES) + ((parts["embeddings"].shape or (0, 0))[1] if self.embedded else 0)
        self.own = nn.Sequential(nn.Linear(own, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.together = nn.Linear(3 * width + shared, width)
        start = torch.zeros(len(FEATURES))
        start[[FEATURES.index("disagreement"), FEATURES.index("margin")]] = 1.0
        # No layers, because stable-baselines3 initialises those anew.
        self.weights = nn.Parameter(start)
        self.correction = nn.Parameter(torch.zeros(width))

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """(N, features_dim): scores, then context."""
        candidates = observations["candidates"]
        there = filled(candidates)
        relative = candidate_features(candidates, observations["learner"], observations["progress"])
        parts = [candidates, standardised(candidates), relative]
        if self.embedded:
            parts.append(observations["embeddings"])
        own = self.own(torch.cat(parts, -1)) * there[..., None]
        mean = own.sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        # Embeddings are not negative, so that empty rows are never the largest.
        shared = torch.cat([mean, own.amax(1), *(observations[name] for name in _NEEDED[1:])], 1)
        scores = relative @ self.weights
        if self.corrections:
            both = torch.cat([own, shared[:, None].expand(-1, own.shape[1], -1)], -1)
            scores = scores + self.together(both).relu() @ self.correction
        return torch.cat([self.strength * scores * there, shared], 1)

    def scores(self, observations: dict[str, torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """The rule alone: (N, K) by ``weights`` (F,), or (N, F) of its own for every episode."""
        relative = candidate_features(*(observations[name] for name in RULE_PARTS))
        weights = weights if weights.ndim == 2 else weights[None]
        return (relative * weights[:, None]).sum(-1)


def filled(candidates: torch.Tensor) -> torch.Tensor:
    """Rows of ``candidates`` (N, K, F) that are no padding, as float (N, K)."""
    return (candidates != 0).any(-1).to(candidates.dtype)


def candidate_features(candidates: torch.Tensor, learner: torch.Tensor, progress: torch.Tensor) -> torch.Tensor:
    """What sets candidates apart from those beside them, (N, K, F) in the order of :data:`FEATURES`; 0 for padding.

    All but the last three have mean 0 and standard deviation 1 over the candidates of a query: most of the observation;
    ``foreground``, the share of foreground that is predicted; ``rare``, the predicted share of each class of the
    foreground divided by its annotated share, summed; ``off_centre``, how far from the middle of its volume a slice is.
    ``early_...`` are ``disagreement``, ``foreground`` and ``mean_unlabelled`` times 1 at the beginning and -1 at the
    end of the budget.
    """
    there = filled(candidates)
    column = {name: candidates[..., place] for place, name in enumerate(CANDIDATE_FEATURES)}
    slots = (candidates.shape[-1] - len(CANDIDATE_FEATURES)) // len(CLASS_FEATURES)
    histogram = candidates[..., len(CANDIDATE_FEATURES) : len(CANDIDATE_FEATURES) + slots]
    taught = learner[:, QUANTILES + slots + 1 : QUANTILES + 2 * slots]
    column["foreground"] = histogram[..., 1:].sum(-1)
    column["rare"] = (histogram[..., 1:] / (taught[:, None] + _LEAST_SHARE)).sum(-1)
    column["off_centre"] = (column["position"] - 0.5).abs()
    values = torch.stack([column[name] for name in (*_PLAIN, "foreground", "rare", "off_centre")], -1)
    relative = standardised(values, there)
    early = (1 - 2 * progress[:, :1])[..., None]
    changing = [FEATURES.index(name) for name in ("disagreement", "foreground", "mean_unlabelled")]
    return torch.cat([relative, early * relative[..., changing]], -1)


def standardised(values: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
    """``values`` (N, K, F) with mean 0 and standard deviation 1 over the candidates (N, K) of a query; 0 for padding.

    Those are the rows of ``values`` that are not 0 throughout, unless ``there`` says which.
    """
    present = (filled(values) if there is None else there)[..., None]
    count = present.sum(1, keepdim=True).clamp_min(1)
    centred = (values - (values * present).sum(1, keepdim=True) / count) * present
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return centred / spread.clamp_min(_LEAST_SPREAD)
