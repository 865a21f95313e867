"""Training and evaluation of networks that reconstruct: the image of all lines without noise, from few noisy ones."""

from typing import Any

import numpy as np
import torch
from torch import nn

from seggym.kspace import orders, simulation
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.keyed_random import key_of, random_bits
from seggym.kspace.masks import random_acquired
from seggym.reward_models.evaluation import ACCELERATIONS
from seggym.reward_models.frozen import FrozenNetwork, reconstruct_with
from seggym.reward_models.image_quality import ReferenceTerms, encode_reference, ssim
from seggym.reward_models.statistics import bootstrap_interval
from seggym.reward_models.training_scans import Simulator, measure

_AT_A_TIME = 32


class ReconstructionTask:
    """The noise-free image of all lines: absolute error in units of the data range, and 1 - SSIM; validated by SSIM."""

    score = "ssim"
    num_outputs = 1

    def __init__(
        self, train: SliceStack, val: SliceStack, acquisition: Acquisition, device: torch.device, seed: int
    ) -> None:
        self._acquisition = acquisition
        self._simulator = Simulator(train, acquisition, device, seed)
        self._val = val.to(device)
        mask = random_acquired(acquisition, len(val), np.random.default_rng(0))
        self._val_acquired = torch.from_numpy(mask).to(device)
        self._val_keys = random_bits(torch.zeros(1, dtype=torch.int64, device=device), 0, len(val))[0]

    @property
    def rng(self) -> np.random.Generator:
        """Everything random of the batches."""
        return self._simulator.rng

    @rng.setter
    def rng(self, rng: np.random.Generator) -> None:
        self._simulator.rng = rng

    def module(self, network: nn.Module) -> nn.Module:
        """The network with what surrounds it, a map from lines to magnitudes."""
        return _LinesToMagnitude(network, self._acquisition)

    def batch(self, size: int, augment: bool) -> tuple[tuple[torch.Tensor, ...], ReferenceTerms]:
        """Hybrid space, measured lines, and the references."""
        stack, chosen, keys, acquired = self._simulator.scans(size, augment)
        return (_hybrid(stack, chosen, keys, self._acquisition), acquired), _reference(
            stack, chosen, keys, self._acquisition
        )

    def loss(self, output: torch.Tensor, target: ReferenceTerms) -> torch.Tensor:
        """Mean absolute error plus 1 - SSIM."""
        scaled = (output - target.offset) / target.data_range
        return (scaled - target.scaled).abs().mean() + (1 - ssim(output, target)).mean()

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> float:
        """Mean SSIM of the validation slices, each measured once with a fixed random mask."""
        network.eval()
        scores = []
        for part in torch.arange(len(self._val), device=self._val_keys.device).split(_AT_A_TIME):
            keys = self._val_keys[part]
            hybrid = _hybrid(self._val, part, keys, self._acquisition)
            image = reconstruct_with(network, hybrid, self._val_acquired[part], self._acquisition)
            scores.append(ssim(image, _reference(self._val, part, keys, self._acquisition)))
        return torch.cat(scores).mean().item()


class _LinesToMagnitude(nn.Module):
    """A network that reconstructs, called as :func:`~seggym.reward_models.frozen.reconstruct_with` does."""

    def __init__(self, network: nn.Module, acquisition: Acquisition) -> None:
        super().__init__()
        self.network, self.acquisition = network, acquisition

    def forward(self, hybrid: torch.Tensor, acquired: torch.Tensor) -> torch.Tensor:
        """Magnitude (B, C, C)."""
        return reconstruct_with(self.network, hybrid, acquired, self.acquisition)


def _hybrid(stack: SliceStack, indices: torch.Tensor, keys: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    return measure(stack, indices, keys, acquisition).permute(0, 2, 3, 1)


def _reference(
    stack: SliceStack, indices: torch.Tensor, keys: torch.Tensor, acquisition: Acquisition
) -> ReferenceTerms:
    clean = simulation.encode(stack, indices, keys, acquisition, torch.float32)
    return encode_reference(simulation.zero_filled(clean, None, acquisition), stack.data_range[indices])


def evaluate_reconstruction(
    network: nn.Module, stack: SliceStack, acquisition: Acquisition, device: torch.device
) -> dict[str, Any]:
    """SSIM of every slice of ``stack`` measured centre-out, per acceleration ("1" is fully sampled).

    Each has ``ssim`` and, for comparison, ``zero_filled``: [mean, low, high], 95 % over patients.
    """
    frozen, stack = FrozenNetwork(network, device), stack.to(device)
    result: dict[str, Any] = {}
    for acceleration in ACCELERATIONS:
        lines = orders.centre_out(acquisition.matrix)[: round(acquisition.matrix / acceleration)]
        acquired = torch.zeros(acquisition.matrix, dtype=torch.bool, device=device)
        acquired[torch.from_numpy(lines).to(device)] = True
        scores: dict[str, list[torch.Tensor]] = {"ssim": [], "zero_filled": []}
        for part in torch.arange(len(stack), device=device).split(_AT_A_TIME):
            keys = torch.tensor([key_of(f"eval:{stack.names[i]}:0") for i in part.tolist()], device=device)
            hybrid = _hybrid(stack, part, keys, acquisition)
            mask, reference = acquired.expand(len(part), -1), _reference(stack, part, keys, acquisition)
            scores["ssim"].append(ssim(frozen.reconstruct(hybrid, mask, acquisition), reference))
            scores["zero_filled"].append(ssim(simulation.zero_filled(hybrid, mask, acquisition), reference))
        result[str(acceleration)] = {
            name: list(bootstrap_interval(torch.cat(values).cpu().numpy(), stack.patients))
            for name, values in scores.items()
        }
    return result
