"""The reward net of RL4Seg: for every pixel of a segmentation the probability that its label is correct."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import CARD, ERRORS, ModelCard, load_network, save_network
from seggym.reward_models.frozen import normalise
from seggym.reward_models.networks import UNet

# Images through the network at a time.
_BATCH = 64


class RewardMap(Protocol):
    """Scores segmentations pixel by pixel: an error net, or accuracy against known labels."""

    def __call__(self, images: Tensor, masks: Tensor) -> Tensor:
        """P(label correct) float32 (n, H, W) of ``masks`` integer (n, H, W) on ``images`` float32 (n, 1, H, W)."""
        ...


class ErrorNet(nn.Module):
    """A U-Net with group norm on the image and the one-hot mask, and one temperature.

    It has an output per class, not one for "correct": what it says is which label a pixel should have, given image and
    mask, and P(correct) is what that leaves for the label that it has. So an error teaches it the right label too.
    Images are given zero mean and unit standard deviation each, so gain and offset do not matter. ``class_names`` are
    those of the masks, the background first; ``temperature`` divides the logits (1 until it is fitted); ``patients``
    are those that it was trained on, ``labelled`` those of them whose labels it was trained on (the masks of the others
    were a policy's), ``cohort`` whose patients they are where a file says it, ``metrics`` what validation said.
    """

    def __init__(
        self, class_names: Sequence[str], widths: Sequence[int] = (16, 32, 64, 128), temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.class_names, self.widths, self.temperature = tuple(class_names), tuple(widths), temperature
        self.network = UNet(len(class_names), widths, norm="group", in_channels=1 + len(class_names))
        # Convolutions are a fifth faster where the channels of a pixel lie together.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's annotations
        self.patients: tuple[str, ...] = ()
        self.labelled: tuple[str, ...] = ()
        self.cohort = ""
        self.metrics: dict[str, Any] = {}

    @classmethod
    def of_segmentation(cls, network: UNet, class_names: Sequence[str], contrast: float) -> "ErrorNet":
        """A net that begins as a segmentation ``network`` with group norm: it tells labels and ignores the mask.

        ``contrast`` is the standard deviation of a typical image in [0, 1], which a net that sees normalised images has
        to give back; group norm takes care of the rest. Raises :class:`SeggymError` for another number of classes.
        """
        widths: Any = network.options["widths"]
        net = cls(class_names, widths)
        net.require_classes([str(label) for label in range(network.head.out_channels)])
        own, given = net.network.state_dict(), network.state_dict()
        first = next(name for name in own if own[name].shape != given[name].shape)
        weights = torch.zeros_like(own[first])
        weights[:, :1] = contrast * given[first]
        net.network.load_state_dict({**given, first: weights})
        return net

    def logits(self, images: Tensor, masks: Tensor) -> Tensor:
        """The logit of being correct before the temperature, (n, H, W): ln P(label) - ln P(any other)."""
        return log_odds(self.label_logits(images, masks), masks)

    def label_logits(self, images: Tensor, masks: Tensor, shown: Tensor | None = None) -> Tensor:
        """What the network takes for the true label, (n, K, H, W) before a softmax.

        Where ``shown`` bool (n,) is False the network sees the image without its mask.
        """
        inputs = self.inputs(images, masks)
        if shown is not None:
            inputs[:, 1:] *= shown[:, None, None, None]
        height, width = inputs.shape[-2:]
        step = 2 ** (len(self.widths) - 1)
        # Sides are padded to what the levels of the network can halve, with what lies at the border.
        padded = functional.pad(inputs, (0, -width % step, 0, -height % step), mode="replicate")
        return self.network(padded)[0][..., :height, :width]

    def inputs(self, images: Tensor, masks: Tensor) -> Tensor:
        """Normalised image and one-hot mask, float32 (n, 1 + K, H, W)."""
        self._check(images, masks)
        labels = torch.arange(len(self.class_names), device=masks.device).to(masks.dtype)
        one_hot = (masks[:, None] == labels[:, None, None]).to(images.dtype)
        return torch.cat([normalise(images[:, 0]).to(images.dtype), one_hot], 1)

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """The reward map: P(label correct) float32 (n, H, W), without gradients."""
        self._check(images, masks)
        parts = zip(images.split(_BATCH), masks.split(_BATCH), strict=True)
        return torch.cat([(self.logits(*part) / self.temperature).sigmoid().float() for part in parts])

    @staticmethod
    def _check(images: Tensor, masks: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 1 or masks.shape != (len(images), *images.shape[2:]):
            raise SeggymError(
                f"an error net takes images (n, 1, H, W) and masks (n, H, W), found {tuple(images.shape)} and "
                f"{tuple(masks.shape)}; bring them to one size and one channel"
            )

    def require_classes(self, class_names: Sequence[str]) -> None:
        """Raise :class:`SeggymError` unless masks of ``class_names`` are what it was trained on, by their number."""
        if len(class_names) != len(self.class_names):
            raise SeggymError(
                f"the error net knows {len(self.class_names)} classes ({', '.join(self.class_names)}), the masks have "
                f"{len(class_names)} ({', '.join(class_names)}); train one for these classes"
            )

    def save(
        self,
        folder: str | os.PathLike[str],
        size: int = 0,
        cohort: str = "",
        fingerprint: str = "none",
        metrics: Mapping[str, Any] | None = None,
    ) -> ModelCard:
        """Write ``model.safetensors`` and ``model.json``; ``size`` is the side of the images in pixels."""
        card = ModelCard(
            architecture="unet",
            options={"widths": list(self.widths), "norm": "group", "in_channels": 1 + len(self.class_names)},
            num_outputs=len(self.class_names),
            class_names=list(self.class_names),
            task=ERRORS,
            crop=size,
            patients=sorted(self.patients),
            cohort=cohort,
            fingerprint=fingerprint,
            metrics={
                **self.metrics,
                **(metrics or {}),
                "temperature": self.temperature,
                "labelled": sorted(self.labelled),
            },
        )
        return save_network(folder, self.network, card)


class ErrorNetEnsemble(nn.Module):
    """Error nets ``nets`` as one reward map: the mean of what they say (Lakshminarayanan et al., NeurIPS 2017)."""

    def __init__(self, nets: Sequence[ErrorNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """P(label correct) float32 (n, H, W), as that of a single net."""
        return torch.stack([net(images, masks) for net in self.nets]).mean(0)


def expected_dice(reward: Tensor, masks: Tensor) -> Tensor:
    """The Dice that a reward map float (n, H, W) expects of the foreground of ``masks`` integer (n, H, W): (n,).

    Of R the sum of the reward over the foreground, F its area and M the sum of 1 - reward over the background, what is
    expected to be missed, it is 2 R / (F + R + M); a foreground label in place of another counts as an error. Without a
    foreground it is 0.
    """
    foreground = (masks > 0).to(reward.dtype)
    right, area = (reward * foreground).sum((1, 2)), foreground.sum((1, 2))
    missed = ((1 - reward) * (1 - foreground)).sum((1, 2))
    return 2 * right / (area + right + missed).clamp_min(torch.finfo(reward.dtype).tiny)


def log_odds(label_logits: Tensor, masks: Tensor) -> Tensor:
    """Logit of the softmax probability of each label of ``masks`` (n, H, W), of logits (n, K, H, W): (n, H, W)."""
    own = masks.long()[:, None]
    others = label_logits.scatter(1, own, -torch.inf).logsumexp(1)
    return label_logits.gather(1, own)[:, 0] - others


def load_error_net(folder: str | os.PathLike[str]) -> ErrorNet:
    """The error net in ``folder``, on the CPU, frozen. Raises :class:`SeggymError` for anything else."""
    network, card = load_network(folder)
    temperature = card.metrics.get("temperature")
    fits = card.task == ERRORS and isinstance(network, UNet) and card.num_outputs == len(card.class_names)
    if not fits or not isinstance(temperature, float) or not temperature > 0:
        raise SeggymError(
            f"{Path(folder) / CARD} has task {card.task} and temperature {temperature}, expected an error net: task "
            f"{ERRORS} and a positive temperature; choose another folder or train one"
        )
    assert isinstance(network, UNet)
    net = ErrorNet(card.class_names, card.options["widths"], temperature)
    net.network.load_state_dict(network.state_dict())
    net.patients, net.cohort = tuple(card.patients), card.cohort
    # An older or foreign card does not say whose labels it saw: then it may have seen all.
    net.labelled = tuple(card.metrics.get("labelled", card.patients))
    net.metrics = {key: value for key, value in card.metrics.items() if key not in ("temperature", "labelled")}
    return net.eval().requires_grad_(False)
