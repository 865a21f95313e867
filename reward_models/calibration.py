"""How well a confidence per pixel tells right from wrong: calibration, discrimination, and the temperature that fits.

A *confidence* is the probability that the label of a pixel is correct, whatever it came from: the reward map of an
error net, the largest softmax probability, the mean of an ensemble. All functions take the pixels to be scored as flat
tensors, confidence float (P,) and correct bool (P,); which pixels those are (:func:`scored_region`,
:func:`boundary_band`) is the caller's choice and belongs to every number that is reported.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seggym.errors import SeggymError

BINS = 20
BAND = 5
"""Pixels on either side of a boundary that count as its band."""
# Confidences are kept this far from 0 and 1 before their logarithm is taken, so that float32 can tell them apart.
_MARGIN = 1e-6


class Reliability(NamedTuple):
    """A reliability diagram: mean confidence, share correct and number of pixels of every bin, (B,) each.

    Empty bins have NaN and 0.
    """

    confidence: Tensor
    accuracy: Tensor
    pixels: Tensor


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS, equal_mass: bool = False) -> Reliability:
    """The diagram over ``bins`` bins of equal width, or with ``equal_mass`` of equally many pixels."""
    confidence, correct = _checked(confidence, correct)
    if equal_mass:
        confidence, order = confidence.sort()
        correct = correct[order]
        number = torch.arange(len(confidence)) * bins // len(confidence)
    else:
        # Closed above, like torchmetrics: a confidence of 1 belongs to the last bin, one of 0 to the first.
        number = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count = torch.bincount(number, minlength=bins)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(number, values, minlength=bins) / count

    return Reliability(mean(confidence), mean(correct), count)


def ece(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015): mean distance of accuracy and confidence, equal widths."""
    return _gap(reliability(confidence, correct, bins))


