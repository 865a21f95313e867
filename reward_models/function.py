"""Cardiac function from label maps: volumes, ejection fractions and mass, and how well they agree with a reference.

These are metrics, never a reward: errors of a segmentation cancel in a sum of pixels. A ventricle drawn in the wrong
place has the right volume, and one drawn 10 % too large at both phases has exactly the right ejection fraction.

Volumes are sums over slices of area times slice distance (Simpson's rule of disks), in the spacing of the scan.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from seggym.errors import SeggymError
from seggym.reward_models.statistics import Interval, bootstrap_interval

LEFT_VENTRICLE, RIGHT_VENTRICLE, MYOCARDIUM = "left ventricle", "right ventricle", "myocardium"
DENSITY = 1.05
"""Of the myocardium, g/ml."""

MEASURES = {
    "LVEDV": "ml",
    "LVESV": "ml",
    "LVEF": "%",
    "RVEDV": "ml",
    "RVESV": "ml",
    "RVEF": "%",
    "LVM": "g",
}
"""What :func:`cardiac_function` measures, and the unit of each: volumes of the left and right ventricle at end-diastole
and end-systole, their ejection fractions, and the mass of the left ventricle's wall at end-diastole."""


class Agreement(NamedTuple):
    """How far a measurement is from its reference (Bland and Altman, Lancet 1986), in the unit of the measurement.

    bias is the mean difference and lower and upper the limits of agreement, bias - 1.96 and + 1.96 standard deviations
    of the differences, each with its 95 % confidence interval (t distribution; the limits' standard error is that of
    the paper, sqrt(3 / n) standard deviations). absolute is the mean absolute difference with a bootstrap interval over
    patients. ``patients`` were compared; ``undefined`` were not, because a side has no value.
    """

    bias: Interval
    lower: Interval
    upper: Interval
    deviation: float
    absolute: Interval
    patients: int
    undefined: int


def class_volumes(labels: torch.Tensor, spacing: Sequence[float], num_classes: int) -> torch.Tensor:
    """Volume of each foreground class in ml: float64 (K-1,) of label maps (Z, H, W), ``spacing`` (z, y, x) in mm."""
    if labels.ndim != 3 or len(spacing) != 3:
        raise SeggymError(
            f"labels must be (slices, height, width) with a spacing of 3 numbers, found shape {tuple(labels.shape)} "
            f"and {list(spacing)}; pass one volume"
        )
    counts = torch.bincount(labels.flatten().long(), minlength=num_classes)[1:num_classes]
    return counts.double() * float(np.prod([float(value) for value in spacing])) / 1000


def ejection_fraction(diastole: torch.Tensor, systole: torch.Tensor) -> torch.Tensor:
    """100 (EDV - ESV) / EDV in per cent, NaN where there is no end-diastolic volume; any shape."""
    return torch.where(diastole > 0, 100 * (diastole - systole) / diastole, torch.nan)


def cardiac_function(
    diastole: ArrayLike, systole: ArrayLike, class_names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """The measures of :data:`MEASURES`, from the volumes in ml of the classes at both phases, (..., K-1) each.

    ``class_names`` (K,) begins with the background. What needs a class that is not among them is left out.
    """
    volumes = {"ED": torch.as_tensor(np.asarray(diastole, np.float64)), "ES": torch.as_tensor(np.asarray(systole))}
    found: dict[str, NDArray[np.float64]] = {}
    for side, name in (("LV", LEFT_VENTRICLE), ("RV", RIGHT_VENTRICLE)):
        if name in class_names:
            index = list(class_names).index(name) - 1
            at = {phase: volume[..., index].double() for phase, volume in volumes.items()}
            found[f"{side}EDV"], found[f"{side}ESV"] = at["ED"].numpy(), at["ES"].numpy()
            found[f"{side}EF"] = ejection_fraction(at["ED"], at["ES"]).numpy()
    if MYOCARDIUM in class_names:
        found["LVM"] = DENSITY * volumes["ED"][..., list(class_names).index(MYOCARDIUM) - 1].numpy()
    return {name: found[name] for name in MEASURES if name in found}


def agreement(
    measured: ArrayLike, reference: ArrayLike, patients: Sequence[Hashable], *, draws: int = 2000, seed: int = 0
) -> Agreement:
    """Agreement of ``measured`` with ``reference``, (n,) each, of n different ``patients``.

    A NaN on either side leaves the patient out, which is counted. Intervals are NaN with fewer than two patients.

    Raises:
        SeggymError: lengths differ, or a patient occurs twice (differences within a patient are not independent).
    """
    from scipy import stats  # an environment does without, and should not wait for it to be imported

    first, second = np.asarray(measured, np.float64), np.asarray(reference, np.float64)
    if not len(first) == len(second) == len(patients) or first.ndim != 1:
        raise SeggymError(
            f"agreement needs one value of each patient on both sides, found {first.shape}, {second.shape} and "
            f"{len(patients)} patients"
        )
    if len(set(patients)) < len(patients):
        raise SeggymError("agreement needs one value per patient, found a patient twice: average them first")
    difference = first - second
    known = ~np.isnan(difference)
    difference = difference[known]
    count = len(difference)
    absolute = bootstrap_interval(np.abs(first - second), patients, draws=draws, seed=seed)
    if not count:
        nothing = Interval(np.nan, np.nan, np.nan)
        return Agreement(nothing, nothing, nothing, np.nan, nothing, 0, len(first))
    bias = float(difference.mean())
    deviation = float(difference.std(ddof=1)) if count > 1 else np.nan
    reach = float(stats.t.ppf(0.975, count - 1)) * deviation if count > 1 else np.nan

    def around(value: float, share: float) -> Interval:
        return Interval(value, value - reach * np.sqrt(share / count), value + reach * np.sqrt(share / count))

    return Agreement(
        bias=around(bias, 1),
        lower=around(bias - 1.96 * deviation, 3),
        upper=around(bias + 1.96 * deviation, 3),
        deviation=deviation,
        absolute=absolute,
        patients=count,
        undefined=len(first) - count,
    )
