"""Source images in the look of the target: strong augmentation, histogram matching, Fourier style transfer.

All change the image alone, so the source's labels stay true and a network can learn from them what the target will
look like. None sees a label of the target.
"""

import numpy as np
import torch
from skimage.exposure import match_histograms
from torch import Tensor

from seggym.agents.rl4seg.settings import Augmentation
from seggym.agents.rl4seg.supervised import Style
from seggym.cohorts.shifts import Shift

# Half the side of the square of frequencies whose amplitude is exchanged, as a share of the image's side.
FOURIER_BAND = 0.05


def augmented(settings: Augmentation) -> Style:
    """Shifts of the family: each of ``kinds`` with probability one half, at a severity drawn from the closed range.

    An image stays as it is with probability 1 - ``share``.
    """

    def style(images: Tensor, places: Tensor) -> Tensor:
        changed = [_shifted(image, settings) for image in images[:, 0].cpu().numpy()]
        return torch.from_numpy(np.stack(changed)).to(images)[:, None]

    return style


def _shifted(image: np.ndarray, settings: Augmentation) -> np.ndarray:
    kinds = settings.kinds
    chosen = tuple(kind for kind, keep in zip(kinds, torch.rand(len(kinds)) < 0.5, strict=True) if keep)
    severity = int(torch.randint(settings.severities[0], settings.severities[1] + 1, ()))
    seed = int(torch.randint(2**31, ()))
    if float(torch.rand(())) > settings.share or not chosen:
        return image
    return Shift(kinds=chosen, severity=severity, seed=seed).apply(image, "augmented")


def histogram_matched(target: Tensor) -> Style:
    """Each image gets the histogram of a random image of ``target`` (n, 1, H, W)."""

    def style(images: Tensor, places: Tensor) -> Tensor:
        partners = target[torch.randint(len(target), (len(images),))]
        matched = [
            match_histograms(image, partner)
            for image, partner in zip(images[:, 0].cpu().numpy(), partners[:, 0].cpu().numpy(), strict=True)
        ]
        return torch.from_numpy(np.stack(matched)).to(images)[:, None].clamp_(0, 1)

    return style


def fourier_styled(target: Tensor, band: float = FOURIER_BAND) -> Style:
    """FDA (Yang and Soatto, CVPR 2020): the amplitude of low frequencies is that of a random image of ``target``."""

    def style(images: Tensor, places: Tensor) -> Tensor:
        partners = target[torch.randint(len(target), (len(images),))].to(images)
        return exchange_amplitude(images, partners, band)

    return style


def exchange_amplitude(images: Tensor, partners: Tensor, band: float) -> Tensor:
    """``images`` (B, 1, H, W) with the amplitude of ``partners`` within ``band`` of DC, clipped to [0, 1].

    The square of frequencies reaches ``floor(band * min(H, W))`` from DC in each direction.
    """
    ours, theirs = (torch.fft.fftshift(torch.fft.fft2(batch), dim=(-2, -1)) for batch in (images, partners))
    height, width = images.shape[-2:]
    reach = int(band * min(height, width))
    rows, columns = (slice(extent // 2 - reach, extent // 2 + reach + 1) for extent in (height, width))
    amplitude = ours.abs()
    amplitude[..., rows, columns] = theirs.abs()[..., rows, columns]
    mixed = torch.polar(amplitude, ours.angle())
    return torch.fft.ifft2(torch.fft.ifftshift(mixed, dim=(-2, -1))).real.clamp(0, 1)
