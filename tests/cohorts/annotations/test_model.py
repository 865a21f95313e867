import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from skimage.draw import disk
from skimage.measure import points_in_poly

from seggym.cohorts.annotations.model import Annotation, Instance, Shape, outline, rasterise, shape_mask
from seggym.errors import SeggymError

HEIGHT, WIDTH = 24, 30
CENTRES = np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), -1).reshape(-1, 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40))
def test_a_polygon_covers_the_pixels_whose_centres_lie_in_it(seed, corners):
    points = np.random.default_rng(seed).uniform(-8, 38, (corners, 2))  # self-intersecting, partly outside
    expected = points_in_poly(CENTRES, points).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(shape_mask(Shape("polygon", points), HEIGHT, WIDTH), expected)


def test_corners_on_centre_lines_are_counted_once():
    points = np.array([[2.5, 2.5], [10.5, 2.5], [10.5, 6.5], [14.5, 9.5], [6.5, 12.5], [2.5, 7.5]])
    covered = shape_mask(Shape("polygon", points), HEIGHT, WIDTH).ravel()
    inside = Outline(points).contains_points(CENTRES, radius=-1e-6)
    nearby = Outline(points).contains_points(CENTRES, radius=1e-6)
    low, high = sorted((inside.sum(), nearby.sum()))
    assert low <= covered.sum() <= high
    assert not (covered & ~(inside | nearby)).any()


def test_a_rectangle_of_whole_pixels_is_exact_whichever_corners_are_given():
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:9, 5:20] = True
    for corners in ([(5, 3), (20, 9)], [(20, 3), (5, 9)], [(20, 9), (5, 3)]):
        np.testing.assert_array_equal(shape_mask(Shape("rectangle", corners), HEIGHT, WIDTH), expected)


def test_a_circle_is_a_disc():
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[disk((10.25 - 0.5, 12.0 - 0.5), 6.3, shape=expected.shape)] = True
    circle = Shape("circle", [(12.0, 10.25), (12.0, 10.25 + 6.3)])
    np.testing.assert_array_equal(shape_mask(circle, HEIGHT, WIDTH), expected)
    np.testing.assert_allclose(np.hypot(*(outline(circle) - [12.0, 10.25]).T), 6.3)


def test_touching_polygons_share_no_pixel_and_leave_none_out():
    first = [(4.5, 4.5), (20.5, 4.5), (11.3, 19.5)]
    second = [(20.5, 4.5), (11.3, 19.5), (27.5, 21.5)]
    masks = [shape_mask(Shape("polygon", points), HEIGHT, WIDTH) for points in (first, second)]
    both = shape_mask(Shape("polygon", [first[0], first[1], second[2], first[2]]), HEIGHT, WIDTH)
    assert not (masks[0] & masks[1]).any()
    np.testing.assert_array_equal(masks[0] | masks[1], both)


def test_objects_of_several_parts_overlap_and_are_numbered_from_one():
    parts = (Shape("rectangle", [(1, 1), (4, 4)]), Shape("rectangle", [(6, 1), (9, 4)]))
    annotation = Annotation(
        "a.png",
        WIDTH,
        HEIGHT,
        (Instance("ripe", parts, group=1), Instance("raw", (Shape("rectangle", [(3, 3), (7, 7)]),))),
    )
    masks, labels = rasterise(annotation, ["raw", "ripe"])
    assert masks.shape == (2, HEIGHT, WIDTH)
    assert masks.dtype == bool
    assert labels.dtype == np.int64
    assert labels.tolist() == [2, 1]
    assert masks.sum((1, 2)).tolist() == [18, 16]
    assert (masks[0] & masks[1]).sum() == 2
    assert annotation.vertices == 6


def test_no_objects_and_objects_outside_give_empty_masks():
    masks, labels = rasterise(Annotation("a.png", WIDTH, HEIGHT), ["ripe"])
    assert masks.shape == (0, HEIGHT, WIDTH)
    assert labels.shape == (0,)
    far = Shape("polygon", [(-9, -9), (-3, -9), (-3, -2)])
    assert not shape_mask(far, HEIGHT, WIDTH).any()
    assert not shape_mask(Shape("circle", [(50, 50), (52, 50)]), HEIGHT, WIDTH).any()


def test_an_unknown_class_is_named_with_its_image():
    annotation = Annotation("a.png", WIDTH, HEIGHT, (Instance("mould", (Shape("rectangle", [(1, 1), (4, 4)]),)),))
    with pytest.raises(SeggymError, match=r"a\.png has objects of class 'mould', expected one of raw, ripe"):
        rasterise(annotation, ["raw", "ripe"])


def test_masks_that_no_memory_holds_are_refused_before_they_are_made():
    annotation = Annotation("a.png", 8000, 8000, 70 * (Instance("ripe", (Shape("rectangle", [(1, 1), (4, 4)]),)),))
    with pytest.raises(SeggymError, match="cut the image into tiles"):
        rasterise(annotation, ["ripe"])


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", [(0, 0), (1, 1)]),
        ("rectangle", [(0, 0), (1, 1), (2, 2)]),
        ("circle", [(0, 0)]),
        ("polygon", [(0, 0), (1, float("nan")), (2, 2)]),
        ("line", [(0, 0), (1, 1)]),
    ],
)
def test_shapes_that_are_none_are_refused(kind, points):
    with pytest.raises(ValueError, match=r"expected|finite"):
        Shape(kind, points)


def test_shapes_are_compared_by_value():
    assert Shape("rectangle", [(1, 1), (4, 4)]) == Shape("rectangle", np.array([[1.0, 1], [4, 4]]))
    assert Shape("rectangle", [(1, 1), (4, 4)]) != Shape("circle", [(1, 1), (4, 4)])
    assert len({Shape("rectangle", [(1, 1), (4, 4)]), Shape("rectangle", [(1, 1), (4, 4)])}) == 1
