"""How good a segmentation is: rewards per slice in batches, Dice per volume, surface distances in millimetres.

Conventions, the same everywhere in the suite:

- Class 0 is background and is never scored; ``K - 1`` foreground classes are.
- A class that is absent from the truth has no Dice: it is NaN in the tables and left out of the rewards. Counting empty
  against empty as 1 would reward measuring nothing. What a prediction draws of an absent class is counted apart, as an
  area.
- A class that is present and not predicted has Dice 0, and its surface distance is a *failure* (NaN with a flag), so
  that its rate can be reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seggym.errors import SeggymError

SMOOTHING = 1.0
"""Pixels added to the numerator and the denominator of the overlaps used as rewards."""


@dataclass(frozen=True)
class SegmentationTerms:
    """What the scores need of the truth, computed once for all the steps of an episode.

    Attributes:
        labels: (B, H, W), the truth itself, an integer tensor of values 0..K-1.
        onehot: (B, K-1, H, W) float32, the foreground classes.
        areas: (B, K-1) float32, pixels of each class.
        present: (B, K-1) bool, whether the truth has the class.
    """

    labels: Tensor
    onehot: Tensor
    areas: Tensor
    present: Tensor

    @property
    def num_classes(self) -> int:
        """K, background included."""
        return self.onehot.shape[1] + 1


class Overlap(NamedTuple):
    """Predicted and true area of each foreground class and what they share, float (..., K-1): pixels, or voxels.

    Overlaps add up: those of the slices of a volume, summed, are the overlap of the volume.
    """

    intersection: Tensor
    predicted: Tensor
    true: Tensor


class SurfaceDistances(NamedTuple):
    """Distances between two surfaces, one entry per foreground class.

    Attributes:
        hd95: (K-1,) float32, the larger of the two directed 95th percentiles, in the unit of the spacing; NaN if
            undefined.
        assd: (K-1,) float32, the mean over the points of both surfaces, in the unit of the spacing; NaN if undefined.
        failed: (K-1,) bool, exactly one of truth and prediction has the class. Where neither has it, the distances are
            NaN and ``failed`` is False: there was nothing to find.
    """

    hd95: Tensor
    assd: Tensor
    failed: Tensor


def encode_truth(labels: Tensor, num_classes: int) -> SegmentationTerms:
    """Terms of the truth ``labels`` (B, H, W), an integer tensor of values 0..num_classes-1, on its own device.

    Raises:
        SeggymError: ``labels`` is not (B, H, W), or there is no foreground class.
    """
    if labels.ndim != 3:
        raise SeggymError(f"labels must be (batch, height, width), found shape {tuple(labels.shape)}; add a batch axis")
    onehot = _foreground(labels, num_classes)
    areas = onehot.sum(dim=(-2, -1))
    return SegmentationTerms(labels=labels, onehot=onehot, areas=areas, present=areas > 0)


def most_probable(probabilities: Tensor) -> Tensor:
    """Class of each pixel, (B, K, H, W) to (B, H, W) uint8; a tie goes to the lower class, as with ``argmax``.

    One pass per class: on a processor ``argmax`` takes 3 (channels last) to 60 times as long (channels first).
    """
    best = probabilities[:, 0]
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for label in range(1, probabilities.shape[1]):
        candidate = probabilities[:, label]
        labels = torch.maximum(labels, (candidate > best).to(torch.uint8) * label)
        best = torch.maximum(best, candidate)
    return labels


def soft_quality(probabilities: Tensor, truth: SegmentationTerms, absent_weight: float) -> Tensor:
    """Smoothed soft Dice, mean over the classes present, minus a penalty on the area given to absent ones.

    With I, P and A the intersection, the predicted and the true area of a class in pixels, its Dice is
    (2I + 1) / (P + A + 1). The penalty is ``absent_weight`` times the probability mass of the absent classes divided by
    the number of pixels. A slice in which no class is present has the penalty only, so its value is at most 0.

    Args:
        probabilities: (B, K, H, W) float, non-negative, summing to 1 over K.
        truth: of the same batch.
        absent_weight: weight of the penalty, a number without unit.

    Returns:
        (B,) in the precision of ``probabilities``.
    """
    return overlap_quality(soft_overlap(probabilities, truth), _pixels(truth), absent_weight)


def hard_quality(probabilities: Tensor, truth: SegmentationTerms, absent_weight: float) -> Tensor:
    """:func:`soft_quality` of the most probable class of each pixel instead of the probabilities, (B,) float32."""
    overlap = hard_overlap(most_probable(_check(probabilities, truth)), truth)
    return overlap_quality(overlap, _pixels(truth), absent_weight)


def mean_iou(probabilities: Tensor, truth: SegmentationTerms, absent_weight: float) -> Tensor:
    """:func:`hard_quality` with the smoothed intersection over union, (I + 1) / (P + A - I + 1), in place of Dice."""
    overlap = hard_overlap(most_probable(_check(probabilities, truth)), truth)
    return overlap_quality(overlap, _pixels(truth), absent_weight, union=True)


def soft_overlap(probabilities: Tensor, truth: SegmentationTerms) -> Overlap:
    """Sums of the probabilities (B, K, H, W) within and without the truth, (B, K-1) in their precision."""
    predicted = _check(probabilities, truth)[:, 1:]
    return Overlap((predicted * truth.onehot).sum(dim=(-2, -1)), predicted.sum(dim=(-2, -1)), truth.areas)


def overlap_quality(overlap: Overlap, pixels: Tensor | int, absent_weight: float, union: bool = False) -> Tensor:
    """:func:`soft_quality` of an overlap (..., K-1): (...,). ``pixels``, broadcast, is the size of the image or volume.

    With ``union`` the smoothed intersection over union takes the place of Dice (:func:`mean_iou`).
    """
    intersection, predicted, true = overlap
    if union:
        score = (intersection + SMOOTHING) / (predicted + true - intersection + SMOOTHING)
    else:
        score = (2 * intersection + SMOOTHING) / (predicted + true + SMOOTHING)
    present = true > 0
    mean = (score * present).sum(dim=-1) / present.sum(dim=-1).clamp(min=1)
    return mean - absent_weight * (predicted * ~present).sum(dim=-1) / pixels


def overlap_scores(overlap: Overlap) -> tuple[Tensor, Tensor]:
    """:func:`hard_scores` of an overlap of label maps, (..., K-1) each."""
    intersection, predicted, true = overlap
    dice = (2 * intersection / (predicted + true)).masked_fill(true == 0, torch.nan)
    return dice, predicted.masked_fill(true > 0, 0.0)


def dice_per_class(prediction: Tensor, truth: SegmentationTerms) -> Tensor:
    """Plain Dice 2I / (P + A) of label maps ``prediction`` (B, H, W): (B, K-1) float32, NaN for absent classes."""
    return hard_scores(prediction, truth)[0]


def hard_scores(prediction: Tensor, truth: SegmentationTerms) -> tuple[Tensor, Tensor]:
    """Plain Dice, and area given to absent classes, of label maps ``prediction`` (B, H, W), values 0..K-1.

    Returns:
        dice: (B, K-1) float32, 2I / (P + A), NaN for absent classes.
        absent_area: (B, K-1) float32, pixels, 0 for the classes present.
    """
    return overlap_scores(hard_overlap(prediction, truth))


def volume_dice(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Plain Dice over the voxels of a whole volume, the headline measure.

    A slice without a class counts through the voxels predicted in it. A class is NaN if the whole true volume lacks it.
    The Dice of a case is the mean over the classes that are not NaN; averages are then taken over cases.

    Args:
        prediction: (Z, H, W) integer labels.
        truth: (Z, H, W) integer labels.
        num_classes: K, background included.

    Returns:
        (K-1,) float32.

    Raises:
        SeggymError: the shapes differ or are not (Z, H, W).
    """
    _check_pair(prediction, truth, dimensions=(3,))
    terms = encode_truth(truth.flatten(1)[None], num_classes)
    return dice_per_class(prediction.flatten(1)[None], terms)[0]


