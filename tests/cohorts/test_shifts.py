"""Shifts: reproducible, in range, stronger with severity, the same at every resolution, and each doing what it says."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from skimage.transform import downscale_local_mean

from seggym.cohorts.echo_phantom import echo_patient
from seggym.cohorts.shifts import KINDS, SEVERITIES, Shift
from seggym.errors import SeggymError


@pytest.fixture(scope="module")
def image():
    return next(echo_patient("a", 1, size=96)).image[0] / 255


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_always_changed_in_the_same_way(image, kind):
    shift = Shift((kind,), 3, seed=4)
    once = shift.apply(image, "a_2CH_ED")
    np.testing.assert_array_equal(once, shift.apply(image.copy(), "a_2CH_ED"))
    np.testing.assert_array_equal(
        once, Shift.from_dict(json.loads(json.dumps(shift.as_dict()))).apply(image, "a_2CH_ED")
    )
    assert once.dtype == np.float32
    assert once.shape == image.shape


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"inversion"}))
def test_each_image_has_a_part_of_its_own(image, kind):
    shift = Shift((kind,), 3)
    assert not np.array_equal(shift.apply(image, "a"), shift.apply(image, "b"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_severity_orders_the_change(image, kind, seed):
    changes = [
        1 - structural_similarity(image, Shift((kind,), s, seed).apply(image, "a"), data_range=1) for s in SEVERITIES
    ]
    assert changes[0] > 0.005
    assert changes == sorted(changes)
    assert changes[-1] > 2 * changes[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=8, unique=True),
    st.sampled_from(SEVERITIES),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1.0, None]),
)
def test_images_stay_in_range(kinds, severity, seed, value):
    image = np.random.default_rng(seed).random((33, 47), np.float32) if value is None else np.full((33, 47), value)
    shifted = Shift(tuple(kinds), severity, seed).apply(image, "x")
    assert np.isfinite(shifted).all()
    assert shifted.min() >= 0
    assert shifted.max() <= 1


@pytest.mark.parametrize("kind", ["gain", "gamma", "attenuation", "sector", "bias", "blur"])
def test_a_shift_means_the_same_at_every_resolution(kind):
    """The shifted image made smaller is the smaller image shifted."""
    rows, columns = np.indices((128, 128)) / 128
    fine = (0.5 + 0.3 * np.sin(9 * rows) * np.cos(7 * columns)).astype(np.float32)
    shift = Shift((kind,), 3, seed=2)
    small = downscale_local_mean(shift.apply(fine, "a"), (2, 2))
    difference = np.abs(small - shift.apply(downscale_local_mean(fine, (2, 2)), "a"))
    assert np.median(difference) < 0.01
    assert np.mean(difference > 0.05) < 0.05


def test_gain_and_gamma_are_monotonous_curves(image):
    for kind in ("gain", "gamma"):
        shifted = Shift((kind,), 4, seed=1).apply(image, "a").ravel()
        order = np.argsort(image.ravel(), kind="stable")
        assert (np.diff(shifted[order]) >= -1e-6).all()


def test_domains_are_brighter_or_darker_as_a_whole(image):
    """The direction is the domain's, not the image's."""
    for seed in range(6):
        ratios = [Shift(("gain",), 3, seed).apply(0.3 * image, name).mean() / (0.3 * image).mean() for name in "abcdef"]
        assert all(ratio > 1.5 for ratio in ratios) or all(ratio < 0.7 for ratio in ratios)
    assert {Shift(("gain",), 3, seed).apply(0.3 * image, "a").mean() > 0.3 * image.mean() for seed in range(6)} == {
        True,
        False,
    }


def test_attenuation_follows_an_exponential():
    flat = np.full((64, 64), 0.8, np.float32)
    shifted = Shift(("attenuation",), 2).apply(flat, "a")
    slopes = np.diff(np.log(shifted), axis=0) * 64
    assert slopes.std() < 1e-3
    assert -1.0 < slopes.mean() < -0.8


def test_a_sector_is_a_cone_with_its_apex_above():
    shifted = Shift(("sector",), 3, seed=1).apply(np.ones((128, 128), np.float32), "a")
    seen = np.arctan2(np.indices((128, 128))[1] - 63.5, np.indices((128, 128))[0] + 0.5)[shifted > 0]
    assert np.rad2deg(seen.max() - seen.min()) == pytest.approx(60, abs=4)


def test_speckle_keeps_the_black_outside(image):
    shifted = Shift(("speckle",), 5).apply(image, "a")
    assert not shifted[image == 0].any()


def test_full_inversion_turns_contrast_around(image):
    shifted = Shift(("inversion",), 5).apply(image, "a")
    inside = image > 0
    assert np.corrcoef(image[inside], shifted[inside])[0, 1] < -0.999
    assert not shifted[~inside].any()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kinds": ["fog"]}, r"kinds=\['fog'\] are not known, expected some of gain, gamma"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["gain"], "severity": 6}, "severity=6, expected a whole number from 1"),
        ({"kinds": ["gain"], "severity": "3"}, "shift.severity"),
        ({"kinds": ["gain"], "seed": -1}, "seed=-1"),
        ({"kinds": ["gain"], "strength": 2}, "shift.strength is unknown"),
        ({}, "has no kinds"),
    ],
)
def test_wrong_values(values, sentence):
    with pytest.raises(SeggymError, match=sentence):
        Shift.from_dict(values)


def test_a_stack_is_refused():
    with pytest.raises(SeggymError, match=r"shape \(1, 8, 8\)"):
        Shift(("gain",)).apply(np.zeros((1, 8, 8), np.float32), "a")
