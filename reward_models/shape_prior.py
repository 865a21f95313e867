"""A learned prior of anatomy: a variational autoencoder on label maps, and the shapes that it was trained on.

What RL4Seg (Judge et al., MICCAI 2024) takes from a private registry is trained here, in a minute or two. The
autoencoder is MONAI's; its input is spoilt at random during training while the loss asks for the sound mask, so that
encoding and decoding lead from a broken mask to a plausible one (Vincent et al., JMLR 2010).
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from seggym.configs.checking import build, require_at_least
from seggym.errors import SeggymError
from seggym.files import json_bytes, read_json, write_together
from seggym.reward_models.checkpoints import CARD, WEIGHTS
from seggym.reward_models.seeding import seeded

# MONAI's networks take a second to import.
if TYPE_CHECKING:
    from monai.networks.nets import VarAutoEncoder

KIND = "shape prior"
_LATENTS, _SHAPES = "bank.latents", "bank.shapes"
_BATCH = 256
# Groups of channels that are normalised together.
_GROUPS = 4


@dataclass(frozen=True)
class PriorSettings:
    """How a prior is trained.

    ``latent`` is the size of the code, ``widths`` the channels of the levels, each of which halves the side.
    ``kl`` weighs the divergence per pixel, ``spoilt`` is the share of masks that are spoilt. ``rotation`` (degrees),
    ``scale`` and ``shift`` (shares) are how far shapes are moved at most.
    """

    latent: int = 48
    widths: tuple[int, ...] = (16, 32, 64, 96)
    iterations: int = 1200
    batch: int = 32
    rate: float = 2e-3
    kl: float = 2e-3
    spoilt: float = 0.7
    rotation: float = 12.0
    scale: float = 0.12
    shift: float = 0.06
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, "prior.", latent=1, iterations=1, batch=1, kl=0, rotation=0, scale=0, shift=0)
        if not self.rate > 0 or not 0 <= self.spoilt <= 1:
            raise SeggymError(f"prior.rate={self.rate} must be positive and prior.spoilt={self.spoilt} lie in 0 to 1")
        if not self.widths or any(not isinstance(width, int) or width < 1 or width % _GROUPS for width in self.widths):
            raise SeggymError(f"prior.widths={list(self.widths)} must be multiples of {_GROUPS}, at least one")


class ShapePrior:
    """An autoencoder of label maps (H, W) with ``num_classes`` labels, and the ``shapes`` uint8 (n, H, W) it has seen.

    ``latents`` float32 (n, L) are the codes of the shapes.
    """

    def __init__(self, num_classes: int, shapes: NDArray[np.uint8], settings: PriorSettings) -> None:
        height, width = shapes.shape[1:]
        self.num_classes, self.settings, self.shapes = num_classes, settings, shapes
        self.network = _network(num_classes, (height, width), settings)
        self.latents = torch.zeros(len(shapes), settings.latent)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the masks."""
        return self.shapes.shape[1], self.shapes.shape[2]

    @torch.no_grad()
    def encode(self, masks: NDArray[np.integer]) -> Tensor:
        """Codes float32 (n, L) of label maps (n, H, W)."""
        if masks.shape[1:] != self.size:
            raise SeggymError(
                f"a mask of {masks.shape[1:]} pixels does not suit a shape prior of {self.size}; bring it to that "
                "size, or train a prior on masks of its size"
            )
        if masks.size and (masks.min() < 0 or masks.max() >= self.num_classes):
            raise SeggymError(
                f"a mask holds label {masks.max() if masks.min() >= 0 else masks.min()}, but the shape prior knows 0 "
                f"to {self.num_classes - 1}; give masks of the classes that it was trained on"
            )
        encoded = []
        for part in torch.from_numpy(masks.astype(np.int64)).split(_BATCH):
            encoded.append(self.network.encode_forward(_one_hot(part, self.num_classes))[0])
        return torch.cat(encoded)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> NDArray[np.uint8]:
        """Label maps uint8 (n, H, W) of ``codes`` (n, L)."""
        parts = [self.network.decode_forward(part, use_sigmoid=False).argmax(1) for part in codes.split(_BATCH)]
        return torch.cat(parts).to(torch.uint8).numpy()

    def nearest(self, code: Tensor) -> Tensor:
        """Shapes by the distance of their codes from ``code`` (L,), nearest first, int64 (n,)."""
        return (self.latents - code).square().sum(1).argsort()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``model.json`` into ``folder``."""
        folder = Path(folder)
        state = {name: tensor.detach().contiguous() for name, tensor in self.network.state_dict().items()}
        bank = {_LATENTS: self.latents.contiguous(), _SHAPES: torch.from_numpy(self.shapes)}
        card = {"kind": KIND, "num_classes": self.num_classes, "settings": asdict(self.settings)}
        write_together(
            {folder / WEIGHTS: safetensors.torch.save({**state, **bank}), folder / CARD: json_bytes(card)},
        )


def load_shape_prior(folder: str | os.PathLike[str]) -> ShapePrior:
    """The prior in ``folder``; raises :class:`SeggymError` for anything else."""
    folder = Path(folder)
    card = read_json(folder / CARD, "card of a shape prior")
    if not isinstance(card, dict) or card.get("kind") != KIND or not isinstance(card.get("num_classes"), int):
        raise SeggymError(f"{folder / CARD} is no card of a shape prior; choose another folder or train one")
    settings = build(PriorSettings, card.get("settings", {}), f"{folder / CARD}: settings.")
    settings = PriorSettings(**{**asdict(settings), "widths": tuple(settings.widths)})
    try:
        state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
        latents, shapes = state.pop(_LATENTS), state.pop(_SHAPES)
        prior = ShapePrior(card["num_classes"], shapes.numpy(), settings)
        prior.network.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise SeggymError(
            f"{folder / WEIGHTS} is not the shape prior that {folder / CARD} describes ({reason}); copy it again, or "
            "train it"
        ) from None
    prior.latents = latents
    return prior


def train_shape_prior(
    masks: Tensor | NDArray[np.integer],
    num_classes: int,
    settings: PriorSettings | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> ShapePrior:
    """A prior of the label maps ``masks`` (n, H, W), of labels 0 to ``num_classes`` - 1, which should be sound ones.

    Sides must be multiples of 2 ** levels. One seed gives one prior on one machine; torch's own random state is
    left alone. ``progress`` is called with every iteration and its loss.
    """
    settings = settings or PriorSettings()
    shapes = np.asarray(masks.cpu() if isinstance(masks, Tensor) else masks).astype(np.uint8)
    halvings = 2 ** len(settings.widths)
    if shapes.ndim != 3 or not len(shapes) or any(side % halvings for side in shapes.shape[1:]):
        raise SeggymError(
            f"masks of shape {shapes.shape} train no shape prior, expected (number, height, width) with sides that are "
            f"multiples of {halvings}; resize them or take fewer widths"
        )
    if shapes.max() >= num_classes:
        raise SeggymError(f"masks hold label {shapes.max()}, expected 0 to {num_classes - 1}; state the right number")
    with seeded(settings.seed):
        prior = ShapePrior(num_classes, shapes, settings)
        _fit(prior, torch.from_numpy(shapes.astype(np.int64)), progress)
    prior.network.eval()
    prior.latents = prior.encode(shapes)
    return prior


def _fit(prior: ShapePrior, shapes: Tensor, progress: Callable[[int, float], None] | None) -> None:
    settings, network = prior.settings, prior.network.train()
    optimizer = torch.optim.Adam(network.parameters(), settings.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=settings.iterations)
    for iteration in range(settings.iterations):
        chosen = torch.randint(len(shapes), (settings.batch,))
        targets = _moved(_one_hot(shapes[chosen], prior.num_classes), settings)
        mean, log_variance = network.encode_forward(_spoilt(targets, settings.spoilt))
        codes = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        logits = network.decode_forward(codes, use_sigmoid=False)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        loss = _reconstruction(logits, targets) + settings.kl / 64 * divergence
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(iteration, float(loss.detach()))


def _reconstruction(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy and one minus Dice over the foreground classes, of soft one-hot ``targets`` (n, C, H, W)."""
    entropy = functional.cross_entropy(logits, targets)
    found = logits.softmax(1)[:, 1:]
    overlap = 2 * (found * targets[:, 1:]).sum((2, 3)) + 1
    return entropy + 1 - (overlap / (found.sum((2, 3)) + targets[:, 1:].sum((2, 3)) + 1)).mean()


