"""A synthetic bench for tests: blobs in a 32 x 32 field of view, thresholding in place of networks."""

import torch

from seggym.agents.bench import Bench
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.reward_models.frozen import Prediction

SCAN = {"matrix": 32, "crop": 32, "snr": 30.0, "echo_shift": 2.0}


class Threshold:
    """Three classes by smooth thresholds on the magnitude in units of its mean."""

    num_outputs, num_features = 3, 2

    def __init__(self, low: float = 1.5, high: float = 3.0) -> None:
        self.low, self.high = low, high

    def __call__(self, magnitude: torch.Tensor) -> Prediction:
        scaled = magnitude / magnitude.mean((1, 2), keepdim=True)
        logits = torch.stack([torch.zeros_like(scaled), 8 * (scaled - self.low), 20 * (scaled - self.high)], 1)
        return Prediction(logits.softmax(1).float(), magnitude.flatten(1)[:, :2].float())


def make_stack(patients: int = 2, frames: int = 2, depth: int = 2, seed: int = 0) -> SliceStack:
    """Slices with a ring (class 1) around a bright disc (class 2) at varying places."""
    generator = torch.Generator().manual_seed(seed)
    count, scan = patients * frames * depth, Acquisition(**SCAN)
    axis = torch.arange(scan.grid) - scan.grid // 2
    centre = torch.rand(count, 2, generator=generator) * 6 - 3
    radius = ((axis[None, :, None] - centre[:, 0, None, None]) ** 2 + (axis - centre[:, 1, None, None]) ** 2).sqrt()
    radius = radius * (scan.matrix / scan.grid)
    labels = (radius < 7).to(torch.uint8) + (radius < 4).to(torch.uint8)
    images = 0.2 + labels.float()
    names = [
        (f"patient{p}", f"patient{p}_frame{f}", z) for p in range(patients) for f in range(frames) for z in range(depth)
    ]
    small = torch.nn.functional.interpolate(images[:, None], 32, mode="area")[:, 0]
    return SliceStack(
        images=images,
        labels=((small > 0.7).to(torch.uint8) + (small > 1.7).to(torch.uint8)),
        signal=torch.full((count,), 0.5),
        data_range=torch.full((count,), 2.2),
        phase_amplitude=torch.full((count,), 1.0),
        echo_shift=torch.full((count,), 1.5),
        spacing=torch.tensor([[8.0, 1.5, 1.5]]).repeat(count, 1),
        patients=tuple(name[0] for name in names),
        volumes=tuple(name[1] for name in names),
        positions=tuple(name[2] for name in names),
        num_classes=3,
    )


def make_bench(segment: bool = True, **options) -> Bench:
    """A bench of eight slices of two patients; with ``segment`` networks A and B, else image quality alone."""
    weights = {} if segment else {"lambda_seg": 0.0, "lambda_recon": 1.0}
    settings = KSpaceSettings(
        cohort="phantom",
        reward_model="stub",
        role="test",
        **{"acquisition": SCAN, "budget": 3, **weights, **options},
    )
    stack = make_stack()

    def make_engine(chosen: KSpaceSettings, count: int) -> KSpaceEngine:
        return KSpaceEngine(stack, chosen, count, networks=[Threshold()] if segment else [])

    independent = Threshold(1.4, 2.8) if segment else None
    provenance = {"fingerprint": "synthetic", "weights": {}, "split": {}, "versions": {}, "cohort": "synthetic"}
    return Bench("Test-v0", settings, stack, ("background", "a", "b"), make_engine, independent, provenance)
