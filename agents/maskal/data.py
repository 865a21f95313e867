"""Images and annotations of a folder as a segmenter wants them, read when they are asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seggym.cohorts.annotations.model import Annotation, rasterise
from seggym.cohorts.annotations.reading import ImageFolder
from seggym.reward_models.instances.segmenter import InstanceTarget

# Bytes of images that are kept once they have been read.
_KEPT = 1 << 28


class FolderImages(Sequence[Tensor]):
    """The images ``names`` of ``folder``, float32 (3, H, W) in [0, 1]; small sets are kept in memory."""

    def __init__(self, folder: ImageFolder, names: Sequence[str], kept: dict[str, np.ndarray] | None = None) -> None:
        self._folder, self.names = folder, list(names)
        self._kept: dict[str, np.ndarray] = {} if kept is None else kept

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: Any) -> Any:
        name = self.names[number]
        pixels = self._kept.get(name)
        if pixels is None:
            pixels = self._folder.image(name)
            if sum(image.nbytes for image in self._kept.values()) + pixels.nbytes <= _KEPT:
                self._kept[name] = pixels
        return torch.tensor(pixels).permute(2, 0, 1).float() / 255

    def of(self, names: Sequence[str]) -> "FolderImages":
        """The images ``names`` of the same folder."""
        return FolderImages(self._folder, names, self._kept)


class AnnotatedTargets(Sequence[InstanceTarget]):
    """``annotations`` as targets, rasterised when they are asked for."""

    def __init__(self, annotations: Sequence[Annotation], classes: Sequence[str]) -> None:
        self._annotations, self._classes = annotations, tuple(classes)

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, number: Any) -> Any:
        masks, labels = rasterise(self._annotations[number], self._classes)
        return InstanceTarget(torch.from_numpy(masks), torch.from_numpy(labels))


@dataclass(frozen=True)
class Effort:
    """What annotating cost: images, instances outlined, and vertices set."""

    images: int
    instances: int
    vertices: int


def effort(annotations: Mapping[str, Annotation]) -> Effort:
    """The effort behind ``annotations``."""
    found = annotations.values()
    return Effort(len(found), sum(len(one.instances) for one in found), sum(one.vertices for one in found))