def surface_distances(
    prediction: Tensor, truth: Tensor, num_classes: int, spacing: Sequence[float]
) -> SurfaceDistances:
    """HD95 and average symmetric surface distance of one slice (H, W) or one volume (Z, H, W).

    The same numbers as MONAI's ``compute_hausdorff_distance(percentile=95)`` and ``compute_average_surface_distance(
    symmetric=True)``: a surface is the pixels that an erosion takes away, distances are those between their centres.
    Both come from one pair of surfaces here and without MONAI's checks, which is several times faster.

    Args:
        prediction: integer labels.
        truth: integer labels of the same shape.
        num_classes: K, background included.
        spacing: distance of neighbouring pixels along each axis, mm (1 per axis where the spacing is nominal: then
            pixels).

    Raises:
        SeggymError: the shapes differ, or ``spacing`` is not one positive number per axis.
    """
    _check_pair(prediction, truth, dimensions=(2, 3))
    step = [float(value) for value in spacing]
    if len(step) != truth.ndim or not all(0 < value < float("inf") for value in step):
        raise SeggymError(f"spacing must be {truth.ndim} positive numbers in mm, one per axis, found {step}")
    predicted, true = _foreground(prediction[None], num_classes), _foreground(truth[None], num_classes)
    has_prediction, has_truth = predicted[0].flatten(1).any(dim=1), true[0].flatten(1).any(dim=1)
    hd95 = torch.full(has_truth.shape, torch.nan)
    assd = hd95.clone()
    for index in (has_prediction & has_truth).nonzero()[:, 0].tolist():
        there = _directed_distances(predicted[0, index], true[0, index], step)
        hd95[index] = torch.stack([distances.quantile(0.95) for distances in there]).max()
        assd[index] = torch.cat(there).mean()
    return SurfaceDistances(hd95=hd95, assd=assd, failed=has_prediction ^ has_truth)


