"""The cheap learner: a ridge classifier of the positions of a frozen encoder, in closed form.

A position stands for the pixels beneath it, 16 at a stride of 4. With x its features and y_k the share of its pixels
that are annotated as class k, the weights are those of a ridge regression of y on x in which class k counts
n_k^(-``balance``) times, n_k being its annotated pixels: without that the background would outvote the rest. All that
an annotated sample contributes is the sum over positions of y_k x x^T for each class, a *lesson*, which is computed
once per sample; annotating one adds its lesson and solves one system of linear equations.

A prediction is one class per position, so its overlap with full-resolution labels follows exactly from the number of
pixels of each class beneath each position.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seggym.errors import SeggymError
from seggym.reward_models.learners import ScoredSet, case_sums
from seggym.reward_models.metrics import Overlap, most_probable

# The smallest value of a regression that counts as a probability.
_LEAST = 0.02
# Random features, and how much they vary.
_HIDDEN, _STEEPNESS = 64, 1.5
# Neighbouring positions say nearly the same: so many of them count as one observation when uncertainty is computed.
_CORRELATED = 64.0


@dataclass(frozen=True)
class ProbeOptions:
    """``ridge`` is the penalty in units of one slice (the constant feature has none), ``balance`` see the module."""

    ridge: float = 0.02
    balance: float = 0.5

    def __post_init__(self) -> None:
        if not self.ridge > 0 or not 0 <= self.balance <= 1:
            raise SeggymError(
                f"learner_options must have ridge > 0 and 0 <= balance <= 1, found {self.ridge} and {self.balance}"
            )


class ProbeLearner:
    """Ridge classifiers of N episodes (see :class:`seggym.reward_models.learners.Learner`).

    ``features`` float (n, d, h, w) of every slice of the bank, the last of them constant 1 (:func:`position_features`).
    """

    def __init__(
        self,
        features: Tensor,
        scored: Mapping[str, ScoredSet],
        num_classes: int,
        num_envs: int,
        options: ProbeOptions | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.grid = tuple(features.shape[-2:])
        self.options = options or ProbeOptions()
        self._features = features.flatten(2).contiguous()
        self._gram: Tensor | None = None
        self._scored = {name: _Scored(self._features, part, self.grid, num_classes) for name, part in scored.items()}
        size = features.shape[1]
        self._lessons = features.new_zeros(num_envs, num_classes, size, size)
        self._weights = features.new_zeros(num_envs, num_classes, size)
        self._inverse = features.new_zeros(num_envs, size, size)
        self._noise = features.new_zeros(num_envs, num_classes)

    def digest(self, slices: Tensor, targets: Tensor) -> Tensor:
        """Lessons (P, K, d, d)."""
        lessons = []
        for numbers, target in zip(slices, targets, strict=True):
            there = numbers >= 0
            shares = _counts(target[there], self.num_classes, self.grid).to(self._features) / self._pixels(target)
            x = self._features[numbers[there]]
            lessons.append(torch.stack([torch.bmm(x * share[:, None], x.mT).sum(0) for share in shares.unbind(1)]))
        return torch.stack(lessons)

    def _pixels(self, target: Tensor) -> int:
        return target.shape[-2] * target.shape[-1] // (self.grid[0] * self.grid[1])

    def begin(self, rows: Tensor) -> None:
        """Forget everything."""
        for state in (self._lessons, self._weights, self._inverse, self._noise):
            state[rows] = 0

    def teach(self, rows: Tensor, slices: Tensor, lessons: Tensor, keys: Tensor, rounds: Tensor) -> None:
        """Add lessons and solve; nothing is random."""
        known = self._lessons[rows]
        for number in range(lessons.shape[1]):
            # One after the other, so that the sum does not depend on how many came at once.
            present = (slices[:, number] >= 0).any(-1)
            known = torch.where(present[:, None, None, None], known + lessons[:, number], known)
        self._lessons[rows] = known
        size, positions = known.shape[-1], self.grid[0] * self.grid[1]
        counts = known[:, :, -1, -1]
        weight = torch.where(counts > 0, counts.clamp_min(1e-6) ** -self.options.balance, 0)
        # In units of annotated positions, whatever the weights are.
        weight = weight * (counts.sum(1) / (weight * counts).sum(1).clamp_min(1e-12))[:, None]
        weighted = known * weight[:, :, None, None]
        penalty = torch.full((size,), self.options.ridge * positions, dtype=known.dtype, device=known.device)
        penalty[-1] = 1e-6 * positions
        system = weighted.sum(1) + torch.diag(penalty)
        right = weighted[:, :, :, -1]
        factor = torch.linalg.cholesky(system)
        weights = torch.cholesky_solve(right.mT, factor).mT
        self._weights[rows] = weights
        self._inverse[rows] = torch.cholesky_inverse(factor)
        # Shares are nearly 0 or 1, so a sum of squares is nearly the sum.
        residual = weighted[:, :, -1, -1] - (weights * right).sum(-1)
        self._noise[rows] = (residual / weighted[:, :, -1, -1].sum(1, keepdim=True).clamp_min(1e-12)).clamp_min(0)

    def predict(self, rows: Tensor, slices: Tensor) -> Tensor:
        """Class probabilities of every position, (B, n, K, h, w)."""
        values = self._weights[rows][:, None] @ self._features[slices]
        return self._probabilities(values)

    def _probabilities(self, values: Tensor) -> Tensor:
        values = values.clamp_(_LEAST, 1)
        return (values / values.sum(-2, keepdim=True)).unflatten(-1, self.grid)

    def members(self, row: int, slices: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draws from the posterior of the weights, (M, n, K, h, w)."""
        inverse = self._inverse[row].double()
        values, vectors = torch.linalg.eigh(inverse)
        root = (vectors * values.clamp_min(0).sqrt()).to(self._features)
        noise = torch.randn(count, self.num_classes, len(root), generator=generator).to(root)
        scale = (self._noise[row] * _CORRELATED).sqrt()
        weights = self._weights[row] + scale[:, None] * (noise @ root.T)
        return self._probabilities(weights[:, None] @ self._features[slices])

    def disagreement(self, rows: Tensor, slices: Tensor) -> Tensor:
        """Mean variance v of the regression at the positions of a slice, in units of the noise, as v / (1 + v)."""
        gram = self._gram_of(slices)
        variance = _CORRELATED * (self._inverse[rows][:, None] * gram).sum((-2, -1)).clamp_min(0)
        return variance / (1 + variance)

    def _gram_of(self, slices: Tensor) -> Tensor:
        """Mean of x x^T over the positions of slices; (..., d, d)."""
        if self._gram is None:
            self._gram = torch.cat([part @ part.mT for part in self._features.split(64)]) / self._features.shape[-1]
        return self._gram[slices]

    def features(self, row: int, slices: Tensor) -> Tensor:
        """The features themselves, averaged over positions, (n, d)."""
        return self._features[slices].mean(-1)

    def overlap(self, rows: Tensor, scored: str) -> Overlap:
        """From the pixels of each class beneath each position."""
        return self._scored[scored].overlap(self._weights[rows])

    _STATE = ("_lessons", "_weights", "_inverse", "_noise")

    def sibling(self, num_envs: int) -> "ProbeLearner":
        """A learner of ``num_envs`` other episodes; features and scored slices are shared."""
        other = copy.copy(self)
        for name in self._STATE:
            state = getattr(self, name)
            setattr(other, name, state.new_zeros(num_envs, *state.shape[1:]))
        return other

    def take(self, other: "ProbeLearner", rows: Tensor) -> None:
        """Go on from the state of ``rows`` int64 (N,) of ``other``, a sibling."""
        for name in self._STATE:
            getattr(self, name).copy_(getattr(other, name)[rows])

    def state_dict(self) -> dict[str, Any]:
        """Sums of lessons and what was solved from them."""
        return {name.removeprefix("_"): getattr(self, name).clone() for name in self._STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        for name in self._STATE:
            mine, given = getattr(self, name), state.get(name.removeprefix("_"))
            if given is None or given.shape != mine.shape:
                raise SeggymError(
                    f"the state of the learner has no {name.removeprefix('_')} of shape {tuple(mine.shape)}, expected "
                    "one of a probe with the same classes and encoder; make the environment with the same settings"
                )
            mine.copy_(given)


class _Scored:
    """Features and pixel counts of scored slices, side by side, so that one product scores them all."""

    def __init__(self, features: Tensor, part: ScoredSet, grid: tuple[int, ...], num_classes: int) -> None:
        # (d, m * positions): a product with all weights at once reads the features once.
        self.features = features[part.slices].permute(1, 0, 2).flatten(1).contiguous()
        self.counts = _counts(part.labels, num_classes, grid).to(features).permute(1, 0, 2).contiguous()
        self.cases, self.num_cases = part.cases, len(part.names)
        self.pixels = part.labels.shape[-1] * part.labels.shape[-2] / self.counts.shape[-1]
        self.true = case_sums(self.counts.sum(-1).T[None], self.cases, self.num_cases)

    def overlap(self, weights: Tensor) -> Overlap:
        batch, classes = weights.shape[:2]
        values = (weights.flatten(0, 1) @ self.features).view(batch, classes, *self.counts.shape[1:])
        chosen = most_probable(values)
        shared, predicted = [], []
        for label in range(classes):
            mask = (chosen == label).to(values.dtype)
            shared.append((mask * self.counts[label]).sum(-1))
            predicted.append(mask.sum(-1) * self.pixels)
        found = [case_sums(torch.stack(part, -1), self.cases, self.num_cases) for part in (shared, predicted)]
        return Overlap(found[0], found[1], self.true.expand(batch, -1, -1))


def _counts(labels: Tensor, num_classes: int, grid: tuple[int, ...]) -> Tensor:
    """Pixels of each class beneath each position: float32 (n, K, h * w); others (unlabelled) count nowhere."""
    step = labels.shape[-1] // grid[1]
    classes = torch.arange(num_classes, device=labels.device, dtype=labels.dtype)
    blocks = labels.unflatten(-1, (grid[1], step)).unflatten(-3, (grid[0], step)).transpose(-3, -2).flatten(-2)
    return (blocks[:, None] == classes[:, None, None, None]).sum(-1).float().flatten(2)


def position_features(encoded: Tensor, reference: Tensor) -> Tensor:
    """What the probe sees of a position: float (n, D + 71, h, w) from encoded slices (n, D, h, w).

    Encoder features, standardised by mean and standard deviation over the slices ``reference`` int64 (r,); the position
    in the image and products of its coordinates, because organs lie where they lie; 64 rectified random projections of
    these, always the same ones, for what is not linear (random features: Rahimi and Recht, NIPS 2007); a constant 1.
    """
    known = encoded[reference].transpose(0, 1).flatten(1)
    mean, deviation = known.mean(1), known.std(1).clamp_min(1e-6)
    rows, columns = encoded.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    place = torch.stack([x, y, x * x, y * y, x * y, torch.exp(-4 * (x * x + y * y))]).to(encoded)
    standardised = (encoded - mean[:, None, None]) / deviation[:, None, None]
    plain = torch.cat([standardised, place.expand(len(encoded), -1, -1, -1)], 1)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(_HIDDEN, plain.shape[1] + 1, generator=generator)
    directions[:, :-1] *= _STEEPNESS / plain.shape[1] ** 0.5
    kernel, bias = directions[:, :-1, None, None].to(plain), directions[:, -1].to(plain)
    hidden = functional.conv2d(plain, kernel, bias).relu_()
    return torch.cat([plain, hidden, torch.ones_like(plain[:, :1])], 1)


def pooled(encoded: Tensor) -> Tensor:
    """One vector per slice from encoded slices (n, D, h, w): mean and standard deviation over positions, (n, 2 D)."""
    flat = functional.normalize(encoded, dim=1).flatten(2)
    return torch.cat([flat.mean(2), flat.std(2)], 1)
