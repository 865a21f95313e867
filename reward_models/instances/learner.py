"""Instance segmenters of the episodes of active learning: one small network for each, trained on at every query."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seggym.configs.checking import require_at_least
from seggym.errors import SeggymError
from seggym.kspace.keyed_random import random_bits
from seggym.reward_models.instances.certainty import image_certainty, observe
from seggym.reward_models.instances.dense import probability_map
from seggym.reward_models.instances.detection_metrics import average_precision
from seggym.reward_models.instances.segmenter import Detections, InstanceTarget, McDropout, Thresholds, TrainingSettings
from seggym.reward_models.instances.small import SmallOptions
from seggym.reward_models.instances.small_segmenter import SmallSegmenter

# Passes behind Learner.disagreement, and the mask IoU of one observation.
_PASSES, _OBSERVATION = 4, 0.5


@dataclass(frozen=True)
class InstanceOptions:
    """How the network of an episode is trained: ``first_iterations`` on the initial samples, then ``iterations`` at
    every retraining, from the weights before ("fine_tune") or anew ("scratch", with ``first_iterations`` each time)."""

    first_iterations: int = 150
    iterations: int = 40
    batch: int = 8
    learning_rate: float = 0.05
    start: str = "fine_tune"
    width: int = 24
    proposals: int = 16
    dropout: float = 0.25
    confidence: float = 0.05
    nms: float = 0.5

    def __post_init__(self) -> None:
        if self.start not in ("scratch", "fine_tune"):
            raise SeggymError(f"learner_options.start={self.start!r} is unknown, expected scratch or fine_tune")
        require_at_least(self, "learner_options.", first_iterations=1, iterations=1, batch=1, proposals=1)
        if not self.learning_rate > 0 or not 0 <= self.confidence <= 1 or not 0 <= self.nms <= 1:
            raise SeggymError(
                "learner_options must have learning_rate > 0, and confidence and nms between 0 and 1, found "
                f"{self.learning_rate}, {self.confidence} and {self.nms}"
            )


@dataclass(frozen=True)
class InstanceSet:
    """Images whose objects a learner is scored with: ``slices`` int64 (m,) in the bank, and what is in each."""

    slices: Tensor
    targets: tuple[InstanceTarget, ...]


class InstanceLearner:
    """Small networks of N episodes: a :class:`~seggym.reward_models.learners.Learner` that is scored by
    :meth:`precision` and has no overlap of cases.

    ``images`` float32 (n, 3, S, S) is the bank. A lesson is uint8 (G, S, S): one plane for each object, with its class
    where it is, and planes of zeros.
    """

    def __init__(
        self,
        images: Tensor,
        scored: Mapping[str, InstanceSet],
        num_classes: int,
        num_envs: int,
        options: InstanceOptions,
    ) -> None:
        self.images, self.num_classes, self.num_envs, self.options = images, num_classes, num_envs, options
        self._scored = scored
        small = SmallOptions(images.shape[-1], options.width, options.dropout, proposals=options.proposals)
        limits = Thresholds(options.confidence, options.nms)
        self._segmenter = SmallSegmenter(num_classes - 1, small, limits, images.device)
        self._weights: list[dict[str, Tensor]] = [{} for _ in range(num_envs)]
        self._slices = [torch.zeros(0, dtype=torch.int64)] * num_envs
        self._lessons: list[Tensor] = [torch.zeros(0, dtype=torch.uint8)] * num_envs

    def digest(self, slices: Tensor, targets: Tensor) -> Tensor:
        """The targets themselves."""
        return targets

    def begin(self, rows: Tensor) -> None:
        """Forget everything."""
        for row in rows.tolist():
            self._weights[row] = {}
            self._slices[row], self._lessons[row] = self._slices[row][:0], self._lessons[row][:0]

    def teach(self, rows: Tensor, slices: Tensor, lessons: Tensor, keys: Tensor, rounds: Tensor) -> None:
        """Add samples and train the networks again; their weights and batches follow from the keys."""
        seeds = random_bits(keys, 0, 2).tolist()
        for row, numbers, given, (weights_seed, seed) in zip(
            rows.tolist(), slices[:, :, 0], lessons, seeds, strict=True
        ):
            there = numbers >= 0
            new, planes = numbers[there], given[there]
            self._slices[row] = torch.cat([self._slices[row].to(new), new])
            self._lessons[row] = (
                torch.cat([self._lessons[row].to(planes), planes]) if len(self._lessons[row]) else planes
            )
            goes_on = bool(self._weights[row]) and self.options.start == "fine_tune"
            if goes_on:
                self._segmenter.load_state_dict(self._weights[row])
            else:
                self._segmenter.reset(weights_seed)
            self._segmenter.fit(
                self.images[self._slices[row]].unbind(0),
                [instances(planes) for planes in self._lessons[row]],
                self._training(self.options.iterations if goes_on else self.options.first_iterations),
                seed,
            )
            self._weights[row] = self._segmenter.state_dict()

    def _training(self, iterations: int) -> TrainingSettings:
        options = self.options
        warmup = max(1, iterations // 10)
        return TrainingSettings(iterations, options.batch, options.learning_rate, warmup, schedule="cosine")

    def _detect(
        self, row: int, slices: Tensor, dropout: McDropout | None = None, generator: torch.Generator | None = None
    ) -> list[Detections]:
        self._segmenter.load_state_dict(self._weights[row])
        return self._segmenter.detect(self.images[slices].unbind(0), dropout, generator)

    def predict(self, rows: Tensor, slices: Tensor) -> Tensor:
        """Class probabilities of the best detection in each pixel."""
        side = self.images.shape[-1]
        return torch.stack(
            [
                torch.stack([probability_map(found, side) for found in self._detect(row, numbers)])
                for row, numbers in zip(rows.tolist(), slices, strict=True)
            ]
        )

    def members(self, row: int, slices: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Passes of Monte Carlo dropout."""
        side = self.images.shape[-1]
        found = [
            torch.stack([probability_map(one.take(one.passes == number), side) for number in range(count)])
            for one in self._detect(row, slices, McDropout(count), generator)
        ]
        return torch.stack(found, 1)

    def disagreement(self, rows: Tensor, slices: Tensor) -> Tensor:
        """1 - the mean certainty of an image; 1 for one without detections."""
        dropout = McDropout(_PASSES)
        found = [
            1 - self.certainty(row, numbers, dropout, _OBSERVATION, "mean", torch.Generator().manual_seed(0))
            for row, numbers in zip(rows.tolist(), slices, strict=True)
        ]
        return torch.stack(found).nan_to_num(1.0)

    def certainty(
        self, row: int, slices: Tensor, dropout: McDropout, threshold: float, mode: str, generator: torch.Generator
    ) -> Tensor:
        """float64 (n,), NaN without detections; see :mod:`seggym.reward_models.instances.certainty`."""
        found = self._detect(row, slices, dropout, generator)
        return image_certainty(observe(found, dropout.passes, threshold), mode)

    def features(self, row: int, slices: Tensor) -> Tensor:
        """What the heads see, averaged over the image, (n, F)."""
        self._segmenter.load_state_dict(self._weights[row])
        return self._segmenter.features(self.images[slices].unbind(0))

    def precision(self, rows: Tensor, scored: str) -> tuple[Tensor, Tensor]:
        """mAP (B,) and AP of each class (B, C), float64, of the set called ``scored``; NaN where there is no object."""
        part = self._scored[scored]
        found = [
            average_precision(self._detect(row, part.slices), part.targets, self.num_classes - 1)
            for row in rows.tolist()
        ]
        maps = torch.tensor([one.map for one in found], dtype=torch.float64)
        per_class = torch.stack([torch.from_numpy(one.per_class) for one in found])
        return maps.to(self.images.device), per_class.to(self.images.device)

    def sibling(self, num_envs: int) -> "InstanceLearner":
        """A learner of ``num_envs`` other episodes on the same images."""
        return InstanceLearner(self.images, self._scored, self.num_classes, num_envs, self.options)

    def take(self, other: "InstanceLearner", rows: Tensor) -> None:
        """Go on from the state of ``rows`` int64 (N,) of ``other``, a sibling."""
        for mine, row in enumerate(rows.tolist()):
            self._weights[mine] = other._weights[row]
            self._slices[mine], self._lessons[mine] = other._slices[row], other._lessons[row]

    def state_dict(self) -> dict[str, Any]:
        """What was taught, and the weights."""
        return {
            "slices": [numbers.clone() for numbers in self._slices],
            "lessons": [planes.clone() for planes in self._lessons],
            "weights": [{name: value.clone() for name, value in weights.items()} for weights in self._weights],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        if len(state.get("weights", [])) != self.num_envs:
            raise SeggymError(
                f"the state of the learner holds the networks of {len(state.get('weights', []))} episodes, expected "
                f"{self.num_envs}; make the environment with the same learner and num_envs"
            )
        self._slices = [numbers.clone() for numbers in state["slices"]]
        self._lessons = [planes.clone() for planes in state["lessons"]]
        self._weights = [dict(weights) for weights in state["weights"]]


def instances(planes: Tensor) -> InstanceTarget:
    """A lesson uint8 (G, S, S) as the objects that it shows."""
    shown = planes[(planes > 0).flatten(1).any(1)]
    return InstanceTarget(shown > 0, shown.flatten(1).amax(1).long() if len(shown) else shown.new_zeros(0).long())


def planes(targets: list[InstanceTarget]) -> Tensor:
    """Objects of n images as lessons, uint8 (n, G, S, S), padded to as many as the fullest has."""
    drawn = [target.masks.to(torch.uint8) * target.labels.to(torch.uint8)[:, None, None] for target in targets]
    return torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True)
