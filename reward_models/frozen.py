"""Frozen inference: probabilities and pooled features of a trained network from one fast forward pass."""

import contextlib
import copy
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import CARD, WEIGHTS, ModelCard, load_network

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
# Measured on one AVX-512 core at 128 x 128: channels-last takes 0.4 to 0.9 of the time of the contiguous layout, for
# every architecture, in fp32 (unet 8 instead of 14 ms per image) as in bf16 (4 instead of 7 ms).
MEMORY_FORMAT = torch.channels_last
# On a processor a few images at a time stay in the cache: 8 instead of 64 take 22 instead of 36 ms per image (unetpp,
# fp32), 11 instead of 16 (unetpp, bf16), 7.0 instead of 7.4 (unet, fp32). A GPU wants larger batches.
MAX_BATCH = {"cpu": 8, "cuda": 256}


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
    mean, scale = _moments(magnitude)
    return ((magnitude - mean) / scale).unsqueeze(1)


def _moments(magnitude: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale (B, 1, 1) of each image, in float32 or wider."""
    if magnitude.dtype != torch.float64:
        magnitude = magnitude.float()
    variance, mean = torch.var_mean(magnitude, dim=(1, 2), correction=0, keepdim=True)
    scale = variance.sqrt() + 1e-4 * mean.abs()
    return mean, scale.clamp_min(torch.finfo(scale.dtype).tiny)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return an eval-mode copy of ``network`` whose batch norms are folded into the convolutions before them.

    Only neighbours in an ``nn.Sequential`` (nested ones included, as in MONAI's blocks) are folded: there the order of
    execution is certain. A batch norm anywhere else stays.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        slots = _sequential_leaves(module)
        for (owner, name), (norm_owner, norm_name) in itertools.pairwise(slots):
            convolution, norm = getattr(owner, name), getattr(norm_owner, norm_name)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(owner, name, fuse_conv_bn_eval(convolution, norm))
                setattr(norm_owner, norm_name, nn.Identity())
    return network


def _sequential_leaves(sequence: nn.Sequential) -> list[tuple[nn.Module, str]]:
    """(owner, attribute) of every module that ``sequence`` runs, in the order in which it runs them."""
    slots: list[tuple[nn.Module, str]] = []
    for name, child in sequence.named_children():
        slots += _sequential_leaves(child) if isinstance(child, nn.Sequential) else [(sequence, name)]
    return slots


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


def resolve_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` is bf16 where the processor or GPU computes in it natively, else fp32; other keys stay."""
    if precision == "auto":
        return "bf16" if _has_native_bf16(device) else "fp32"
    if precision not in PRECISIONS:
        raise SeggymError(f"precision is {precision!r}, expected auto, {', '.join(PRECISIONS)}")
    return precision


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # torch has no public question for this; where a version lacks the private one, fp32 is merely slower.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(check() for check in checks if check is not None)


class FrozenNetwork:
    """A network for inference only: batch norm folded, cast and laid out for speed; the given one stays as it is.

    ``precision`` is ``fp32``, ``bf16``, ``fp64`` (for tests) or ``auto``. At most ``max_batch`` images pass through the
    network at a time, so that memory does not grow with the batch of the environment; the default is :data:`MAX_BATCH`.
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
        self.max_batch = max_batch or MAX_BATCH.get(self.device.type, 64)
        self.network = fold_batch_norm(network).requires_grad_(False).to(self.device, self.dtype)
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

    def reconstruct(self, magnitude: torch.Tensor) -> torch.Tensor:
        """The image-to-image network's version of magnitude images (B, H, W): its output on their own scale, >= 0."""
        mean, scale = _moments(magnitude)
        with torch.inference_mode(), self._exact():
            parts = normalise(magnitude).to(self.dtype).split(self.max_batch)
            output = torch.cat([self.network(part)[0][:, 0] for part in parts])
        return (output.to(mean.dtype) * scale + mean).clamp_min(0)

    def _exact(self) -> contextlib.AbstractContextManager[None]:
        """Where fp32 is asked for on a GPU, fp32 is computed: cuDNN would round the factors to TF32, of 10 bits."""
        if self.device.type != "cuda" or self.dtype == torch.bfloat16:
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            allow_tf32=False,
        )

    def _forward(self, magnitude: torch.Tensor) -> Prediction:
        with torch.inference_mode(), self._exact():
            x = normalise(magnitude).to(self.dtype).contiguous(memory_format=MEMORY_FORMAT)
            logits, bottleneck = self.network(x)
        # Outside inference mode, so that the results are ordinary tensors, which a trainer may put into its graph.
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        bottleneck = bottleneck.to(wide)
        features = torch.cat([bottleneck.mean(dim=(2, 3)), bottleneck.amax(dim=(2, 3))], dim=1)
        return Prediction(logits.to(wide).softmax(dim=1).contiguous(), features)


_CACHE: dict[tuple[str, str, str, str], tuple[tuple[int, int], FrozenNetwork]] = {}


def load_frozen(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    task: str = "segmentation",
) -> FrozenNetwork:
    """Load the network for ``task`` in ``folder`` frozen; within a process the same one is loaded only once.

    It is loaded again when its files have changed. Raises what
    :func:`~seggym.reward_models.checkpoints.load_network` raises.
    """
    path = Path(folder).resolve()
    target = resolve_device(device)
    precision = resolve_precision(precision, target)
    key = (str(path), str(target), precision, task)
    cached = _CACHE.get(key)
    stamp = _stamp(path)
    if cached is None or cached[0] != stamp:
        network, card = load_network(path)
        if card.task != task:
            raise SeggymError(f"{path / CARD} has task {card.task}, expected {task}; choose a {task} network")
        cached = _CACHE[key] = (stamp, FrozenNetwork(network, target, precision, card=card))
    return cached[1]


def _stamp(folder: Path) -> tuple[int, int]:
    """Modification times of the two files of a network; zeros where one is missing, which loading then reports."""
    times = [path.stat().st_mtime_ns if path.exists() else 0 for path in (folder / WEIGHTS, folder / CARD)]
    return times[0], times[1]
