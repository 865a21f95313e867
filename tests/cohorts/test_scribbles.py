"""Scribbles drawn from masks keep to their class, miss no class, and follow from the seed."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from seggym.cohorts.acdc import write_example
from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.examples import example_patient
from seggym.cohorts.scribbles import draw_scribbles, with_scribbles
from seggym.errors import SeggymError


@pytest.fixture(scope="module")
def label():
    return next(example_patient(1)[1]).label


@settings(max_examples=20, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 2), st.integers(1, 16), st.integers(1, 16)), elements=st.integers(0, 3))
)
def test_any_mask_keeps_its_classes(label):
    """Down to noise and single pixels, where nothing survives a fixed erosion."""
    drawn = draw_scribbles(label, 5)
    assert drawn.dtype == np.uint8
    assert drawn.shape == label.shape
    np.testing.assert_array_equal(drawn[drawn != 5], label[drawn != 5])
    for plane, own in zip(drawn, label, strict=True):
        assert set(np.unique(plane)) - {5} == set(np.unique(own))


def test_most_of_a_heart_is_unlabelled(label):
    drawn = draw_scribbles(label, 4)
    np.testing.assert_array_equal(drawn[drawn != 4], label[drawn != 4])
    for value in range(4):
        assert 0 < (drawn == value).sum() < 0.75 * (label == value).sum()
    assert (drawn == 4).mean() > 0.9
    # Lines of the background do not run along the edge of the image.
    edge = np.ones(label.shape[1:], bool)
    edge[3:-3, 3:-3] = False
    assert (drawn[:, edge] == 4).all()


def test_lines_are_one_piece_and_go_round():
    """A ring's line is a closed loop around the hole: the hole and the outside are two parts without it."""
    y, x = np.indices((80, 80))
    radius = np.hypot(y - 40, x - 40)
    label = ((radius < 25) & (radius > 17)).astype(np.uint8)[None]
    ring = draw_scribbles(label, 2)[0] == 1
    assert ndimage.label(ring, np.ones((3, 3)))[1] == 1
    assert ndimage.label(~ring)[1] == 2
    # A straight bar's line is a bar: thin, and along most of its length.
    label = np.zeros((1, 80, 80), np.uint8)
    label[0, 34:46, 10:70] = 1
    rows, columns = np.nonzero(draw_scribbles(label, 2)[0] == 1)
    assert np.ptp(rows) <= 4
    assert np.ptp(columns) > 35


def test_the_seed_decides_and_only_the_seed(label):
    first = draw_scribbles(label, 4, seed=3)
    np.testing.assert_array_equal(first, draw_scribbles(label.copy(), 4, seed=3))
    assert (first != draw_scribbles(label, 4, seed=4)).any()
    # A class that vanishes leaves the lines of those that do not touch it where they were.
    without = np.where(label == 3, 2, label)
    np.testing.assert_array_equal(draw_scribbles(without, 4, seed=3) == 1, first == 1)


def test_a_cohort_draws_what_it_lacks(tmp_path):
    cohort = open_cohort("acdc", write_example(tmp_path, patients=1))
    bare = dataclasses.replace(
        cohort, read=lambda patient: (dataclasses.replace(volume, scribble=None) for volume in cohort.read(patient))
    )
    stored, drawn = (list(with_scribbles(one).volumes()) for one in (cohort, bare))
    for volume, kept, made in zip(cohort.volumes(), stored, drawn, strict=True):
        np.testing.assert_array_equal(kept.scribble, volume.scribble)
        assert made.scribble is not None
        assert (made.scribble != volume.scribble).any()
    for made, again in zip(drawn, with_scribbles(cohort, "drawn").volumes(), strict=True):
        np.testing.assert_array_equal(made.scribble, again.scribble)
    assert with_scribbles(bare).scribble_ignore == 4
    with pytest.raises(SeggymError, match=r"patient001_frame01 in .* has no scribble") as raised:
        list(with_scribbles(bare, "stored").volumes())
    assert "\n" not in str(raised.value)
    with pytest.raises(SeggymError, match="source of scribbles is 'own'"):
        with_scribbles(cohort, "own")