def ace(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Adaptive calibration error: :func:`ece` over bins of equally many pixels."""
    return _gap(reliability(confidence, correct, bins, equal_mass=True))


def mce(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Maximum calibration error: the largest distance over bins of equal width."""
    diagram = reliability(confidence, correct, bins)
    return float((diagram.accuracy - diagram.confidence).abs().nan_to_num(0).max())


def brier(confidence: Tensor, correct: Tensor) -> float:
    """Brier score: the mean squared distance of confidence and correctness."""
    confidence, correct = _checked(confidence, correct)
    return float((confidence - correct).square().mean())


def auroc(confidence: Tensor, correct: Tensor) -> float:
    """Area under the ROC curve of detecting *errors* by low confidence; NaN where all pixels are right, or wrong."""
    from sklearn.metrics import roc_auc_score

    confidence, correct = _checked(confidence, correct)
    if bool((correct == correct[0]).all()):
        return float("nan")
    return float(roc_auc_score(correct.numpy(), confidence.numpy()))


def nmi(confidence: Tensor, correct: Tensor, bins: int = 10) -> float:
    """Normalised mutual information of correctness and confidence in ``bins`` equal widths, 2 I / (H + H)."""
    from sklearn.metrics import normalized_mutual_info_score

    confidence, correct = _checked(confidence, correct)
    number = (confidence * bins).long().clamp(0, bins - 1)
    return float(normalized_mutual_info_score(correct.numpy().astype(int), number.numpy()))


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's of two series (n,), pairs with a NaN left out; NaN for fewer than three pairs or a constant series.

    That of uncertainty and Dice over images is negative where the uncertainty is good.
    """
    there = torch.isfinite(first) & torch.isfinite(second)
    x, y = (series[there].double().cpu().numpy() for series in (first, second))
    if len(x) < 3 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def boundary_band(masks: Tensor, width: int = BAND) -> Tensor:
    """Pixels of ``masks`` (n, H, W) at most ``width`` pixels along rows and columns from a boundary of labels: bool.

    The two pixels that touch across a boundary have distance 1 from it.
    """
    edge = torch.zeros(masks.shape, dtype=torch.bool, device=masks.device)
    across, along = masks[:, 1:] != masks[:, :-1], masks[:, :, 1:] != masks[:, :, :-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[:, :, 1:] |= along
    edge[:, :, :-1] |= along
    reach = width - 1
    return functional.max_pool2d(edge[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0


def scored_region(predictions: Tensor, truths: Tensor) -> Tensor:
    """Foreground of prediction or truth, bool (n, H, W): background that both agree on would flatter every score."""
    return (predictions > 0) | (truths > 0)


def fit_temperature(logits: Tensor, correct: Tensor) -> float:
    """The T > 0 whose sigmoid(``logits`` / T) has the lowest cross-entropy with ``correct``; (P,) each.

    Temperature scaling of a binary confidence (Guo et al., ICML 2017, section 4.2), by L-BFGS on ln T. Raises
    :class:`SeggymError` where there are no pixels; where all are right (or wrong) the best T is a limit, and T stays
    within [0.05, 20].
    """
    if not len(logits):
        raise SeggymError("a temperature cannot be fitted to no pixels; validate on images with a foreground")
    # Outside of inference mode, where a caller may be, because L-BFGS needs gradients.
    with torch.inference_mode(False), torch.enable_grad():
        z, y = logits.detach().flatten().clone().double(), correct.flatten().clone().double()
        log_t = torch.zeros((), dtype=torch.float64, device=z.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = functional.binary_cross_entropy_with_logits(z / log_t.exp(), y)
            value.backward()
            return value

        optimizer.step(loss)
    return float(log_t.detach().exp().clamp(0.05, 20))


def confidence_logit(confidence: Tensor) -> Tensor:
    """ln(c / (1 - c)), with c kept away from 0 and 1."""
    return torch.logit(confidence.double(), eps=_MARGIN).to(confidence)


def score_pixels(confidence: Tensor, predictions: Tensor, truths: Tensor) -> dict[str, float]:
    """All of the above for confidences float (n, H, W) of label maps ``predictions`` against ``truths`` (n, H, W).

    ``auroc``, ``brier``, ``ece``, ``mce``, ``ace`` and ``nmi`` are on foreground united with prediction,
    ``band_auroc`` and ``band_brier`` within :data:`BAND` pixels of the boundaries of either, ``image_auroc`` and
    ``image_brier`` over whole images, and ``pearson_dice`` compares 1 - mean confidence of an image's region with its
    mean foreground Dice. Images where a region is empty take no part in it.
    """
    correct = predictions == truths
    regions = {
        "": scored_region(predictions, truths),
        "band_": boundary_band(predictions) | boundary_band(truths),
        "image_": torch.ones_like(correct),
    }
    scores: dict[str, float] = {}
    for name, region in regions.items():
        measures = [auroc, brier] if name else [auroc, brier, ece, mce, ace, nmi]
        pixels = confidence[region], correct[region]
        for measure in measures:
            scores[name + measure.__name__] = measure(*pixels) if len(pixels[0]) else float("nan")
    scores["accuracy"] = float(correct[regions[""]].double().mean())
    region = regions[""].flatten(1)
    uncertainty = ((1 - confidence).flatten(1) * region).sum(1) / region.sum(1)
    scores["pearson_dice"] = correlation(uncertainty, _image_dice(predictions, truths))
    return scores


def _image_dice(predictions: Tensor, truths: Tensor) -> Tensor:
    """Mean Dice over the foreground classes that prediction or truth has, float64 (n,); NaN without any."""
    found = []
    for label in range(1, int(max(predictions.max(), truths.max())) + 1):
        first, second = (predictions == label).flatten(1), (truths == label).flatten(1)
        found.append(2 * (first & second).sum(1).double() / (first.sum(1) + second.sum(1)))
    return torch.stack(found).nanmean(0) if found else torch.full((len(truths),), torch.nan)


def _gap(diagram: Reliability) -> float:
    gap = (diagram.accuracy - diagram.confidence).abs().nan_to_num(0)
    return float((gap * diagram.pixels).sum() / diagram.pixels.sum())


def _checked(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """As float64 on the CPU."""
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise SeggymError(
            f"confidence {tuple(confidence.shape)} and correct {tuple(correct.shape)} must be flat, of one length and "
            "not empty; choose the pixels with a mask first"
        )
    values = confidence.detach().double().cpu()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise SeggymError(
            f"confidence lies in [{float(values.min()):.3g}, {float(values.max()):.3g}], expected probabilities from 0 "
            "to 1 without NaN"
        )
    return values, correct.detach().double().cpu()
