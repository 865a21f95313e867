"""An encoder that learns which slices belong together: the group-contrastive loss of CoreCLR, and its training.

CoreCLR (Vepa et al., "Integrating Deep Metric Learning with Coreset for Active Learning in 3D Segmentation", NeurIPS
2024, arXiv:2411.15763, section 3) adds to SimCLR's NT-Xent (Chen et al., ICML 2020, eq. 1) losses whose positives are
all views of a *group*: an anchor slice, its neighbour, a slice of its volume, a slice of its patient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seggym.errors import SeggymError
from seggym.reward_models.encoders import Encoder
from seggym.reward_models.seeding import seeded

GROUPS = ("slice", "volume", "patient")


@dataclass(frozen=True)
class GroupContrast:
    """How the encoder is trained.

    A group is an anchor and one member for each of ``groups``: ``slice`` a slice next to it, ``volume`` another of its
    volume, ``patient`` another of its patient. ``weights`` has the weight of one loss for each: the first with the
    anchor and the first member as positives, the second with the next member as well, and so on (NT-Xent weighs 1).
    ``groups_per_batch`` groups of different patients make a batch. Images are reduced to ``size`` x ``size``; without
    any ``steps`` the encoder stays untrained.
    """

    groups: tuple[str, ...] = GROUPS
    weights: tuple[float, ...] = (0.2, 0.1, 0.05)
    groups_per_batch: int = 8
    steps: int = 400
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    temperature: float = 0.5
    size: int = 64
    features: int = 64
    projection: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.groups if name not in GROUPS]
        if unknown or len(set(self.groups)) < len(self.groups) or len(self.weights) != len(self.groups):
            raise SeggymError(
                f"groups={list(self.groups)}, weights={list(self.weights)}, expected some of {', '.join(GROUPS)}, each "
                "at most once, and a weight for each; mend them"
            )
        smallest = min(self.groups_per_batch, self.size // 4, self.features, self.projection)
        if smallest < 1 or self.steps < 0 or min(self.temperature, self.learning_rate) <= 0:
            raise SeggymError(
                "groups_per_batch, features and projection of the encoder must be at least 1, size at least 4, "
                f"temperature and learning_rate above 0 and steps at least 0, found {self}; mend them"
            )


class GroupEncoder(nn.Module):
    """The mean over the image of the dense features of an encoder; ``project`` takes them to the space of the loss."""

    def __init__(self, channels: int, features: int, projection: int) -> None:
        super().__init__()
        self.dense = Encoder(num_outputs=features, channels=channels)
        self.project = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, projection)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, ``features``) of images (n, C, H, W)."""
        return self.dense(images).mean((2, 3))


def group_masks(groups: int, size: int, members: int) -> tuple[Tensor, Tensor]:
    """Positives and negatives of a group loss, bool (2N, 2N) each, N = ``groups`` * ``size``.

    Rows and columns are N first views, group after group, then the N second views in the same order. Only the first
    ``members`` of each group take part: the positives of such a view are the other views of those members, 2
    ``members`` - 1 of them; its negatives are all views of other groups. A view of the other members has neither, and
    views of one group are never each other's negatives.
    """
    number = torch.arange(groups * size).repeat(2)
    group, taking_part = number // size, number % size < members
    together = group[:, None] == group
    positives = torch.zeros(len(number), len(number), dtype=torch.bool)
    positives |= together & taking_part[:, None] & taking_part
    positives.fill_diagonal_(False)
    return positives, ~together & taking_part[:, None]


def pair_masks(images: int) -> tuple[Tensor, Tensor]:
    """Positives and negatives of NT-Xent for two views of N ``images``, bool (2N, 2N) each: one other, and the rest."""
    positives = group_masks(images, 1, 1)[0]
    return positives, ~positives & ~torch.eye(2 * images, dtype=torch.bool)


