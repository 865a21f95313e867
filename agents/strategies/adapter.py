"""The strategies of scikit-activeml, through the interface of this package."""

import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from seggym.agents.strategies.coverage import pool_features, require_features
from seggym.agents.strategies.naming import nearest
from seggym.agents.strategies.strategy import Query, Strategy, draw_seed
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError

# Arguments of a strategy's query for which a classifier of the features is handed over.
_CLASSIFIERS = ("clf", "estimator", "discriminator")


@dataclass(frozen=True)
class SkactivemlStrategy(Strategy):
    """A pool strategy of scikit-activeml (``pip install scikit-activeml``) on one vector and one class per sample.

    ``strategy`` is the name of its class (``"CoreSet"``), ``options`` are arguments of its constructor. It sees
    ``features`` (:func:`~seggym.agents.strategies.coverage.pool_features`) and, of an annotated sample, the foreground
    class of most pixels (background where there is none). Where it asks for a classifier it gets a logistic regression
    of these. Strategies that ask for a regressor or an ensemble cannot be had.
    """

    strategy: str = "CoreSet"
    options: dict[str, Any] = field(default_factory=dict)
    features: str = "embeddings"

    name: ClassVar[str] = "skactiveml"

    def __post_init__(self) -> None:
        require_features(self.name, self.features)

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        chooser, needs = self._make(draw_seed(generator), state.num_classes)
        classes = np.full(len(state.samples), np.nan)
        if len(state.labelled):
            classes[state.labelled] = dominant_class(state.labels(state.labelled), state.num_classes)
        features = pool_features(state, self.features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen, utilities = chooser.query(
                features, classes, candidates=candidates, batch_size=n, return_utilities=True, **needs
            )
        chosen = np.asarray(chosen, dtype=np.int64)
        if len(np.unique(chosen)) < n or not np.isin(chosen, candidates).all():
            raise SeggymError(
                f"{self.strategy} of scikit-activeml chose {chosen.tolist()}, expected {n} different candidates; use "
                "another strategy"
            )
        # It marks by NaN what cannot be chosen.
        return Query(chosen, np.nan_to_num(utilities[:, candidates], nan=-np.inf, posinf=np.inf, neginf=-np.inf))

    def _make(self, seed: int, num_classes: int) -> tuple[Any, dict[str, Any]]:
        try:
            from skactiveml import pool
            from skactiveml.classifier import SklearnClassifier
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise SeggymError(
                "strategy skactiveml needs scikit-activeml, which is not installed: pip install scikit-activeml"
            ) from None
        known = {name: kind for name in pool.__all__ if hasattr(kind := getattr(pool, name), "query")}
        if self.strategy not in known:
            raise SeggymError(
                f"scikit-activeml has no pool strategy {self.strategy!r}; {nearest(self.strategy, known)}"
            )
        kind = known[self.strategy]
        possible = set(inspect.signature(kind.__init__).parameters) - {"self", "random_state", "missing_label"}
        for key in sorted(set(self.options) - possible):
            raise SeggymError(f"{self.strategy} of scikit-activeml has no option {key!r}; {nearest(key, possible)}")
        parameters = inspect.signature(kind.query).parameters
        required = {
            key for key, parameter in parameters.items() if parameter.default is parameter.empty and key != "self"
        }
        missing = sorted(required - {"X", "y", *_CLASSIFIERS})
        if missing or "query_strategy" in possible:
            raise SeggymError(
                f"{self.strategy} of scikit-activeml asks for {', '.join(missing) or 'another strategy'}, expected one "
                "that works on features and classes; use another strategy"
            )
        classifier = SklearnClassifier(LogisticRegression(max_iter=200), classes=list(range(num_classes)))
        needs = {key: classifier for key in _CLASSIFIERS if key in required}
        return kind(random_state=seed, **self.options), needs


def dominant_class(labels: torch.Tensor, num_classes: int) -> np.ndarray:
    """The foreground class of most pixels of each label, 0 without any: int64 (n,). Labels (n,) are classes already."""
    if labels.ndim == 1:
        return labels.long().cpu().numpy()
    flat = labels.long().cpu().flatten(1)
    counts = torch.stack([(flat == number).sum(1) for number in range(1, num_classes)], 1)
    return torch.where(counts.any(1), counts.argmax(1) + 1, 0).numpy()