def _moved(maps: Tensor, settings: PriorSettings) -> Tensor:
    """One-hot ``maps`` (n, C, H, W) rotated, scaled and shifted, each by amounts of its own."""
    count = len(maps)
    uniform = torch.rand(5, count) * 2 - 1
    angle = uniform[0] * settings.rotation * torch.pi / 180
    rows, columns = (1 + settings.scale * part for part in uniform[1:3])
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = 2 * settings.shift * uniform[3:]
    affine = torch.stack([cos / columns, -sin / columns, shift[0], sin / rows, cos / rows, shift[1]], 1).view(-1, 2, 3)
    grid = functional.affine_grid(affine, list(maps.shape), align_corners=False)
    # At the border a structure goes on as it ends there: an atrium may be cut off by the lower edge.
    return functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def _spoilt(maps: Tensor, share: float) -> Tensor:
    """A ``share`` of one-hot ``maps`` with up to four discs of another label in them, or a label missing."""
    count, classes, height, width = maps.shape
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    spoilt = maps.clone()
    hit = torch.rand(count) < share
    for _ in range(4):
        radius = torch.rand(count, 1, 1) * 0.16 * height + 1
        distance = torch.hypot(
            (rows - torch.rand(count, 1, 1) * height) * (0.4 + 1.2 * torch.rand(count, 1, 1)),
            (columns - torch.rand(count, 1, 1) * width) * (0.4 + 1.2 * torch.rand(count, 1, 1)),
        )
        inside = ((distance < radius) & (hit & (torch.rand(count) < 0.6)).view(-1, 1, 1))[:, None]
        label = _one_hot(torch.randint(classes, (count, 1, 1)), classes)
        spoilt = torch.where(inside, label, spoilt)
    lost = torch.randint(1, classes, (count,))
    gone = spoilt[torch.arange(count), lost] * (hit & (torch.rand(count) < 0.1)).view(-1, 1, 1)
    spoilt[torch.arange(count), lost] -= gone
    spoilt[:, 0] += gone
    return spoilt


def _network(num_classes: int, size: tuple[int, int], settings: PriorSettings) -> "VarAutoEncoder":
    from monai.networks.nets import VarAutoEncoder

    return VarAutoEncoder(
        spatial_dims=2,
        in_shape=(num_classes, *size),
        out_channels=num_classes,
        latent_size=settings.latent,
        channels=settings.widths,
        strides=[2] * len(settings.widths),
        norm=("group", {"num_groups": _GROUPS}),
        use_mean_at_inference=True,
    ).eval()


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float32 (n, C, H, W) of labels int64 (n, H, W)."""
    # Contiguous: MONAI's encoder flattens with `view`.
    return functional.one_hot(labels, num_classes).movedim(-1, 1).contiguous().float()
