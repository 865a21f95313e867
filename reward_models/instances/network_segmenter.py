"""What segmenters share that are one torch module: weights that follow from a seed, training, and their state."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seggym.reward_models.instances.segmenter import (
    Checkpointing,
    InstanceSegmenter,
    InstanceTarget,
    Thresholds,
    TrainingSettings,
    Validate,
)
from seggym.reward_models.instances.training import train
from seggym.reward_models.seeding import seeded


class NetworkSegmenter(InstanceSegmenter):
    """``network``, in evaluation mode and without gradients but while it is trained, on ``device``."""

    network: Any

    def __init__(self, classes: int, thresholds: Thresholds | None, device: torch.device | str, seed: int) -> None:
        self.classes, self.device = classes, torch.device(device)
        self.thresholds = thresholds or Thresholds()
        self.reset(seed)

    @abstractmethod
    def _build(self) -> Any:
        """The network with fresh weights, drawn from torch's generator."""

    @abstractmethod
    def _losses(self, images: Sequence[Tensor], targets: Sequence[InstanceTarget]) -> Callable[[list[int]], Tensor]:
        """The loss of the network on a batch, given as rows of ``images`` and ``targets``."""

    def reset(self, seed: int) -> None:
        """See the interface."""
        with seeded(seed, self.device):
            self.network = self._build().to(self.device).eval().requires_grad_(False)

    def fit(
        self,
        images: Sequence[Tensor],
        targets: Sequence[InstanceTarget],
        settings: TrainingSettings,
        seed: int,
        validate: Validate | None = None,
        best: float | None = None,
        checkpointing: Checkpointing | None = None,
    ) -> float | None:
        """See the interface."""
        losses = self._losses(images, targets)
        score = None if validate is None else lambda: validate(self)
        return train(self.network, losses, targets, settings, seed, score, best, checkpointing)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights; copies."""
        return {name: value.clone() for name, value in self.network.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with ``state``."""
        self.network.load_state_dict(state)
