"""The pool of images at the moment of a query, as a strategy sees it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seggym.agents.maskal.data import AnnotatedTargets, FolderImages
from seggym.cohorts.annotations.model import Annotation
from seggym.envs.selection.state import SampleTable
from seggym.errors import SeggymError
from seggym.reward_models.instances.certainty import image_certainty, observe
from seggym.reward_models.instances.dense import label_map, probability_map, thumbnails
from seggym.reward_models.instances.segmenter import Detections, InstanceSegmenter, McDropout

# The square that images, maps of probabilities and labels are resized to for strategies that compare pixels.
SIDE = 64
# Images whose detections are held at a time.
_PART = 32


class PoolState:
    """All images of ``pool``, of which those in ``annotations`` are annotated, and what ``segmenter`` makes of them.

    It is a :class:`~seggym.agents.maskal.strategies.InstanceState`: labels of other images are not there to be asked.
    ``seed`` is that of the query; ``round`` the trainings before it, less one.
    """

    def __init__(
        self,
        pool: FolderImages,
        annotations: Mapping[str, Annotation],
        segmenter: InstanceSegmenter,
        classes: Sequence[str],
        seed: int,
        round: int,
    ) -> None:
        self._pool, self._annotations, self._segmenter = pool, annotations, segmenter
        self._classes, self._seed, self.round = tuple(classes), seed, round
        count = len(pool)
        self.samples = SampleTable(
            names=tuple(pool.names),
            patient=np.arange(count),
            volume=np.arange(count),
            phase=np.full(count, -1),
            position=np.zeros(count),
            slice_index=np.zeros(count, np.int64),
        )
        place = {name: number for number, name in enumerate(pool.names)}
        self.labelled = np.array([place[name] for name in annotations], np.int64)
        self.candidates = np.setdiff1d(np.arange(count), self.labelled)

    @property
    def num_classes(self) -> int:
        """Classes including the background."""
        return len(self._classes) + 1

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator of this query, always the same one."""
        return torch.Generator().manual_seed(self._seed)

    def images(self, indices: np.ndarray) -> Tensor:
        """float32 (n, 3, 64, 64): the images as squares."""
        return thumbnails(self._of(indices), SIDE)

    def embeddings(self) -> Tensor:
        """float32 (P, 192): averages of 8 x 8 blocks, standardised. No network has learned anything here."""
        coarse = functional.adaptive_avg_pool2d(self.images(np.arange(len(self._pool))), 8).flatten(1)
        centred = coarse - coarse.mean(0)
        return centred / centred.std(0, correction=0).clamp_min(1e-6)

    def probabilities(self, indices: np.ndarray) -> Tensor:
        """float32 (n, classes, 64, 64): class probabilities of the best detection in each pixel."""
        found = [probability_map(one, SIDE) for part in self._detected(indices, None) for one in part]
        return torch.stack(found) if found else torch.zeros(0, self.num_classes, SIDE, SIDE)

    def member_probabilities(self, indices: np.ndarray, members: int) -> Tensor:
        """float32 (M, n, classes, 64, 64): the same in each of ``members`` passes of Monte Carlo dropout."""
        found = [
            torch.stack([probability_map(one.take(one.passes == number), SIDE) for number in range(members)])
            for part in self._detected(indices, McDropout(members))
            for one in part
        ]
        return torch.stack(found, 1) if found else torch.zeros(members, 0, self.num_classes, SIDE, SIDE)

    def learner_features(self, indices: np.ndarray) -> Tensor:
        """float32 (n, F): what the heads see, averaged over the image."""
        return self._segmenter.features(self._of(indices)).cpu()

    def certainty(self, indices: np.ndarray, dropout: McDropout, threshold: float, mode: str) -> np.ndarray:
        """float64 (n,), NaN without detections."""
        parts = [
            image_certainty(observe(part, dropout.passes, threshold), mode).cpu().numpy()
            for part in self._detected(indices, dropout)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def labels(self, indices: np.ndarray) -> Tensor:
        """uint8 (n, 64, 64): classes of annotated images; of others it raises :class:`SeggymError`."""
        names = [self._pool.names[index] for index in indices]
        unknown = [name for name in names if name not in self._annotations]
        if unknown:
            raise SeggymError(f"the annotation of {unknown[0]} was asked for before anybody made it")
        targets = AnnotatedTargets([self._annotations[name] for name in names], self._classes)
        found = [label_map(target, SIDE) for target in targets]
        return torch.stack(found) if found else torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)

    def lookahead(self, indices: np.ndarray) -> np.ndarray:
        """Never: it would need labels of the pool."""
        raise SeggymError("looking ahead needs labels of the pool, which nobody has here")

    def _of(self, indices: np.ndarray) -> FolderImages:
        return self._pool.of([self._pool.names[index] for index in indices])

    def _detected(self, indices: np.ndarray, dropout: McDropout | None) -> Iterator[list[Detections]]:
        """What is found in a few images after the others."""
        images = self._of(indices)
        # Not the strategy's own numbers: passes are the same whoever asks.
        generator = torch.Generator().manual_seed(self._seed ^ 1)
        for start in range(0, len(images), _PART):
            part = images.of(images.names[start : start + _PART])
            yield self._segmenter.detect(part, dropout, generator)
