"""The samples of a pool: which slices belong to each, what is known of them without labels, and who may see labels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seggym.envs.selection.state import SampleTable
from seggym.errors import SeggymError
from seggym.reward_models.learners import UNLABELLED

# Slices that stand for a sample of many where it is looked at as one image.
_MOST_SHOWN = 16


@dataclass(frozen=True)
class Pool:
    """P samples and the bank of images that they are made of.

    ``images`` float32 (n, C, H, W) is the bank: the pool's slices and all others that anything is computed for.
    ``slices`` int64 (P, S) are those of each sample, -1 for none; ``shown`` int64 (P, M) those it is looked at through:
    itself, or M evenly spaced ones of a volume or patient, repeated where there are fewer. ``state`` int64 (s,) are the
    slices of the state set. ``embeddings`` float32 (P, D) come from an encoder that saw no label. ``initial`` int64 are
    samples that every episode begins with; empty where they are drawn. ``volumes`` int64 (P,) are numbers of what is
    opened when a sample is annotated, ``opened`` how many volumes that are.
    """

    table: SampleTable
    images: Tensor
    slices: Tensor
    shown: Tensor
    state: Tensor
    embeddings: Tensor
    class_names: tuple[str, ...]
    initial: Tensor
    opened: Tensor

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_classes(self) -> int:
        """K, the background of a segmentation included."""
        return len(self.class_names)

    def to(self, device: torch.device) -> "Pool":
        """The same pool with its tensors on ``device``."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Pool(**{**vars(self), **moved})


def group_slices(groups: np.ndarray, order: np.ndarray) -> tuple[Tensor, Tensor]:
    """``slices`` and ``shown`` of a :class:`Pool`; slice ``order[i]`` of the bank belongs to sample ``groups[i]``.

    Samples are numbered 0..P-1; slices keep their order within a sample.
    """
    members = [order[groups == sample] for sample in range(int(groups.max()) + 1)]
    longest = max(map(len, members))
    slices = np.full((len(members), longest), -1, np.int64)
    shown = np.zeros((len(members), min(longest, _MOST_SHOWN)), np.int64)
    for sample, of_sample in enumerate(members):
        slices[sample, : len(of_sample)] = of_sample
        places = (np.arange(shown.shape[1]) + 0.5) * len(of_sample) / shown.shape[1]
        shown[sample] = of_sample[places.astype(np.int64)]
    return torch.from_numpy(slices), torch.from_numpy(shown)


class Oracle:
    """The only holder of the pool's labels; it answers for samples that are being annotated, and for nothing else.

    ``masks`` and ``targets`` are uint8 (P, S, H, W), or int64 (P, 1) for images with one label: the truth, and what an
    annotator gives of it (the same, or a scribble), UNLABELLED where a sample has no such slice. ``digest`` makes
    lessons of targets, once for every sample, so that annotating is cheap.
    """

    def __init__(self, masks: Tensor, targets: Tensor, num_classes: int, digest: Callable[[Tensor], Tensor]) -> None:
        self._masks, self._targets = masks, targets
        self._lessons = digest(targets)
        pixels = targets.flatten(1)
        self._histograms = torch.stack([(pixels == label).sum(1) for label in range(num_classes)], 1)

    def annotate(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Lessons and annotated pixels per class, int64 (..., K), of ``samples`` int64 (...), now annotated."""
        return self._lessons[samples], self._histograms[samples]

    def targets(self, samples: Tensor, annotated: Tensor) -> Tensor:
        """What the annotator gave of ``samples`` int64 (n,): (n, S, H, W). They must be ``annotated`` bool (P,)."""
        if not bool(annotated[samples].all()):
            first = int(samples[~annotated[samples]][0])
            raise SeggymError(
                f"the label of sample {first} was asked for before it is annotated; only a strategy that declares "
                "privileged = True may see it"
            )
        return self._targets[samples]

    def masks(self, samples: Tensor) -> Tensor:
        """The truth about ``samples``, for privileged strategies."""
        return self._masks[samples]


def gather_targets(labels: Tensor, slices: Tensor) -> Tensor:
    """``labels`` uint8 (n, H, W) of the bank as targets (P, S, H, W) of ``slices`` int64 (P, S), UNLABELLED for -1."""
    targets = labels[slices.clamp_min(0)]
    targets[slices < 0] = UNLABELLED
    return targets
