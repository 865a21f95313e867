"""Every instance segmenter by its name."""

from collections.abc import Mapping
from typing import Any

import torch

from seggym.configs.checking import build
from seggym.errors import SeggymError
from seggym.reward_models.instances.segmenter import InstanceSegmenter, Thresholds

BACKENDS = ("small", "torchvision")


def make_segmenter(
    backend: str,
    classes: int,
    options: Mapping[str, Any],
    thresholds: Thresholds,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> InstanceSegmenter:
    """The segmenter called ``backend`` for ``classes`` classes, with ``options``, fields of its options' class."""
    if backend == "small":
        from seggym.reward_models.instances.small import SmallOptions
        from seggym.reward_models.instances.small_segmenter import SmallSegmenter

        return SmallSegmenter(classes, build(SmallOptions, options, "backend_options."), thresholds, device, seed)
    if backend == "torchvision":
        from seggym.reward_models.instances.torchvision_backend import TorchvisionOptions, TorchvisionSegmenter

        chosen = build(TorchvisionOptions, options, "backend_options.")
        return TorchvisionSegmenter(classes, chosen, thresholds, device, seed)
    raise SeggymError(f"backend={backend!r} is unknown, expected one of {', '.join(BACKENDS)}")
