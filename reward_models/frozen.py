"""Frozen inference: probabilities and pooled features of a trained network from one fast forward pass."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from seggym.errors import SeggymError
from seggym.kspace import simulation
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.lines import combined, measured_rows
from seggym.reward_models.checkpoints import CARD, WEIGHTS, ModelCard, load_network
from seggym.reward_models.inference import for_inference
from seggym.reward_models.precision import PRECISIONS, resolve_precision
from seggym.reward_models.unrolled import Unrolled

# Measured on one AVX-512 core at 128 x 128: channels-last takes 0.4 to 0.9 of the time of the contiguous layout, for
# every architecture, in fp32 (unet 8 instead of 14 ms per image) as in bf16 (4 instead of 7 ms).
MEMORY_FORMAT = torch.channels_last
# On a processor a few images at a time stay in the cache: 8 instead of 64 take 22 instead of 36 ms per image (unetpp,
# fp32), 11 instead of 16 (unetpp, bf16), 7.0 instead of 7.4 (unet, fp32). A GPU wants larger batches.
_MICRO_BATCH = {"cpu": 8, "cuda": 256}


class Prediction(NamedTuple):
    """What a frozen network says about a batch of images."""

    probabilities: torch.Tensor
    """(B, K, H, W) float32, summing to 1 over K (float64 where the precision is fp64)."""
    features: torch.Tensor
    """(B, 2 F) float32: mean, then maximum, of each bottleneck channel over the image."""


def normalise(magnitude: torch.Tensor) -> torch.Tensor:
    """Give each image zero mean and unit standard deviation: (B, H, W) -> (B, 1, H, W), float32 or wider.

    Training and inference share this function. The result does not depend on the scale of the input; a constant image
    becomes zeros rather than amplified rounding errors.
    """
    centred, _, scale = _centred(magnitude)
    return centred.div_(scale).unsqueeze(1)


def reconstruct_with(
    network: nn.Module, hybrid: torch.Tensor, acquired: torch.Tensor, acquisition: Acquisition
) -> torch.Tensor:
    """The magnitude float (B, C, C) that a reconstruction network makes of hybrid space (B, J, M, M).

    ``acquired`` bool (B, M) are the measured lines. An :class:`~seggym.reward_models.unrolled.Unrolled` network works
    on the lines; any other maps the normalised zero-filled image to a better one on the same scale. Training and
    inference share this function.
    """
    if isinstance(network, Unrolled):
        return combined(network(measured_rows(hybrid, acquired, acquisition), acquired), acquisition)
    centred, mean, scale = _centred(simulation.zero_filled(hybrid, acquired, acquisition))
    parameter = next(network.parameters())
    output = network((centred / scale).unsqueeze(1).to(parameter.dtype))[0][:, 0]
    return (output.to(mean.dtype) * scale + mean).clamp_min(0)


def _centred(magnitude: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The images less their mean, the mean and the scale (B, 1, 1) of each, in float32 or wider.

    In two passes, which is as exact as ``torch.var_mean`` and on a processor takes a seventh of its time.
    """
    if magnitude.dtype != torch.float64:
        magnitude = magnitude.float()
    mean = magnitude.mean(dim=(1, 2), keepdim=True)
    centred = magnitude - mean
    scale = centred.square().mean(dim=(1, 2), keepdim=True).sqrt_() + 1e-4 * mean.abs()
    return centred, mean, scale.clamp_min_(torch.finfo(scale.dtype).tiny)


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the GPU where there is one; raises :class:`SeggymError` for a device that this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise SeggymError(
            f"device is {str(device)!r}, which torch cannot use on this machine; use auto, cpu or cuda:N"
        ) from None
    return resolved


def micro_batch(device: torch.device) -> int:
    """How many images at a time suit ``device``."""
    return _MICRO_BATCH.get(device.type, 64)


