"""What learners share that train a network for every episode: what they were taught, members, dropout and resume."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seggym.configs.checking import require_at_least, require_choices
from seggym.errors import SeggymError
from seggym.kspace.keyed_random import random_bits
from seggym.reward_models.learners import ScoredSet, case_sums
from seggym.reward_models.metrics import Overlap, most_probable
from seggym.reward_models.precision import native_precision
from seggym.reward_models.schedules import rise_and_fall
from seggym.reward_models.seeding import seeded

# Images that pass through a network at a time.
_BATCH = 32
# Passes of Monte Carlo dropout behind Learner.disagreement where there is no ensemble.
_PASSES = 4


@dataclass(frozen=True)
class NetworkOptions:
    """How the network of an episode is trained, at every retraining.

    ``iterations`` of AdamW with batches of ``batch`` images, the learning rate rising to ``learning_rate`` and falling
    again; ``start`` "scratch" or "fine_tune" (from the weights of the round before); ``ensemble`` networks; ``dropout``
    at the deepest level, active in training and in Monte Carlo passes. With ``validate_every`` the network is scored on
    the set "reward" every so many iterations, and each member's best weights are kept; by default the last ones are, so
    that no label but those annotated decides anything. ``precision`` of the convolutions in training: "auto" is bf16
    where the processor or GPU computes in it, else fp32; weights, losses and predictions are fp32.
    """

    iterations: int = 600
    batch: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    start: str = "scratch"
    ensemble: int = 1
    dropout: float = 0.5
    widths: Sequence[int] = (16, 32, 64, 128)
    validate_every: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.start not in ("scratch", "fine_tune"):
            raise SeggymError(f"learner_options.start={self.start!r} is unknown, expected scratch or fine_tune")
        require_at_least(self, "learner_options.", iterations=1, batch=1, ensemble=1, validate_every=0)
        if not self.learning_rate > 0 or self.weight_decay < 0 or not 0 <= self.dropout < 1:
            raise SeggymError(
                f"learner_options must have learning_rate > 0, weight_decay >= 0 and 0 <= dropout < 1, found "
                f"{self.learning_rate}, {self.weight_decay} and {self.dropout}"
            )
        require_choices(self, {"precision": ("auto", "fp32", "bf16")})


class NetworkLearner(ABC):
    """Networks of N episodes, trained one after the other (see :class:`seggym.reward_models.learners.Learner`).

    ``images`` float32 (n, C, H, W) is the bank. A sub-class says what a network is and how a batch is scored.
    """

    def __init__(
        self,
        images: Tensor,
        scored: Mapping[str, ScoredSet],
        num_classes: int,
        num_envs: int,
        options: NetworkOptions,
    ) -> None:
        self.images, self.num_classes, self.num_envs, self.options = images, num_classes, num_envs, options
        device = images.device
        self._bf16 = (native_precision(device) if options.precision == "auto" else options.precision) == "bf16"
        self._scored = scored
        self._networks: list[list[nn.Module]] = [[] for _ in range(num_envs)]
        self._slices = [torch.zeros(0, dtype=torch.int64)] * num_envs
        self._targets: list[Tensor] = [torch.zeros(0, dtype=torch.uint8)] * num_envs

    @abstractmethod
    def build(self) -> nn.Module:
        """A fresh network: images (B, C, H, W) to (logits (B, K, ...), what its last layer sees (B, F, ...))."""

    @abstractmethod
    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of a batch, changed at random beforehand; torch's generator is seeded.

        The network is called within :meth:`reduced`, the loss is computed in fp32.
        """

    def reduced(self) -> AbstractContextManager[Any]:
        """Where convolutions are computed in the precision of training."""
        return torch.autocast(self.images.device.type, torch.bfloat16, enabled=self._bf16)

    def _built(self) -> nn.Module:
        # Convolutions are fastest, and bf16 ones far faster, where the channels of a pixel lie together.
        network = self.build().to(self.images.device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's annotations

    def digest(self, slices: Tensor, targets: Tensor) -> Tensor:
        """The targets themselves."""
        return targets

    def begin(self, rows: Tensor) -> None:
        """Forget everything."""
        for row in rows.tolist():
            self._networks[row] = []
            self._slices[row], self._targets[row] = self._slices[row][:0], self._targets[row][:0]

    def teach(self, rows: Tensor, slices: Tensor, lessons: Tensor, keys: Tensor, rounds: Tensor) -> None:
        """Add samples and train the networks again; their weights and batches follow from the keys."""
        seeds = random_bits(keys, 0, self.options.ensemble).tolist()
        for row, numbers, targets, seed in zip(rows.tolist(), slices, lessons, seeds, strict=True):
            there = (numbers >= 0).flatten()
            found, given = numbers.flatten()[there], targets.flatten(0, 1)[there]
            self._slices[row] = torch.cat([self._slices[row].to(found), found])
            self._targets[row] = torch.cat([self._targets[row].to(given), given]) if len(self._targets[row]) else given
            before = self._networks[row] if self.options.start == "fine_tune" else []
            self._networks[row] = [
                self._train(row, seed[member], before[member] if before else None)
                for member in range(self.options.ensemble)
            ]

    def _train(self, row: int, seed: int, start: nn.Module | None) -> nn.Module:
        images, targets, options = self.images[self._slices[row]], self._targets[row], self.options
        with seeded(seed, images.device):
            network = self._built() if start is None else copy.deepcopy(start)
            network.requires_grad_(True).train()
            optimizer = torch.optim.AdamW(
                network.parameters(), options.learning_rate, weight_decay=options.weight_decay
            )
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rise_and_fall(options.iterations))
            best: tuple[float, dict[str, Tensor]] = (-1.0, {})
            for number in range(1, options.iterations + 1):
                chosen = torch.randint(len(images), (options.batch,)).to(images.device)
                loss = self.loss(network, images[chosen], targets[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if options.validate_every and (number % options.validate_every == 0 or number == options.iterations):
                    quality = self._quality(network)
                    if quality > best[0]:
                        best = quality, copy.deepcopy(network.state_dict())
            if best[1]:
                network.load_state_dict(best[1])
        return network.eval().requires_grad_(False)

    def _quality(self, network: nn.Module) -> float:
        """Mean Dice (of images: F1) over the classes of the cases of the set "reward", which draws no random number."""
        network.eval()
        shared, predicted, true = self._overlap([network], self._scored["reward"])
        network.train()
        first = 0 if self._scored["reward"].labels.ndim == 1 else 1
        dice = (2 * shared / (predicted + true)).masked_fill(true == 0, torch.nan)[:, first:]
        return float(dice.nanmean(1).nanmean())

    def predict(self, rows: Tensor, slices: Tensor) -> Tensor:
        """Class probabilities, the mean of the members."""
        return torch.stack(
            [self._members(row, numbers).mean(0) for row, numbers in zip(rows.tolist(), slices, strict=True)]
        )

    def _members(self, row: int, slices: Tensor) -> Tensor:
        """Probabilities of every member, (M, n, K, ...)."""
        return self._each(self._networks[row], slices)

    def _each(self, networks: Sequence[nn.Module], slices: Tensor) -> Tensor:
        return torch.stack([self._run(network, slices)[0] for network in networks])

    def _run(self, network: nn.Module, slices: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            parts = [
                network(self.images[part].contiguous(memory_format=torch.channels_last))
                for part in slices.split(_BATCH)
            ]
        probabilities = torch.cat([logits.softmax(1) for logits, _ in parts])
        features = torch.cat([seen.flatten(2).mean(2) for _, seen in parts])
        return (probabilities if probabilities.ndim == 4 else probabilities[:, :, None, None]).clone(), features.clone()

    def members(self, row: int, slices: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The members of the ensemble; of a single network ``count`` passes of Monte Carlo dropout."""
        if self.options.ensemble > 1:
            return self._members(row, slices)
        return self._passes(row, slices, count, int(torch.randint(2**62, (1,), generator=generator)))

    def _passes(self, row: int, slices: Tensor, count: int, seed: int) -> Tensor:
        network = self._networks[row][0]
        dropouts = [module for module in network.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
        with seeded(seed, self.images.device):
            # Dropout alone: batch norm would otherwise learn from what it predicts.
            for module in dropouts:
                module.train()
            passes = torch.stack([self._run(network, slices)[0] for _ in range(count)])
            for module in dropouts:
                module.eval()
        return passes

    def disagreement(self, rows: Tensor, slices: Tensor) -> Tensor:
        """Mutual information of prediction and weights (BALD, Houlsby et al. 2011) over ln K, image mean."""
        found = []
        for row, numbers in zip(rows.tolist(), slices, strict=True):
            single = self.options.ensemble == 1
            passes = self._passes(row, numbers, _PASSES, 0) if single else self._members(row, numbers)
            information = _entropy(passes.mean(0)) - _entropy(passes).mean(0)
            found.append(information.flatten(1).mean(1).clamp_min(0))
        return torch.stack(found) / torch.log(torch.tensor(float(self.num_classes)))

    def features(self, row: int, slices: Tensor) -> Tensor:
        """What the last layer of the first member sees, averaged over the image, (n, F)."""
        return self._run(self._networks[row][0], slices)[1]

    def overlap(self, rows: Tensor, scored: str) -> Overlap:
        """At full resolution, of the most probable classes."""
        found = [self._overlap(self._networks[row], self._scored[scored]) for row in rows.tolist()]
        return Overlap(*(torch.stack(values) for values in zip(*found, strict=True)))

    def _overlap(self, networks: Sequence[nn.Module], part: ScoredSet) -> Overlap:
        """What the mean of ``networks`` predicts of ``part``, (cases, K) each."""
        predicted = [most_probable(self._each(networks, some).mean(0)) for some in part.slices.split(_BATCH)]
        joint = self._joint(torch.cat(predicted), part.labels)
        sums = (joint.diagonal(dim1=1, dim2=2), joint.sum(1), joint.sum(2))
        return Overlap(*(case_sums(value[None], part.cases, len(part.names))[0] for value in sums))

    def _joint(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Pixels by true and predicted class, float32 (n, K, K)."""
        classes, count = self.num_classes, len(labels)
        pairs = labels.reshape(count, -1).long() * classes + predicted.reshape(count, -1)
        entries = pairs + classes**2 * torch.arange(count, device=pairs.device)[:, None]
        return torch.bincount(entries.flatten(), minlength=count * classes**2).view(count, classes, classes).float()

    def sibling(self, num_envs: int) -> "NetworkLearner":
        """A learner of ``num_envs`` other episodes on the same images."""
        return type(self)(self.images, self._scored, self.num_classes, num_envs, self.options)

    def take(self, other: "NetworkLearner", rows: Tensor) -> None:
        """Go on from the state of ``rows`` int64 (N,) of ``other``, a sibling."""
        for mine, row in enumerate(rows.tolist()):
            self._networks[mine] = copy.deepcopy(other._networks[row])
            self._slices[mine], self._targets[mine] = other._slices[row], other._targets[row]

    def state_dict(self) -> dict[str, Any]:
        """What was taught, and the weights."""
        return {
            "slices": [numbers.clone() for numbers in self._slices],
            "targets": [targets.clone() for targets in self._targets],
            "networks": [
                [{name: value.clone() for name, value in network.state_dict().items()} for network in members]
                for members in self._networks
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        if len(state.get("networks", [])) != self.num_envs:
            raise SeggymError(
                f"the state of the learner holds the networks of {len(state.get('networks', []))} episodes, expected "
                f"{self.num_envs}; make the environment with the same learner and num_envs"
            )
        self._slices = [numbers.clone() for numbers in state["slices"]]
        self._targets = [targets.clone() for targets in state["targets"]]
        for row, members in enumerate(state["networks"]):
            self._networks[row] = []
            for weights in members:
                with seeded(0, self.images.device):
                    network = self._built()
                network.load_state_dict(weights)
                self._networks[row].append(network.eval().requires_grad_(False))


def turned(images: Tensor, targets: Tensor, outside: int) -> tuple[Tensor, Tensor]:
    """A batch turned by up to 20 degrees, scaled by up to 15 % and mirrored at random, and changed in contrast.

    ``targets`` uint8 (B, H, W) move with ``images`` (B, C, H, W) and are ``outside`` beyond the border.
    """
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * 0.35
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.15
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    cosine, sine, zero = scale * angle.cos(), scale * angle.sin(), torch.zeros(count)
    rows = [torch.stack([cosine * mirror, -sine, zero], 1), torch.stack([sine * mirror, cosine, zero], 1)]
    grid = nn.functional.affine_grid(torch.stack(rows, 1).to(images), list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images, grid, align_corners=False)
    # Shifted by one, so that 0, what lies beyond the border, is no class.
    shifted = nn.functional.grid_sample(targets[:, None].float() + 1, grid, mode="nearest", align_corners=False)
    labels = shifted[:, 0].round().long() - 1
    gamma = torch.exp((torch.rand(count, 1, 1, 1) * 2 - 1) * 0.3).to(images)
    return moved.clamp_min(1e-4) ** gamma, torch.where(labels < 0, outside, labels)


def _entropy(probabilities: Tensor) -> Tensor:
    """Of (..., K, h, w), in nats: (..., h, w)."""
    return -(probabilities * probabilities.clamp_min(1e-8).log()).sum(-3)
