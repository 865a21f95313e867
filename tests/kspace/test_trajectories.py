"""Spokes and points against transforms by their definition with NumPy, and the terms of views."""

import numpy as np
import pytest
import torch

from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.points import block_centres
from seggym.kspace.radial import spoke_angles
from seggym.kspace.trajectories import make_trajectory

CPU = torch.device("cpu")
SIZES = [(24, 16, 1), (25, 17, 2), (24, 17, 5), (25, 16, 2)]


def random_images(scan, count=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = count, scan.coils, scan.grid, scan.grid
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def make(scan, dtype=torch.float64):
    return make_trajectory(scan, dtype, CPU)


def as_complex(planes):
    return planes[:, :, 0].numpy() + 1j * planes[:, :, 1].numpy()


def closeness(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def direct_spokes(images, scan):
    """The transform of every spoke by its definition, a sum over pixels: (B, V, J, M)."""
    position = (np.arange(scan.grid) - scan.grid // 2) / scan.grid
    y, x = np.meshgrid(position, position, indexing="ij")
    frequency = np.arange(scan.matrix) - scan.matrix // 2
    spokes = []
    for angle in spoke_angles(scan):
        wave = np.exp(-2j * np.pi * frequency[:, None, None] * (x * np.cos(angle) + y * np.sin(angle)))
        spokes.append(np.einsum("kyx,bjyx->bjk", wave, images))
    return np.stack(spokes, 1) * scan.matrix / scan.grid**2


def direct_backprojection(samples, scan, views):
    """Sum over the samples of ``views``, each with the area of k-space that it stands for: (B, J, C, C)."""
    position = (np.arange(scan.crop) - scan.crop // 2) / scan.matrix
    y, x = np.meshgrid(position, position, indexing="ij")
    frequency = np.arange(scan.matrix) - scan.matrix // 2
    # Half of a ring of width 1 for each frequency; the disc of radius 1/2 in the middle.
    area = np.where(frequency == 0, np.pi / 4, np.pi * np.abs(frequency)) / len(views)
    image = 0
    for view in views:
        angle = spoke_angles(scan)[view]
        wave = np.exp(2j * np.pi * frequency[:, None, None] * (x * np.cos(angle) + y * np.sin(angle)))
        image = image + np.einsum("kyx,bjk->bjyx", wave, samples[:, view] * area)
    return image / scan.matrix


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("matrix", "crop", "coils"), SIZES)
@pytest.mark.parametrize("angles", ["uniform", "golden"])
def test_spokes_are_the_non_uniform_transform(matrix, crop, coils, angles, dtype, tolerance):
    scan = Acquisition(matrix, crop, coils=coils, trajectory="radial", spokes=7, angles=angles)
    images = random_images(scan)
    trajectory = make(scan, dtype)
    samples = trajectory.encode(
        torch.from_numpy(images).to(torch.complex64 if dtype == torch.float32 else torch.complex128)
    )
    assert samples.shape == (2, 7, coils, matrix)
    assert closeness(samples.numpy(), direct_spokes(images, scan)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("matrix", "crop", "coils"), SIZES)
def test_spokes_are_put_together_by_their_areas(matrix, crop, coils, dtype, tolerance):
    scan = Acquisition(matrix, crop, coils=coils, trajectory="radial", spokes=7)
    trajectory = make(scan, dtype)
    rng = np.random.default_rng(1)
    shape = 2, 7, coils, matrix
    samples = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    given = torch.from_numpy(samples).to(torch.complex64 if dtype == torch.float32 else torch.complex128)
    acquired = torch.tensor([[1, 1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    scale = trajectory.scale(acquired).numpy()[:, None, None, None]
    direct = trajectory.reconstruct(given, acquired).numpy() * scale
    # One after the other, where each scan has its own views; one that adds nothing is multiplied by zero.
    planes = torch.zeros(2, coils, 2, crop, crop, dtype=dtype)
    for views, factors in (([0, 1], [1, 1]), ([1, 2], [1, 1]), ([4, 0], [1, 0]), ([6, 3], [1, 0])):
        views = torch.tensor(views)
        trajectory.add(planes, given[torch.arange(2), views] * torch.tensor(factors)[:, None, None], views)
    for scan_number in range(2):
        views = acquired[scan_number].nonzero()[:, 0].tolist()
        expected = direct_backprojection(samples[scan_number : scan_number + 1], scan, views)[0]
        assert closeness(direct[scan_number], expected) < tolerance
        assert closeness(as_complex(planes)[scan_number] * scale[scan_number], expected) < tolerance
    everything = trajectory.reconstruct(given, None).numpy() / 7
    assert closeness(everything, direct_backprojection(samples, scan, range(7))) < tolerance


def test_enough_spokes_restore_the_object():
    scan = Acquisition(32, 24, trajectory="radial", spokes=64)
    position = np.arange(scan.grid) - scan.grid // 2
    y, x = np.meshgrid(position, position, indexing="ij")
    # Smooth, so that the corners of k-space, which no spoke reaches, hold nothing of it.
    blob = 3 * np.exp(-((y - 4) ** 2 + (x + 7) ** 2) / (2 * 4.0**2))
    trajectory = make(scan)
    images = trajectory.reconstruct(trajectory.encode(torch.from_numpy(blob[None, None]).to(torch.complex128)), None)
    found = images[0, 0].real.numpy() / 64
    at = (np.arange(24) - 12) * scan.grid / scan.matrix
    expected = 3 * np.exp(-((at[:, None] - 4) ** 2 + (at + 7) ** 2) / (2 * 4.0**2))
    assert np.abs(found - expected).max() < 0.03 * expected.max()


def test_products_keep_their_digits_where_the_user_allows_fewer():
    scan = Acquisition(24, 16, trajectory="radial", spokes=5)
    trajectory = make(scan, torch.float32)
    image = torch.from_numpy(random_images(scan)).to(torch.complex64)
    exact = trajectory.encode(image)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(trajectory.encode(image), exact)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_golden_numbering_turns_by_111_degrees():
    angles = np.degrees(spoke_angles(Acquisition(trajectory="radial", spokes=5, angles="golden")))
    assert angles == pytest.approx([0, 111.246, 42.492, 153.738, 84.984], abs=1e-3)
    uniform = np.degrees(spoke_angles(Acquisition(trajectory="radial", spokes=5)))
    assert uniform == pytest.approx([0, 36, 72, 108, 144])


@pytest.mark.parametrize(("matrix", "crop", "coils"), SIZES)
@pytest.mark.parametrize("divided", [False, True])
def test_points_are_those_of_numpys_transform(matrix, crop, coils, divided):
    block = {24: 4, 25: 5}[matrix] if divided else 1
    scan = Acquisition(matrix, crop, coils=coils, trajectory="points", block=block)
    images = random_images(scan)
    trajectory = make(scan)
    samples = trajectory.encode(torch.from_numpy(images))
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes=axes)), axes=axes) * matrix / scan.grid**2
    start = scan.grid // 2 - matrix // 2
    kspace = kspace[..., start : start + matrix, start : start + matrix]
    count = matrix // block
    for view in (0, count + 2, trajectory.num_views - 1):
        row, column = view // count * block, view % count * block
        expected = kspace[..., row : row + block, column : column + block].reshape(2, coils, -1)
        assert closeness(samples[:, view].numpy(), expected) < 1e-12
        centre = np.array([row, column]) + (block - 1) / 2 - matrix // 2
        assert block_centres(scan)[view] == pytest.approx(centre)
    assert closeness(trajectory.kspace(samples).numpy(), kspace) < 1e-12
    acquired = torch.from_numpy(np.random.default_rng(0).random((2, trajectory.num_views)) < 0.3)
    masked = trajectory.kspace(samples * acquired[:, :, None, None]).numpy()
    full = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(masked, axes=axes)), axes=axes) * matrix
    first = matrix // 2 - crop // 2
    expected = full[..., first : first + crop, first : first + crop]
    assert closeness(trajectory.reconstruct(samples, acquired).numpy(), expected) < 1e-12
    planes = torch.zeros(2, coils, 2, crop, crop, dtype=torch.float64)
    for view in range(trajectory.num_views):
        trajectory.add(planes, samples[:, view] * acquired[:, view, None, None], torch.full((2,), view))
    assert closeness(as_complex(planes), expected) < 1e-12


def test_the_picture_of_kspace_says_which_view_a_sample_belongs_to():
    for options in (
        {"trajectory": "lines"},
        {"trajectory": "radial", "spokes": 6},
        {"trajectory": "points", "block": 4},
    ):
        scan = Acquisition(24, 16, coils=2, **options)
        trajectory = make(scan)
        for view in range(trajectory.num_views):
            samples = torch.zeros(1, trajectory.num_views, 2, trajectory.num_samples, dtype=torch.complex128)
            samples[:, view] = torch.randn(2, trajectory.num_samples, dtype=torch.complex128)
            drawn = trajectory.kspace(samples)[0].abs().sum(0).numpy() > 0
            assert np.array_equal(drawn, trajectory.views == view)
        assert trajectory.pixels.shape == trajectory.views.shape
        assert trajectory.pixels.min() >= 0
        assert trajectory.pixels.max() < 24**2


def test_spokes_are_drawn_along_their_angle():
    trajectory = make(Acquisition(24, 16, trajectory="radial", spokes=4))
    horizontal, _, vertical, falling = (trajectory.pixels[:, view] for view in range(4))
    assert horizontal.tolist() == [12 * 24 + column for column in range(24)]
    assert vertical.tolist() == [row * 24 + 12 for row in range(24)]
    # At 135 degrees x falls as y grows.
    assert falling[12 + 7] == (12 + 5) * 24 + 12 - 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trajectory": "lines"}, [11, 12, 13]),
        ({"trajectory": "radial", "spokes": 10, "initial_lines": 4}, [0, 2, 5, 7]),
        ({"trajectory": "radial", "spokes": 10, "initial_lines": 4, "angles": "golden"}, [0, 1, 2, 3]),
        ({"trajectory": "points"}, [row * 24 + column for row in (11, 12, 13) for column in (11, 12, 13)]),
        ({"trajectory": "points", "block": 4}, [2 * 6 + 2, 2 * 6 + 3, 3 * 6 + 2, 3 * 6 + 3]),
        ({"trajectory": "points", "block": 4, "initial_lines": 1}, [3 * 6 + 3]),
    ],
)
def test_initial_views_surround_the_centre(options, expected):
    scan = Acquisition(24, 16, **options)
    assert scan.initial_views.tolist() == expected
    assert make(scan).num_views == scan.num_views


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trajectory": "spiral"}, "trajectory='spiral' is unknown"),
        ({"trajectory": "radial", "angles": "random"}, "angles='random' is unknown"),
        ({"trajectory": "radial", "spokes": 3}, "below spokes=3"),
        ({"trajectory": "points", "block": 5}, "block=5 does not divide matrix=24"),
        ({"trajectory": "points", "initial_lines": 2}, "must be an odd number"),
        ({"trajectory": "radial", "phase_encode": "random"}, "leave it out"),
    ],
)
def test_what_makes_no_trajectory_is_refused(options, message):
    with pytest.raises(SeggymError, match=message):
        Acquisition(24, 16, **options)
