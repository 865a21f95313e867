"""What an agent sees of a selection episode: candidates one by one, the state of the learner, and the budget.

Everything is a function of images, of what the learner believes and of labels that have been annotated.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seggym.envs.batched import pieces
from seggym.envs.selection.pool import Pool
from seggym.reward_models.metrics import most_probable

if TYPE_CHECKING:
    from seggym.envs.selection.engine import SelectionEngine
    from seggym.envs.selection.pools import PooledEngine

CANDIDATE_FEATURES = (
    "entropy",
    "entropy_spread",
    "margin",
    "least_confidence",
    "foreground_entropy",
    "disagreement",
    "nearest_labelled",
    "mean_labelled",
    "mean_unlabelled",
    "position",
    "labelled_of_volume",
    "labelled_of_patient",
    "gap_in_volume",
    "minutes",
)
"""Columns of ``candidates`` before :data:`CLASS_FEATURES`. All lie in [0, 1]."""

CLASS_FEATURES = ("histogram", "share", "class_entropy")
"""What follows them, an entry for each class: mean probability, positions where it is the most probable class, and its
part -p log p / log K of the mean entropy."""

QUANTILES = 8
EMBEDDING = 16
# Numbers that are worked on at a time, so that an operation finds the result of the one before in the cache.
_PIECE = 2**19


def candidate_width(class_slots: int) -> int:
    """Columns of ``candidates``."""
    return len(CANDIDATE_FEATURES) + len(CLASS_FEATURES) * class_slots


def learner_width(class_slots: int) -> int:
    """Entries of ``learner``: entropy quantiles, two class histograms, foreground entropy, annotated share."""
    return QUANTILES + 2 * class_slots + 2


def class_slots(engine: "SelectionEngine | PooledEngine") -> int:
    """Entries of a class histogram."""
    return engine.settings.class_slots or engine.pool.num_classes


def observe(engine: "SelectionEngine") -> dict[str, Tensor]:
    """The parts that the settings ask for, each (N, ...)."""
    makers = {
        "candidates": _candidates,
        "embeddings": _embeddings,
        "learner": _learner,
        "budget": lambda engine: (engine.remaining / len(engine.pool)).float()[:, None],
        "progress": _progress,
        "action_mask": lambda engine: engine.action_mask().to(torch.int8),
    }
    return {part: makers[part](engine) for part in engine.settings.observation}


class Summary:
    """What is read from class probabilities (..., K, h, w), each (...) in [0, 1]; :data:`CLASS_FEATURES` (..., K)."""

    def __init__(self, probabilities: Tensor) -> None:
        classes = probabilities.shape[-3]
        flat = probabilities.flatten(-2)
        by_class = -(flat * flat.clamp_min(1e-8).log()) / torch.log(torch.tensor(float(classes)))
        entropy = by_class.sum(-2)
        best, second = flat[..., 0, :], torch.zeros_like(flat[..., 0, :])
        most = torch.zeros_like(best)
        for label in range(1, classes):
            candidate = flat[..., label, :]
            second = torch.maximum(second, torch.minimum(best, candidate))
            most = torch.where(candidate > best, label, most)
            best = torch.maximum(best, candidate)
        foreground = 1 - flat[..., 0, :]
        self.entropy = entropy.mean(-1)
        self.entropy_spread = entropy.square().mean(-1).sqrt()
        self.margin = (1 - (best - second)).mean(-1)
        self.least_confidence = (1 - best).mean(-1) * classes / (classes - 1)
        self.foreground_entropy = (entropy * foreground).sum(-1) / foreground.sum(-1).clamp_min(1e-6)
        self.histogram = flat.mean(-1)
        self.share = torch.stack([(most == label).to(flat).mean(-1) for label in range(classes)], -1)
        self.class_entropy = by_class.mean(-1)


def _candidates(engine: "SelectionEngine") -> Tensor:
    pool, dtype = engine.pool, torch.float32
    output = torch.zeros(
        engine.num_envs, engine.num_candidates, candidate_width(class_slots(engine)), device=engine.device
    )
    padding = (0, class_slots(engine) - pool.num_classes)
    size = engine.num_candidates * max(pool.shown.shape[1] * pool.images[0].numel(), 4 * len(pool))
    for part in pieces(slice(0, engine.num_envs), max(1, _PIECE // size)):
        rows = torch.arange(part.start, part.stop, device=engine.device)
        candidates = engine.candidates[rows]
        samples = candidates.clamp_min(0)
        shown = pool.shown[samples]
        flat = shown.flatten(1)
        believed = Summary(engine.learner.predict(rows, flat))
        parts = [
            getattr(believed, name).view(shown.shape).mean(-1)
            for name in ("entropy", "entropy_spread", "margin", "least_confidence", "foreground_entropy")
        ]
        parts.append(engine.learner.disagreement(rows, flat).view(shown.shape).mean(-1))
        parts += _relations(engine, rows, samples)
        by_class = [getattr(believed, name).unflatten(1, shown.shape[1:]).mean(2) for name in CLASS_FEATURES]
        padded = [torch.nn.functional.pad(part, padding).to(dtype) for part in by_class]
        table = torch.cat([torch.stack(parts, -1).to(dtype), *padded], -1).clamp_(0, 1)
        output[rows] = table * (candidates >= 0)[:, :, None]
    return output


def _relations(engine: "SelectionEngine", rows: Tensor, samples: Tensor) -> list[Tensor]:
    """Where the candidates (B, K) lie among the samples of the pool, columns 6 to 13."""
    known = engine.relations
    labelled = engine.labelled[rows][:, None].to(known.embeddings.dtype)
    distance = torch.cdist(known.embeddings[samples], known.embeddings)
    count = labelled.sum(-1)
    unlabelled = (1 - labelled).sum(-1).clamp_min(1)
    volume, patient = (group[samples][:, :, None] == group for group in (known.volume, known.patient))
    gap = (known.position[samples][:, :, None] - known.position).abs()
    return [
        torch.where(labelled > 0, distance, 1).amin(-1),
        (distance * labelled).sum(-1) / count,
        (distance * (1 - labelled)).sum(-1) / unlabelled,
        known.position[samples],
        (volume * labelled).sum(-1) / volume.sum(-1),
        (patient * labelled).sum(-1) / patient.sum(-1),
        torch.where(volume & (labelled > 0), gap, 1).amin(-1),
        known.minutes[samples],
    ]


class Relations:
    """Samples of a pool relative to each other: embeddings scaled so that no two are farther apart than 1."""

    def __init__(self, pool: Pool, minutes: Tensor) -> None:
        device = pool.embeddings.device
        centred = pool.embeddings - pool.embeddings.mean(0)
        self.embeddings = centred / (2 * centred.norm(dim=1).max()).clamp_min(1e-12)
        self.projection = principal_components(centred, EMBEDDING)
        self.volume, self.patient = (
            torch.from_numpy(group).to(device) for group in (pool.table.volume, pool.table.patient)
        )
        self.position = torch.from_numpy(pool.table.position).float().to(device)
        self.minutes = (minutes / minutes.max().clamp_min(1e-6)).float()


def principal_components(centred: Tensor, count: int) -> Tensor:
    """The first ``count`` principal components (P, count) of ``centred`` (P, D), scaled to [-1, 1]; zeros beyond D.

    The sign is such that the largest entry of each direction is positive.
    """
    _, vectors = torch.linalg.eigh((centred.T @ centred).double())
    vectors = vectors.flip(1)[:, :count]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    scores = centred @ (vectors * largest.sign()).to(centred)
    scores = scores / scores.abs().max().clamp_min(1e-12)
    return torch.nn.functional.pad(scores, (0, count - scores.shape[1])).float()


def _embeddings(engine: "SelectionEngine") -> Tensor:
    rows = engine.relations.projection[engine.candidates.clamp_min(0)]
    return rows * (engine.candidates >= 0)[:, :, None]


def _learner(engine: "SelectionEngine") -> Tensor:
    """What the learner believes about the state set, and what it has been taught."""
    rows = torch.arange(engine.num_envs, device=engine.device)
    slots = class_slots(engine)
    believed = Summary(engine.learner.predict(rows, engine.pool.state.expand(engine.num_envs, -1)))
    ordered = believed.entropy.sort(1).values
    places = torch.linspace(0, ordered.shape[1] - 1, QUANTILES, device=engine.device).round().long()
    taught = engine.pixels / engine.pixels.sum(1, keepdim=True).clamp_min(1)
    histograms = [
        torch.nn.functional.pad(part, (0, slots - part.shape[1])) for part in (believed.histogram.mean(1), taught)
    ]
    rest = [believed.foreground_entropy.mean(1), engine.count / len(engine.pool)]
    parts = [ordered[:, places], *histograms, torch.stack([value.to(ordered) for value in rest], 1)]
    return torch.cat([part.float() for part in parts], 1).clamp_(0, 1)


def _progress(engine: "SelectionEngine") -> Tensor:
    """Share of the budget that is used, and of the picks before the next retraining."""
    used = engine.steps / engine.budgets.clamp_min(1)
    return torch.stack([used, engine.pending / engine.settings.samples_per_query], 1).float().clamp_(0, 1)


def prediction(engine: "SelectionEngine", slot: int, slices: Tensor) -> Tensor:
    """Most probable class at the resolution of the images, uint8 (n, H, W), of ``slices`` (n,)."""
    rows = torch.tensor([slot], device=engine.device)
    labels = most_probable(engine.learner.predict(rows, slices[None])[0])
    size = engine.pool.images.shape[-2:]
    return torch.nn.functional.interpolate(labels[:, None], list(size), mode="nearest-exact")[:, 0]