class FrozenNetwork:
    """A network for inference only: batch norm folded, cast and laid out for speed; the given one stays as it is.

    ``precision`` is ``fp32``, ``bf16``, ``fp64`` (for tests) or ``auto``. At most ``max_batch`` images pass through the
    network at a time, so that memory does not grow with the batch; the default is :func:`micro_batch`.
    ``card`` says what the network is, where it came from a folder.
    """

    def __init__(
        self,
        network: nn.Module,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        max_batch: int | None = None,
        card: ModelCard | None = None,
    ) -> None:
        self.card = card
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.dtype = PRECISIONS[self.precision]
        self.max_batch = max_batch or micro_batch(self.device)
        self.network = for_inference(network, self.dtype).requires_grad_(False).to(self.device, self.dtype)
        self.network.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]  # missing in torch's annotations

    def __call__(self, magnitude: torch.Tensor) -> Prediction:
        """Segment magnitude images (B, H, W) of any floating dtype, on this network's device."""
        parts = [self._forward(part) for part in magnitude.split(self.max_batch)]
        if len(parts) == 1:
            return parts[0]
        return Prediction(
            torch.cat([part.probabilities for part in parts]), torch.cat([part.features for part in parts])
        )

    @property
    def num_features(self) -> int:
        """Length of the feature vector: mean and maximum of every bottleneck channel."""
        return 2 * int(self.network.num_features)  # type: ignore[arg-type]  # every network of ours has it

    def reconstruct(self, hybrid: torch.Tensor, acquired: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """:func:`reconstruct_with` this network, a few scans at a time."""
        parts = zip(hybrid.split(self.max_batch), acquired.split(self.max_batch), strict=True)
        with torch.inference_mode(), self._exact():
            return torch.cat([reconstruct_with(self.network, *part, acquisition) for part in parts])

    def _exact(self) -> contextlib.AbstractContextManager[None]:
        """cuDNN as a seed needs it on a GPU: the same algorithm in every run, and fp32 where fp32 is asked for.

        By itself it would round the factors of fp32 to TF32, of 10 bits, and with ``benchmark`` choose its algorithms
        by what happened to be fastest.
        """
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)

    def _forward(self, magnitude: torch.Tensor) -> Prediction:
        with torch.inference_mode(), self._exact():
            x = normalise(magnitude).to(self.dtype).contiguous(memory_format=MEMORY_FORMAT)
            logits, bottleneck = self.network(x)
        # Outside inference mode, so that the results are ordinary tensors, which a trainer may put into its graph.
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        bottleneck = bottleneck.to(wide)
        features = torch.cat([bottleneck.mean(dim=(2, 3)), bottleneck.amax(dim=(2, 3))], dim=1)
        # To the contiguous layout first: a softmax over a last axis of a few classes would not be vectorised.
        probabilities = logits.to(wide, memory_format=torch.contiguous_format).softmax(dim=1)
        return Prediction(probabilities, features)


_CACHE: dict[tuple[str, str, str, str, int | None], tuple[tuple[int, int], FrozenNetwork]] = {}


def load_frozen(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    task: str = "segmentation",
    max_batch: int | None = None,
) -> FrozenNetwork:
    """Load the network for ``task`` in ``folder`` frozen; within a process the same one is loaded only once.

    It is loaded again when its files have changed. Raises what
    :func:`~seggym.reward_models.checkpoints.load_network` and :func:`~seggym.reward_models.precision.resolve_precision`
    raise.
    """
    path = Path(folder).resolve()
    target = resolve_device(device)
    precision = resolve_precision(precision, target, path)
    key = (str(path), str(target), precision, task, max_batch)
    cached = _CACHE.get(key)
    stamp = _stamp(path)
    if cached is None or cached[0] != stamp:
        network, card = load_network(path)
        if card.task != task:
            raise SeggymError(f"{path / CARD} has task {card.task}, expected {task}; choose a {task} network")
        cached = _CACHE[key] = (stamp, FrozenNetwork(network, target, precision, max_batch, card))
    return cached[1]


def _stamp(folder: Path) -> tuple[int, int]:
    """Modification times of the two files of a network; zeros where one is missing, which loading then reports."""
    times = [path.stat().st_mtime_ns if path.exists() else 0 for path in (folder / WEIGHTS, folder / CARD)]
    return times[0], times[1]
