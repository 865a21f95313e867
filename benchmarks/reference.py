"""What the environments are measured against: a plain U-Net, and a step without any of the engine's shortcuts."""

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import nn

from seggym.envs.kspace.engine import KSpaceEngine
from seggym.kspace.transforms import centre_crop, fftc, ifftc
from seggym.reward_models.frozen import normalise
from seggym.reward_models.networks import UNet
from seggym.reward_models.unext import conv_block


class ReferenceUNet(UNet):
    """The U-Net of the published figures: 16-32-64-128 channels, two 3 x 3 convolutions per level, down and up."""

    def __init__(self, num_outputs: int) -> None:
        widths = (16, 32, 64, 128)
        super().__init__(num_outputs, widths)
        self.stem = nn.Sequential(conv_block(1, widths[0]), conv_block(widths[0], widths[0]))
        self.merge[0] = nn.Sequential(conv_block(2 * widths[0], widths[0]), conv_block(widths[0], widths[0]))


class Straightforward:
    """The step that one would write first, over the scans that an engine holds.

    k-space as a whole, an inverse 2-D transform of all measured lines at every step, the network as it was trained
    (fp32, channels first, batch norm apart, the whole batch at once), Dice from scratch, SSIM by scikit-image.
    """

    def __init__(self, engine: KSpaceEngine, network: nn.Module | None) -> None:
        hybrid = engine.scanner.signal[:, :, 0].transpose(1, 2)
        self.kspace = fftc(hybrid, (-2,))
        self.crop, self.network = engine.acquisition.crop, network
        self.mask = engine.acquired.clone()
        full = centre_crop(ifftc(self.kspace, (-2, -1)), self.crop, (-2, -1)).abs()
        self.reference = full.numpy()
        self.data_range = engine.stack.data_range[engine.samples].numpy()
        self.labels = engine.stack.labels[engine.samples].long()
        self.classes = engine.stack.num_classes

    def step(self, lines: torch.Tensor) -> np.ndarray:
        """Add a line to every scan; the reward's quality (N,): Dice where there is a network, else SSIM."""
        self.mask[torch.arange(len(lines)), lines] = True
        image = centre_crop(ifftc(self.kspace * self.mask[:, None, :], (-2, -1)), self.crop, (-2, -1)).abs()
        if self.network is None:
            pairs = zip(self.reference, image.numpy(), self.data_range, strict=True)
            return np.array([structural_similarity(truth, seen, data_range=top) for truth, seen, top in pairs])
        with torch.no_grad():
            probabilities = self.network(normalise(image))[0].softmax(1)
        truth = nn.functional.one_hot(self.labels, self.classes).movedim(-1, 1).float()
        overlap = (probabilities * truth).sum((2, 3))
        dice = (2 * overlap + 1) / (probabilities.sum((2, 3)) + truth.sum((2, 3)) + 1)
        return dice[:, 1:].mean(1).numpy()
