"""One episode as a query strategy sees it: the :class:`~seggym.envs.selection.state.SelectionState` of an engine."""

import numpy as np
import torch
from torch import Tensor

from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.state import SampleTable
from seggym.errors import SeggymError


class EpisodeView:
    """Episode ``slot`` of ``engine``; a ``privileged`` one answers for labels that nobody has annotated.

    It reads the engine and holds nothing, so it is of the moment at which it is asked.
    """

    def __init__(self, engine: SelectionEngine, slot: int = 0, privileged: bool = False) -> None:
        self._engine, self._slot, self._privileged = engine, slot, privileged
        self._row = torch.tensor([slot], device=engine.device)

    @property
    def samples(self) -> SampleTable:
        """The pool, annotated samples included."""
        return self._engine.pool.table

    @property
    def candidates(self) -> np.ndarray:
        """int64 (K,): who may be chosen now, ascending."""
        legal = self._engine.action_mask()[self._slot]
        return self._engine.candidates[self._slot][legal].cpu().numpy().copy()

    @property
    def labelled(self) -> np.ndarray:
        """int64 (L,): who is annotated, in the order of annotation."""
        count = int(self._engine.count[self._slot])
        return self._engine.order[self._slot, :count].cpu().numpy().copy()

    @property
    def round(self) -> int:
        """Retrainings so far, the one with the initial samples not counted."""
        return int(self._engine.rounds[self._slot]) - 1

    @property
    def num_classes(self) -> int:
        """Classes including the background."""
        return self._engine.pool.num_classes

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator of this pick, always the same one."""
        return torch.Generator().manual_seed(self._engine.strategy_seed(self._slot))

    def images(self, indices: np.ndarray) -> Tensor:
        """float32 (n, C, M H, W): the slices of a sample, one below the other."""
        return self._below(self._engine.pool.images[self._shown(indices)])

    def embeddings(self) -> Tensor:
        """float32 (P, D)."""
        return self._engine.pool.embeddings

    def probabilities(self, indices: np.ndarray) -> Tensor:
        """float32 (n, K, M h, w)."""
        shown = self._shown(indices)
        found = self._engine.learner.predict(self._row, shown.flatten()[None])[0].float()
        return self._below(found.unflatten(0, shown.shape))

    def member_probabilities(self, indices: np.ndarray, members: int) -> Tensor:
        """float32 (members, n, K, M h, w)."""
        shown = self._shown(indices)
        # Not the strategy's own numbers: members are the same whoever asks.
        generator = torch.Generator().manual_seed(self._engine.strategy_seed(self._slot) ^ 1)
        found = self._engine.learner.members(self._slot, shown.flatten(), members, generator).float()
        return torch.stack([self._below(member.unflatten(0, shown.shape)) for member in found])

    def learner_features(self, indices: np.ndarray) -> Tensor:
        """float32 (n, F)."""
        shown = self._shown(indices)
        found = self._engine.learner.features(self._slot, shown.flatten()).float()
        return found.unflatten(0, shown.shape).mean(1)

    def labels(self, indices: np.ndarray) -> Tensor:
        """What the annotator gave, to a privileged strategy the truth: uint8 (n, M H, W), int64 (n,) for images."""
        samples = self._samples(indices)
        oracle = self._engine.oracle
        if self._privileged:
            found = oracle.masks(samples)
        else:
            found = oracle.targets(samples, self._engine.labelled[self._slot])
        if self._engine.settings.classification:
            return found[:, 0]
        # Of a volume those slices that images() shows.
        slices, shown = self._engine.pool.slices[samples], self._engine.pool.shown[samples]
        place = (slices[:, None] == shown[:, :, None]).to(torch.uint8).argmax(2)
        rows = torch.arange(len(samples), device=found.device)[:, None]
        return found[rows, place].flatten(1, 2)

    def lookahead(self, indices: np.ndarray) -> np.ndarray:
        """float64 (n,): quality if each of ``indices`` alone were annotated now; for privileged strategies only."""
        if not self._privileged:
            raise SeggymError("looking ahead needs labels of the pool; only a strategy that declares privileged may")
        return self._engine.lookahead(self._slot, self._samples(indices)).double().cpu().numpy()

    def _samples(self, indices: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(indices, np.int64), device=self._engine.device)

    def _shown(self, indices: np.ndarray) -> Tensor:
        return self._engine.pool.shown[self._samples(indices)]

    @staticmethod
    def _below(values: Tensor) -> Tensor:
        """(n, M, C, h, w) as (n, C, M h, w)."""
        return values.transpose(1, 2).flatten(2, 3)
