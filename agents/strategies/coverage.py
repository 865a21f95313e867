"""Strategies that cover the pool in a space of features: k-center, TypiClust, ProbCover."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from seggym.agents.strategies.strategy import Query, Strategy, choose_in_turn, draw_seed
from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError

FEATURES = ("embeddings", "learner", "pixels")


def pool_features(state: SelectionState, kind: str) -> np.ndarray:
    """One vector per sample of the pool, float64 (P, D).

    ``kind`` is one of :data:`FEATURES`: the self-supervised ``embeddings``, the ``learner``'s own features of now, or
    the ``pixels``.
    """
    everything = np.arange(len(state.samples))
    if kind == "embeddings":
        found = state.embeddings()
    elif kind == "learner":
        found = state.learner_features(everything)
    else:
        found = state.images(everything).flatten(1)
    return found.double().cpu().numpy()


def require_features(strategy: str, kind: str) -> None:
    """Raise :class:`SeggymError` unless ``kind`` is one of :data:`FEATURES`."""
    if kind not in FEATURES:
        raise SeggymError(f"features={kind!r} of {strategy}, expected one of {', '.join(FEATURES)}; name one of them")


def pairwise_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distances (n, m) of rows (n, D) and (m, D), through their products: one matrix product in float64."""
    squared = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return np.sqrt(np.maximum(squared, 0))


def k_center_greedy(
    features: np.ndarray, labelled: np.ndarray, candidates: np.ndarray, n: int, generator: torch.Generator
) -> Query:
    """The candidate farthest from all centres, again and again (Sener and Savarese, ICLR 2018, Alg. 1).

    ``features`` (P, D); centres are the ``labelled`` samples (L,) and those chosen before. Without any the first choice
    is random. A utility is the distance to the nearest centre.
    """
    # About their mean, where squares of distances lose the fewest digits.
    centred = features - features.mean(0)
    own = centred[candidates]
    nearest = np.zeros(len(candidates))
    if len(labelled):
        nearest = pairwise_distances(own, centred[labelled]).min(1)
    started = len(labelled) > 0

    def utilities(chosen: list[int]) -> np.ndarray:
        nonlocal nearest, started
        if chosen:
            last = pairwise_distances(own, own[chosen[-1:]])[:, 0]
            nearest = np.minimum(nearest, last) if started else last
            started = True
        return nearest

    return choose_in_turn(utilities, candidates, n, generator)


@dataclass(frozen=True)
class KCenter(Strategy):
    """Greedy k-center coreset (Sener and Savarese, ICLR 2018, Alg. 1) on ``features`` (:func:`pool_features`)."""

    features: str = "embeddings"

    name: ClassVar[str] = "kcenter"

    def __post_init__(self) -> None:
        require_features(self.name, self.features)

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        features = pool_features(state, self.features)
        return k_center_greedy(features, state.labelled, candidates, n, generator)


