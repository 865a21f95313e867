"""Reward pairs of simulated scans: what a segmentation network draws on undersampled images, beside the labels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.reconstruction.methods import Reconstruction
from seggym.reward_models.frozen import FrozenNetwork
from seggym.reward_models.reward_dataset import RewardDataset
from seggym.reward_models.reward_pairs import PairSettings, build_reward_pairs
from seggym.reward_models.training_scans import Simulator

# Errors of undersampling are the network's own; image and weights are not perturbed on top.
SCAN_PAIRS = PairSettings(swap=0, weight_noise=(), contrast=(), noise=(), patches=(0.02,))
_BATCH = 32


def scan_reward_pairs(
    network: FrozenNetwork,
    stack: SliceStack,
    acquisition: Acquisition,
    class_names: Sequence[str],
    scans: int = 256,
    seed: int = 0,
    settings: PairSettings = SCAN_PAIRS,
    reconstruction: Reconstruction | None = None,
) -> RewardDataset:
    """Pairs of ``scans`` random scans of the slices in ``stack``, with the random masks that networks are trained on.

    Images are magnitudes divided by their maximum, float32 (n, 1, C, C). ``network`` should not have seen the patients,
    or its errors are fewer than on others. ``reconstruction`` makes the images, None is zero-filled. Raises
    :class:`SeggymError` for fewer than one scan.
    """
    if scans < 1:
        raise SeggymError(f"scans={scans} of reward pairs, expected at least 1")
    simulator = Simulator(stack, acquisition, network.device, seed, reconstruction)
    images, labels, chosen = [], [], []
    for start in range(0, scans, _BATCH):
        magnitude, truth, numbers = simulator.plain(min(_BATCH, scans - start))
        images.append(magnitude / magnitude.amax((1, 2), keepdim=True))
        labels.append(truth)
        chosen.append(numbers.cpu().numpy())
    order = np.concatenate(chosen)
    return build_reward_pairs(
        _Drawing(network),
        torch.cat(images)[:, None].cpu(),
        [stack.patients[number] for number in order],
        [f"{stack.names[number]}_scan_{place:04d}" for place, number in enumerate(order)],
        settings=settings,
        class_names=class_names,
        truths=torch.cat(labels).cpu(),
    )[0]


class _Drawing(nn.Module):
    """A frozen network as a policy: its probabilities are turned into logits."""

    def __init__(self, network: FrozenNetwork) -> None:
        super().__init__()
        self.frozen, self.network = network, network.network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        prediction = self.frozen(images[:, 0])
        return prediction.probabilities.clamp_min(1e-6).log(), prediction.features
