"""Volumes, ejection fractions and mass by hand; agreement against the formulas of Bland and Altman."""

import math

import numpy as np
import pytest
import torch

from seggym.errors import SeggymError
from seggym.reward_models.function import agreement, cardiac_function, class_volumes, ejection_fraction

CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")


def test_volumes_of_boxes():
    """A box of 2 x 10 x 20 voxels of 8 x 1.5 x 1.25 mm."""
    labels = torch.zeros(4, 30, 40, dtype=torch.uint8)
    labels[1:3, 5:15, 10:30] = 3
    labels[0, 0, :5] = 1
    volumes = class_volumes(labels, (8.0, 1.5, 1.25), 4)
    assert volumes.tolist() == pytest.approx([5 * 15 / 1000, 0, 400 * 15 / 1000])
    with pytest.raises(SeggymError, match="pass one volume"):
        class_volumes(labels[0], (8.0, 1.5, 1.25), 4)


def test_function_by_hand():
    """Two patients; the second has no left ventricle at end-diastole."""
    diastole = [[150.0, 100.0, 120.0], [90.0, 80.0, 0.0]]
    systole = [[75.0, 99.0, 48.0], [60.0, 70.0, 5.0]]
    found = cardiac_function(diastole, systole, CLASSES)
    assert list(found) == ["LVEDV", "LVESV", "LVEF", "RVEDV", "RVESV", "RVEF", "LVM"]
    assert found["LVEDV"].tolist() == [120, 0]
    assert found["LVESV"].tolist() == [48, 5]
    np.testing.assert_allclose(found["LVEF"], [60, np.nan])
    np.testing.assert_allclose(found["RVEF"], [50, 100 / 3])
    np.testing.assert_allclose(found["LVM"], [105, 84])
    assert list(cardiac_function([[5.0]], [[3.0]], ("background", "myocardium"))) == ["LVM"]


def test_errors_cancel_in_an_ejection_fraction():
    """Why it is no reward: 10 % too much at both phases is no error at all."""
    volumes = torch.tensor([120.0, 48.0])
    assert ejection_fraction(*(1.1 * volumes)).item() == pytest.approx(ejection_fraction(*volumes).item())


def test_agreement_by_hand():
    """Differences 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 3; t of 3 degrees of freedom is 3.182446."""
    reference = np.array([50.0, 60, 40, 55])
    found = agreement(reference + np.array([1, 2, 3, 6]), reference, ["a", "b", "c", "d"])
    deviation = math.sqrt(14 / 3)
    assert found.deviation == pytest.approx(deviation)
    reach = 3.182446305 * deviation / 2
    assert found.bias == pytest.approx((3, 3 - reach, 3 + reach))
    for limit, sign in ((found.lower, -1), (found.upper, 1)):
        value = 3 + sign * 1.96 * deviation
        assert limit == pytest.approx((value, value - math.sqrt(3) * reach, value + math.sqrt(3) * reach))
    assert found.absolute.mean == pytest.approx(3)
    assert (found.patients, found.undefined) == (4, 0)


def test_the_example_of_bland_and_altman():
    """Peak expiratory flow by two meters, the 17 subjects of the paper: bias -2.1, SD 38.8, limits -79.7 and 75.5."""
    wright = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
    mini = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
    found = agreement(wright, mini, list(range(17)))
    assert round(found.bias.mean, 1) == -2.1
    assert round(found.deviation, 1) == 38.8
    # The paper takes 2 standard deviations where we take 1.96.
    assert found.bias.mean - 2 * found.deviation == pytest.approx(-79.7, abs=0.1)
    assert found.bias.mean + 2 * found.deviation == pytest.approx(75.5, abs=0.1)
    # Its 95 % interval for the bias is -22.0 to 17.8, for the lower limit -114.3 to -45.1.
    assert found.bias[1:] == pytest.approx((-22.0, 17.8), abs=0.1)
    assert found.lower.high - found.lower.low == pytest.approx(114.3 - 45.1, abs=0.3)


def test_patients_without_a_value_are_counted():
    found = agreement([1.0, np.nan, 3.0], [0.0, 2.0, np.nan], ["a", "b", "c"])
    assert (found.patients, found.undefined, found.bias.mean) == (1, 2, 1)
    assert np.isnan(found.bias.low)
    nothing = agreement([np.nan], [1.0], ["a"])
    assert (nothing.patients, nothing.undefined) == (0, 1)
    assert np.isnan(nothing.bias.mean)


def test_a_patient_counts_once():
    with pytest.raises(SeggymError, match="a patient twice"):
        agreement([1.0, 2.0], [1.0, 2.0], ["a", "a"])
    with pytest.raises(SeggymError, match="one value of each patient"):
        agreement([1.0, 2.0], [1.0], ["a", "b"])