def contrastive_loss(views: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean over positive pairs (i, p) of -ln(e^s_ip / (e^s_ip + sum over negatives n of e^s_in)), a scalar.

    s is the cosine similarity of ``views`` (2N, d) over ``temperature``. With :func:`pair_masks` it is NT-Xent (Chen et
    al. 2020, eq. 1), with :func:`group_masks` CoreCLR's group loss. As it is a mean, its weight means the same for
    groups of any size.
    """
    unit = F.normalize(views, dim=1)
    similarity = unit @ unit.T / temperature
    others = similarity.masked_fill(~negatives, -torch.inf).logsumexp(1, keepdim=True)
    return (torch.logaddexp(similarity, others) - similarity)[positives].mean()


class GroupSampler:
    """Draws groups of slices from a pool of P.

    ``patient``, ``volume`` and ``slice_index`` are int64 (P,); slices next to each other in a volume follow each other
    in ``slice_index``.
    """

    def __init__(self, patient: np.ndarray, volume: np.ndarray, slice_index: np.ndarray) -> None:
        count = len(patient)
        order = np.lexsort((slice_index, volume))
        same = np.append(volume[order][1:] == volume[order][:-1], False)
        self._next, self._previous = np.arange(count), np.arange(count)
        self._next[order[:-1][same[:-1]]] = order[1:][same[:-1]]
        self._previous[order[1:][same[:-1]]] = order[:-1][same[:-1]]
        self._volumes, self._patients = _Members(volume), _Members(patient)

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return len(self._patients.count)

    def draw(self, groups: int, kinds: Sequence[str], generator: torch.Generator) -> Tensor:
        """``groups`` groups of different patients: int64 (groups, 1 + kinds), the anchor first.

        Where a slice has no neighbour, or is alone in its volume or patient, it is its own partner.
        """
        chosen = torch.randperm(self.patients, generator=generator, device=generator.device)[:groups].cpu().numpy()
        draws = torch.rand(len(kinds) + 1, groups, generator=generator, device=generator.device, dtype=torch.float64)
        first, *rest = draws.cpu().numpy()
        anchor = self._patients.table[chosen, (first * self._patients.count[chosen]).astype(np.int64)]
        members = [anchor]
        for kind, draw in zip(kinds, rest, strict=True):
            if kind == "slice":
                below, above = self._previous[anchor], self._next[anchor]
                # At the ends of a volume there is one neighbour, not two.
                down = np.where(below == anchor, False, (above == anchor) | (draw < 0.5))
                members.append(np.where(down, below, above))
            else:
                members.append((self._volumes if kind == "volume" else self._patients).another(anchor, draw))
        return torch.from_numpy(np.stack(members, 1))


class _Members:
    """The members of each group of ``labels`` (P,) as one padded table."""

    def __init__(self, labels: np.ndarray) -> None:
        _, self.group, self.count = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(self.group, kind="stable")
        starts = np.cumsum(self.count) - self.count
        self.rank = np.empty(len(labels), dtype=np.int64)
        self.rank[order] = np.arange(len(labels)) - np.repeat(starts, self.count)
        self.table = np.zeros((len(self.count), self.count.max()), dtype=np.int64)
        self.table[self.group, self.rank] = np.arange(len(labels))

    def another(self, samples: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """A random other member of the group of each of ``samples``; ``draws`` in [0, 1) decide."""
        group = self.group[samples]
        count = self.count[group]
        step = 1 + (draws * (count - 1)).astype(np.int64)
        return self.table[group, (self.rank[samples] + step) % count]


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each of ``images`` (n, C, H, W): mirrored, turned, moved, scaled, sheared, blurred, erased.

    The ranges are those of the released code: scale 0.8 to 1.2, 15 degrees, shift by a fifth, shear of 10 degrees, half
    of the images blurred, half of them with a rectangle of up to a fifth of the area erased.
    """
    count = len(images)
    draws = torch.rand(12, count, generator=generator, device=generator.device).to(images.device)

    def between(row: int, low: float, high: float) -> Tensor:
        return low + (high - low) * draws[row]

    angle, shear = torch.deg2rad(between(0, -15, 15)), torch.tan(torch.deg2rad(between(1, -10, 10)))
    mirror = torch.where(draws[2] < 0.5, -1.0, 1.0)
    scale = between(3, 0.8, 1.2)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    shift = 2 * torch.stack([between(4, -0.2, 0.2), between(5, -0.2, 0.2)], 1)
    matrix = torch.stack(
        [torch.stack([mirror * cos, shear * cos - sin], 1), torch.stack([mirror * sin, shear * sin + cos], 1)], 1
    )
    grid = F.affine_grid(torch.cat([matrix, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, align_corners=False, padding_mode="border")
    blurred = F.avg_pool2d(F.avg_pool2d(views, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)
    views = torch.where((draws[6] < 0.5)[:, None, None, None], blurred, views)
    height, width = images.shape[2:]
    side = (between(7, 0.02, 0.2) * (draws[11] < 0.5)).sqrt()
    top, left = draws[8] * (1 - side), draws[9] * (1 - side)
    rows, columns = torch.arange(height, device=views.device) / height, torch.arange(width, device=views.device) / width
    inside = _within(rows, top, side)[:, :, None] & _within(columns, left, side)[:, None, :]
    return views.masked_fill(inside[:, None], 0.0)


def _within(places: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Whether ``places`` (m,) lie in [start, start + length) of each of n intervals: bool (n, m)."""
    return (places >= start[:, None]) & (places < (start + length)[:, None])


def group_contrastive_features(
    images: Tensor, patient: np.ndarray, volume: np.ndarray, slice_index: np.ndarray, settings: GroupContrast
) -> Tensor:
    """Train an encoder on the pool; its features of every sample are float32 (P, ``settings.features``).

    ``images`` float32 (P, C, H, W) are scaled by the pool's mean and standard deviation; ``patient``, ``volume`` and
    ``slice_index`` int64 (P,). No label is seen. The result follows from the arguments alone (on one machine, device
    and number of threads); torch's own generators stay as they were.
    """
    device = images.device
    with torch.inference_mode(False), torch.enable_grad(), seeded(settings.seed, device):
        small = F.adaptive_avg_pool2d(images, settings.size) if max(images.shape[2:]) > settings.size else images
        small = (small - small.mean()) / small.std().clamp(min=1e-6)
        encoder = GroupEncoder(images.shape[1], settings.features, settings.projection).to(device)
        _train(encoder, small, GroupSampler(patient, volume, slice_index), settings)
    encoder.eval()
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat([encoder(part) for part in small.split(256)])


def _train(encoder: GroupEncoder, images: Tensor, sampler: GroupSampler, settings: GroupContrast) -> None:
    groups, size = min(settings.groups_per_batch, sampler.patients), 1 + len(settings.groups)
    generator = torch.Generator().manual_seed(settings.seed)
    masks = [pair_masks(groups * size), *(group_masks(groups, size, members) for members in range(2, size + 1))]
    pairs = [(positives.to(images.device), negatives.to(images.device)) for positives, negatives in masks]
    optimiser = torch.optim.Adam(encoder.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    for _ in range(settings.steps):
        batch = images[sampler.draw(groups, settings.groups, generator).flatten().to(images.device)]
        views = torch.cat([augmented(batch, generator), augmented(batch, generator)])
        projected = encoder.project(encoder(views))
        losses = [contrastive_loss(projected, *pair, settings.temperature) for pair in pairs]
        loss = sum(weight * one for weight, one in zip((1.0, *settings.weights), losses, strict=True))
        optimiser.zero_grad(set_to_none=True)
        torch.as_tensor(loss).backward()
        optimiser.step()
