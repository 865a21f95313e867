"""How close a reconstruction is to its reference: SSIM, PSNR and NMSE in batches, reference terms computed once.

SSIM (Wang et al., IEEE TIP 2004) is that of ``skimage.metrics.structural_similarity`` with ``win_size=7``,
``gaussian_weights=False``, ``use_sample_covariance=True`` and the given ``data_range``: uniform 7 x 7 windows, mean
over the windows that lie inside the image. The data range is the maximum of the *volume* an image belongs to.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seggym.errors import SeggymError

WINDOW = 7
LUMINANCE_CONSTANT = 0.01**2
CONTRAST_CONSTANT = 0.03**2
_PIXELS = WINDOW**2


@dataclass(frozen=True)
class ReferenceTerms:
    """What the scores need of the reference, computed once for all the steps of an episode.

    Images are kept centred and scaled, (image - offset) / data_range: float32 loses the variance of a small bright
    window otherwise, and scaling makes the constants of SSIM the same for all images.

    Attributes:
        scaled: (B, H, W), the reference centred and scaled.
        offset: (B, 1, 1), its mean, in its unit.
        data_range: (B, 1, 1), in its unit.
        mean: (B, H-6, W-6), window means of ``scaled``.
        level: (B, H-6, W-6), window means of the reference divided by the data range.
        luminance: (B, H-6, W-6), what the reference adds to the denominator of SSIM's luminance.
        contrast: (B, H-6, W-6), what the reference adds to that of its structure, times 48 (49 pixels, less one).
        energy: (B,), sum of squares of the reference divided by the data range.
    """

    scaled: Tensor
    offset: Tensor
    data_range: Tensor
    mean: Tensor
    level: Tensor
    luminance: Tensor
    contrast: Tensor
    energy: Tensor


def encode_reference(reference: Tensor, data_range: Tensor) -> ReferenceTerms:
    """Terms of the references.

    Args:
        reference: (B, H, W) float32 or float64 magnitudes, height and width at least 7.
        data_range: (B,), the maximum of each image's volume in the same unit, positive.

    Raises:
        SeggymError: the shapes do not fit, or an image is smaller than the window of SSIM.
    """
    if reference.ndim != 3 or data_range.shape != reference.shape[:1]:
        raise SeggymError(
            "reference must be (batch, height, width) and data_range (batch,), found shapes "
            f"{tuple(reference.shape)} and {tuple(data_range.shape)}; give one data range per image"
        )
    if min(reference.shape[1:]) < WINDOW:
        raise SeggymError(
            f"reference must be at least {WINDOW} x {WINDOW} pixels for SSIM, found {tuple(reference.shape[1:])}; "
            "use a larger crop"
        )
    extent = data_range.to(reference).view(-1, 1, 1)
    offset = reference.mean(dim=(-2, -1), keepdim=True)
    scaled = (reference - offset) / extent
    sums = _window_sums(scaled)
    mean = sums / _PIXELS
    level = mean + offset / extent
    return ReferenceTerms(
        scaled=scaled,
        offset=offset,
        data_range=extent,
        mean=mean,
        level=level,
        luminance=level * level + LUMINANCE_CONSTANT,
        contrast=_window_sums(scaled * scaled) - sums * mean + CONTRAST_CONSTANT * (_PIXELS - 1),
        energy=(reference / extent).square().sum(dim=(-2, -1)),
    )


def ssim(image: Tensor, terms: ReferenceTerms) -> Tensor:
    """Structural similarity of ``image`` (B, H, W), a magnitude in the unit of the reference: (B,), at most 1.

    SSIM is the mean of (2 x y + c1) (2 cov + c2) / ((x^2 + y^2 + c1) (var x + var y + c2)) over the windows, x and y
    their means. Both factors of the numerator are computed halved, and those of the structure 48-fold, as sums.
    """
    scaled = _scaled(image, terms)
    sums = _window_sums(scaled)
    covariance = _window_sums(scaled * terms.scaled).addcmul_(sums, terms.mean, value=-1)
    variance = _window_sums(scaled.square_()).addcmul_(sums, sums, value=-1 / _PIXELS)
    level = torch.add(terms.offset / terms.data_range, sums, alpha=1 / _PIXELS)
    above = (level * terms.level).add_(LUMINANCE_CONSTANT / 2)
    above.mul_(covariance.add_(CONTRAST_CONSTANT * (_PIXELS - 1) / 2))
    below = level.square_().add_(terms.luminance).mul_(variance.add_(terms.contrast))
    return 4 * above.div_(below).mean(dim=(-2, -1))


def psnr(image: Tensor, terms: ReferenceTerms) -> Tensor:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / mean squared error) of ``image`` (B, H, W): (B,) in dB.

    The root mean squared error counts as at least the machine epsilon times the data range, so that an image equal to
    its reference scores a finite 138 dB in float32 (313 dB in float64) and gains in PSNR stay finite.
    """
    error = (_scaled(image, terms) - terms.scaled).square().mean(dim=(-2, -1))
    return -10 * torch.log10(error.clamp(min=torch.finfo(error.dtype).eps ** 2))


def nmse(image: Tensor, terms: ReferenceTerms) -> Tensor:
    """Squared error of ``image`` (B, H, W) over the energy of the reference: (B,); not finite if that is zero."""
    return (_scaled(image, terms) - terms.scaled).square().sum(dim=(-2, -1)) / terms.energy


def _scaled(image: Tensor, terms: ReferenceTerms) -> Tensor:
    if image.shape != terms.scaled.shape:
        raise SeggymError(
            f"image must be {tuple(terms.scaled.shape)} as its reference is, found {tuple(image.shape)}; "
            "cut both to the same crop"
        )
    return (image - terms.offset) / terms.data_range


def _window_sums(image: Tensor) -> Tensor:
    """Sums over all 7 x 7 windows inside (B, H, W): a fresh (B, H-6, W-6).

    Sums of shifted slices, first 2, then 4, then 7 wide: average pooling is several times slower on a processor, and
    running sums cancel in float32.
    """
    for axis in (-2, -1):
        size = image.shape[axis]
        pairs = image.narrow(axis, 0, size - 1) + image.narrow(axis, 1, size - 1)
        fours = pairs.narrow(axis, 0, size - 3) + pairs.narrow(axis, 2, size - 3)
        sums = fours.narrow(axis, 0, size - 6) + pairs.narrow(axis, 4, size - 6)
        image = sums.add_(image.narrow(axis, 6, size - 6))
    return image