def _directed_distances(prediction: Tensor, truth: Tensor, spacing: list[float]) -> tuple[Tensor, Tensor]:
    """Distance of each surface point of either mask to the nearest of the other; neither mask is empty."""
    first, second = (_surface_points(mask.cpu().numpy() > 0) * np.asarray(spacing) for mask in (prediction, truth))
    from scipy.spatial import KDTree  # an environment does without, and should not wait for it to be imported

    distances = KDTree(second).query(first)[0], KDTree(first).query(second)[0]
    return torch.from_numpy(distances[0]).float(), torch.from_numpy(distances[1]).float()


def _surface_points(mask: np.ndarray) -> np.ndarray:
    """Indices (P, axes) of the pixels of ``mask`` that touch something outside it, or the border, along an axis."""
    from scipy.ndimage import binary_erosion

    corners = [(int(used.min()), int(used.max()) + 1) for used in np.nonzero(mask)]
    inside = mask[tuple(slice(*corner) for corner in corners)]
    return np.argwhere(inside & ~binary_erosion(inside)) + [first for first, _ in corners]


def _foreground(labels: Tensor, num_classes: int) -> Tensor:
    """(B, ...) integer labels to (B, K-1, ...) float32."""
    if num_classes < 2:
        raise SeggymError(f"num_classes must be at least 2 (background and one class), found {num_classes}")
    classes = torch.arange(1, num_classes, device=labels.device, dtype=labels.dtype)
    return (labels.unsqueeze(1) == classes.view(-1, *[1] * (labels.ndim - 1))).float()


def hard_overlap(prediction: Tensor, truth: SegmentationTerms) -> Overlap:
    """Overlap of label maps ``prediction`` (B, H, W) with the truth: (B, K-1) float32.

    From a joint histogram of true and predicted class: one pass, where a comparison per class takes five times as long.
    """
    batch, classes = len(prediction), truth.num_classes
    pairs = classes * classes
    # In the narrowest type for as long as possible.
    narrow = torch.uint8 if pairs <= 256 else torch.int32
    joint = (truth.labels.to(narrow) * classes).add_(prediction)
    first = torch.arange(0, batch * pairs, pairs, dtype=torch.int32, device=joint.device)
    entries = (joint.flatten(1) + first[:, None]).flatten()
    if joint.device.type == "cpu":
        counts = torch.bincount(entries, minlength=batch * pairs)
    else:
        # bincount would make the device wait to learn its largest value.
        ones = torch.ones((), dtype=torch.int64, device=joint.device).expand(entries.numel())
        zeros = torch.zeros(batch * pairs, dtype=torch.int64, device=joint.device)
        counts = zeros.scatter_add_(0, entries.long(), ones)
    histogram = counts.view(batch, classes, classes).float()
    return Overlap(histogram.diagonal(dim1=1, dim2=2)[:, 1:], histogram.sum(1)[:, 1:], truth.areas)


def _pixels(truth: SegmentationTerms) -> int:
    return truth.onehot.shape[-2] * truth.onehot.shape[-1]


def _check(probabilities: Tensor, truth: SegmentationTerms) -> Tensor:
    batch, foreground, height, width = truth.onehot.shape
    if probabilities.shape != (batch, foreground + 1, height, width):
        raise SeggymError(
            f"probabilities must be {(batch, foreground + 1, height, width)} as the truth is, found "
            f"{tuple(probabilities.shape)}; use a network with {foreground + 1} outputs and the crop of the labels"
        )
    return probabilities


def _check_pair(prediction: Tensor, truth: Tensor, dimensions: tuple[int, ...]) -> None:
    if prediction.shape != truth.shape or truth.ndim not in dimensions:
        wanted = " or ".join(str(number) for number in dimensions)
        raise SeggymError(
            f"prediction and truth must be label maps of one shape with {wanted} axes, found "
            f"{tuple(prediction.shape)} and {tuple(truth.shape)}; score one case at a time on the grid of its truth"
        )