def cluster(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means clusters of ``features`` (P, D): int64 (P,), some of ``count`` empty where points coincide."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer different points than clusters: duplicates are no reason to complain.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(KMeans(n_clusters=count, random_state=seed).fit_predict(features), dtype=np.int64)


def typicality(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Inverse mean distance of each of n points (n, D) to its nearest ones among them: float64 (n,).

    The typicality of Hacohen et al., ICML 2022, section 3. A point alone has typicality 1.
    """
    count = min(neighbours, len(features) - 1)
    if count == 0:
        return np.ones(1)
    distances = pairwise_distances(features, features)
    np.fill_diagonal(distances, np.inf)
    return 1 / (np.partition(distances, count - 1, axis=1)[:, :count].mean(1) + 1e-7)


@dataclass(frozen=True)
class TypiClust(Strategy):
    """The most typical sample of each cluster that has no label yet (Hacohen et al., ICML 2022, Alg. 1).

    The pool is cut by k-means into as many clusters as there will be labelled samples, at most ``max_clusters``.
    Clusters come in turn, those with the fewest labelled samples first and of those the largest; clusters under
    ``min_cluster_size`` wait until no other is left. A sample's utility is its typicality in the cluster whose turn it
    is (``neighbours`` nearest), minus infinity elsewhere.
    """

    features: str = "embeddings"
    neighbours: int = 20
    max_clusters: int = 500
    min_cluster_size: int = 5

    name: ClassVar[str] = "typiclust"

    def __post_init__(self) -> None:
        require_features(self.name, self.features)
        if min(self.neighbours, self.max_clusters, self.min_cluster_size) < 1:
            raise SeggymError(
                f"neighbours={self.neighbours}, max_clusters={self.max_clusters}, "
                f"min_cluster_size={self.min_cluster_size} of {self.name}, expected at least 1 each; raise them"
            )

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        features = pool_features(state, self.features)
        count = min(len(state.labelled) + n, self.max_clusters, len(features))
        clusters = cluster(features, count, draw_seed(generator))
        sizes = np.bincount(clusters, minlength=count)
        labelled = np.bincount(clusters[state.labelled], minlength=count)
        typical = np.empty(len(features))
        for number in range(count):
            members = np.flatnonzero(clusters == number)
            if len(members):
                typical[members] = typicality(features[members], self.neighbours)
        own = clusters[candidates]

        def utilities(chosen: list[int]) -> np.ndarray:
            covered = labelled + np.bincount(own[chosen], minlength=count)
            free = np.ones(len(candidates), dtype=bool)
            free[chosen] = False
            waiting = np.unique(own[free])
            order = np.lexsort((-sizes[waiting], covered[waiting], sizes[waiting] < self.min_cluster_size))
            return np.where(own == waiting[order[0]], typical[candidates], -np.inf)

        return choose_in_turn(utilities, candidates, n, generator)


@dataclass(frozen=True)
class ProbCover(Strategy):
    """The sample whose ball holds most samples that no ball covers yet (Yehuda et al., NeurIPS 2022, Alg. 1).

    The radius is the largest of ``deltas`` at which a share ``purity`` of the balls holds one k-means cluster only
    (their choice of delta). By default they are twenty steps up to the median distance of two samples, because the
    scale of an encoder's features is its own. A slice has no class, so ``clusters`` (default: the number of classes)
    stands for the classes of the paper. A utility is the number of samples newly covered.
    """

    features: str = "embeddings"
    purity: float = 0.95
    deltas: tuple[float, ...] | None = None
    clusters: int | None = None

    name: ClassVar[str] = "probcover"

    def __post_init__(self) -> None:
        require_features(self.name, self.features)
        if not 0 < self.purity < 1 or (self.deltas is not None and not (self.deltas and min(self.deltas) >= 0)):
            raise SeggymError(
                f"purity={self.purity}, deltas={self.deltas} of {self.name}, expected a share between 0 and 1 and "
                "distances of at least 0; mend them"
            )
        if self.clusters is not None and self.clusters < 2:
            raise SeggymError(f"clusters={self.clusters} of {self.name}, expected at least 2; raise it")

    def radius(self, distances: np.ndarray, clusters: np.ndarray) -> float:
        """The largest delta that is pure enough, the smallest one where none is."""
        deltas = np.linspace(0.05, 1, 20) * np.median(distances) if self.deltas is None else np.sort(self.deltas)
        foreign = clusters[:, None] != clusters
        # A ball is impure as soon as it reaches the nearest sample of another cluster.
        reach = np.where(foreign, distances, np.inf).min(1)
        pure = np.asarray([(reach > delta).mean() for delta in deltas]) >= self.purity
        last = len(deltas) if pure.all() else int(pure.argmin())
        return float(deltas[max(last - 1, 0)])

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        features = pool_features(state, self.features)
        count = min(self.clusters or state.num_classes, len(features))
        distances = pairwise_distances(features, features)
        # Through the products of the rows a point is not quite at distance 0 of itself.
        np.fill_diagonal(distances, 0)
        balls = distances <= self.radius(distances, cluster(features, count, draw_seed(generator)))
        uncovered = ~balls[state.labelled].any(0)

        def utilities(chosen: list[int]) -> np.ndarray:
            if chosen:
                uncovered[balls[candidates[chosen[-1]]]] = False
            return balls[candidates][:, uncovered].sum(1).astype(np.float64)

        return choose_in_turn(utilities, candidates, n, generator)
