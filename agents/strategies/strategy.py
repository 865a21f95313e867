"""What a query strategy is, and the two ways in which one chooses: all at once, or one sample after another."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from seggym.envs.selection.state import SelectionState
from seggym.errors import SeggymError
from seggym.reward_models import seeding


class Query(NamedTuple):
    """The answer of a strategy.

    ``indices`` int64 (n,) are samples of the pool, the first one wanted most. ``utilities`` float64 belong to the
    state's K ``candidates``, higher is sooner: (K,) where the n best were taken, or (n, K) where the samples were
    chosen one after another, row i as it was when ``indices[i]`` was chosen (minus infinity for those before it).
    """

    indices: np.ndarray
    utilities: np.ndarray


class Strategy:
    """Chooses samples of a pool for annotation.

    Sub-classes are frozen dataclasses whose fields are the options. ``privileged`` ones see labels that nobody has
    annotated and are reported apart. Between calls nothing is kept but caches keyed by content: what is chosen follows
    from the state and the options, and all randomness comes from ``state.generator``, which a query reads once.
    """

    name: ClassVar[str]
    privileged: ClassVar[bool] = False

    @property
    def identity(self) -> dict[str, Any] | None:
        """Plain JSON that tells this strategy from others of its name."""
        # Through JSON, so that it equals what is read from a file.
        return json.loads(json.dumps(asdict(self))) if is_dataclass(self) else {}

    def query(self, state: SelectionState, n: int) -> Query:
        """Choose ``n`` different ones of the state's candidates.

        Raises :class:`SeggymError` where there are fewer than ``n``, or where the state withholds labels that a
        privileged strategy asks for.
        """
        candidates = state.candidates
        if not 1 <= n <= len(candidates):
            raise SeggymError(
                f"strategy {self.name} is asked for {n} samples, expected 1 to {len(candidates)}, the number of "
                "candidates: lower the budget or samples_per_query"
            )
        return self._query(state, candidates, n, state.generator)

    def _query(self, state: SelectionState, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
        """Choose ``n`` of ``candidates`` int64 (K,); 1 <= n <= K."""
        raise NotImplementedError


def uniform(generator: torch.Generator, *shape: int) -> np.ndarray:
    """Uniform on [0, 1): float64 of ``shape``."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).cpu().numpy()


def draw_seed(generator: torch.Generator) -> int:
    """A seed for libraries and networks that have randomness of their own."""
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """:func:`seggym.reward_models.seeding.seeded` with gradients recorded, wherever the query was asked for."""
    with torch.inference_mode(False), torch.enable_grad(), seeding.seeded(seed, device):
        yield


def choose_best(utilities: np.ndarray, candidates: np.ndarray, n: int, generator: torch.Generator) -> Query:
    """The ``n`` candidates of highest ``utilities`` (K,).

    Ties are broken at random: a pool is ordered by patient, and the first patients are not to be preferred.
    """
    order = np.lexsort((uniform(generator, len(candidates)), -utilities))
    return Query(candidates[order[:n]], np.asarray(utilities, dtype=np.float64))


def choose_in_turn(
    utilities: Callable[[list[int]], np.ndarray], candidates: np.ndarray, n: int, generator: torch.Generator
) -> Query:
    """Choose ``n`` candidates one after another, each the best by what ``utilities(chosen)`` (K,) then says.

    ``chosen`` are the positions within ``candidates`` that were chosen before, in order. Ties are broken at random.
    """
    priority = uniform(generator, len(candidates))
    chosen: list[int] = []
    rows = np.empty((n, len(candidates)))
    for row in rows:
        row[:] = utilities(chosen)
        row[chosen] = -np.inf
        best = np.flatnonzero(row == row.max())
        best = np.setdiff1d(best, chosen, assume_unique=True)  # where nothing but minus infinity is left
        chosen.append(int(best[priority[best].argmax()]))
    return Query(candidates[chosen], rows)


def strata(n: int, weights: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Which of S strata each of ``n`` picks belongs to, int64 (n,) in random order, by systematic sampling.

    Stratum s gets ``n * weights[s]`` picks on average (``weights`` (S,) sum to 1) and never misses that by one or more,
    so that small batches are as balanced as they can be and single picks are right on average.
    """
    draws = uniform(generator, n + 1)
    points = (np.arange(n) + draws[n]) / n
    # Rounding must not carry the last point past the last stratum.
    found = np.minimum(np.searchsorted(np.cumsum(weights), points, side="right"), len(weights) - 1)
    return found[np.argsort(draws[:n])]
