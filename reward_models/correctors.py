"""Correctors: from a label map that breaks the rules of anatomy to a plausible one close to it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from seggym.cohorts.validity.rules import ValidityRules
from seggym.reward_models.shape_prior import ShapePrior

Mask = NDArray[np.integer]

_EIGHT = np.ones((3, 3), bool)
# Widths of the blur that smooths a mask, in shares of its height: from less than a pixel of 64 to four.
_BLURS = (0.012, 0.024, 0.04, 0.06)
# Steps from a code to that of a known shape.
_STEPS = (0.25, 0.5, 0.75, 1.0)
_KNOWN = 3


@dataclass(frozen=True)
class Correction:
    """What a corrector makes of a label map.

    ``mask`` (H, W) has the dtype of the input; ``valid`` is what the rules say of it; ``agreement`` is the mean Dice
    over foreground labels (those in either) of the input with what the corrector takes for plausible: low for a mask
    that is valid and yet like no known one.
    """

    mask: Mask
    valid: bool
    agreement: float


class Corrector(Protocol):
    """Makes a plausible label map of any."""

    def correct(self, mask: Mask) -> Correction:
        """The correction of labels ``mask`` (H, W)."""
        ...


class MorphologyCorrector:
    """Largest regions, filled holes, and, where ``rules`` ask for more, ever more smoothing. A valid mask is kept."""

    def __init__(self, rules: ValidityRules) -> None:
        self.rules = rules

    def correct(self, mask: Mask) -> Correction:
        """The first valid one of the mask itself, tidied, and tidied after smoothing; else the tidied mask, invalid."""
        mask = np.asarray(mask)
        if self._is_valid(mask):
            return Correction(mask, True, 1.0)
        first = tidied(mask)
        candidate = first
        for width in (0.0, *_BLURS):
            if width:
                candidate = tidied(smoothed(mask, width * mask.shape[0], len(self.rules.class_names)))
            if self._is_valid(candidate):
                return Correction(candidate, True, agreement(mask, candidate))
        return Correction(first, False, agreement(mask, first))

    def _is_valid(self, mask: Mask) -> bool:
        return bool(self.rules.valid(mask[None])[0])


class ShapePriorCorrector:
    """The nearest mask that a learned prior finds plausible and ``rules`` find valid.

    A valid mask is kept; its agreement is that with its reconstruction. An invalid one is encoded and decoded; where
    the result is invalid too, its code walks towards those of the nearest known shapes until it is valid, and at last
    such a shape is taken as it is. So everything is corrected, an empty mask too, if any shape of the prior is valid.
    """

    def __init__(self, rules: ValidityRules, prior: ShapePrior) -> None:
        self.rules, self.prior = rules, prior
        self._sound: dict[int, bool] = {}

    def correct(self, mask: Mask) -> Correction:
        """The correction of labels ``mask`` (H, W), which has the size of the prior's shapes."""
        mask = np.asarray(mask)
        code = self.prior.encode(mask[None])[0]
        plausible = tidied(self.prior.decode(code[None])[0])
        if self._is_valid(mask):
            return Correction(mask, True, agreement(mask, plausible))
        if not self._is_valid(plausible):
            plausible = self._walked(code, plausible)
        plausible = plausible.astype(mask.dtype)
        return Correction(plausible, self._is_valid(plausible), agreement(mask, plausible))

    def _walked(self, code: Tensor, plausible: Mask) -> Mask:
        known = [int(index) for index in self.prior.nearest(code)]
        for index in known[:_KNOWN]:
            target = self.prior.latents[index]
            for step in _STEPS:
                candidate = tidied(self.prior.decode((code + step * (target - code))[None])[0])
                if self._is_valid(candidate):
                    return candidate
        return next((self.prior.shapes[index] for index in known if self._is_sound(index)), plausible)

    def _is_sound(self, index: int) -> bool:
        """Whether a shape of the prior is valid, looked up once."""
        if index not in self._sound:
            self._sound[index] = self._is_valid(self.prior.shapes[index])
        return self._sound[index]

    def _is_valid(self, mask: Mask) -> bool:
        return bool(self.rules.valid(mask[None])[0])


def tidied(mask: Mask) -> Mask:
    """``mask`` with one region (8-connected) of every label and no enclosed background.

    What is taken away gets the label of the nearest pixel that stays.
    """
    # Filling a hole may join or cut regions of another label, which a second pass finds.
    for _ in range(2):
        kept = np.ones(mask.shape, bool)
        for label in np.unique(mask[mask > 0]):
            regions, count = ndimage.label(mask == label, _EIGHT)
            if count > 1:
                kept &= (mask != label) | (regions == 1 + np.argmax(np.bincount(regions.ravel())[1:]))
        kept &= ~((mask == 0) & ndimage.binary_fill_holes((mask > 0) & kept))
        if kept.all() or not kept.any():
            break
        rows, columns = ndimage.distance_transform_edt(~kept, return_distances=False, return_indices=True)
        mask = mask[rows, columns]
    return mask


def smoothed(mask: Mask, width: float, num_classes: int) -> Mask:
    """``mask`` after a Gaussian blur of ``width`` pixels of every label, by the highest of them."""
    shares = [ndimage.gaussian_filter((mask == label).astype(np.float32), width) for label in range(num_classes)]
    return np.argmax(shares, axis=0).astype(mask.dtype)


def agreement(one: Mask, other: Mask) -> float:
    """Mean Dice of two label maps over the foreground labels in either of them; 1 for two empty ones."""
    scores = []
    for label in np.union1d(one[one > 0], other[other > 0]):
        here, there = one == label, other == label
        scores.append(2 * np.count_nonzero(here & there) / (np.count_nonzero(here) + np.count_nonzero(there)))
    return float(np.mean(scores)) if scores else 1.0
