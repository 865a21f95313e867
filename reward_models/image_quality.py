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
        contrast: (B, H-6, W-6), what the reference adds to the denominator of SSIM's structure, 48-fold (49 pixels,
            less one).
        energy: (B,), sum of squares of the reference divided by the data range.
    """

    scaled: Tensor
    offset: Tensor
    data_range: Tensor
    mean: Tensor
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
    return ReferenceTerms(
        scaled=scaled,
        offset=offset,
        data_range=extent,
        mean=mean,
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
    centre = terms.offset / terms.data_range
    level, reference = torch.add(centre, sums, alpha=1 / _PIXELS), terms.mean + centre
    above = (level * reference).add_(LUMINANCE_CONSTANT / 2)
    above.mul_(covariance.add_(CONTRAST_CONSTANT * (_PIXELS - 1) / 2))
    below = level.square_().addcmul_(reference, reference).add_(LUMINANCE_CONSTANT)
    below.mul_(variance.add_(terms.contrast))
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
    return (image - terms.offset).div_(terms.data_range)


def _window_sums(image: Tensor) -> Tensor:
    """Sums over all 7 x 7 windows inside (B, H, W): a fresh (B, H-6, W-6).

    Along each axis the seven shifted images are an axis of a view that overlaps itself, which is summed in one pass.
    Average pooling is several times slower on a processor, and running sums cancel in float32.
    """
    for axis in (1, 2):
        image = image.unfold(axis, WINDOW, 1).movedim(-1, 1).sum(1)
    return image
