"""Measured k-space on the acquisition matrix, against plain numpy transforms of the raw samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seggym.cohorts.cohort import Volume
from seggym.errors import SeggymError
from seggym.kspace import measured, simulation
from seggym.kspace.acquisition import Acquisition, prepare

SCAN = Acquisition(matrix=24, crop=16, coils=2)


def numpy_images(kspace):
    """Complex coil images of k-space (..., rows, columns), centred and orthonormal."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)


def centre(values, rows, columns):
    """The central block, by numpy; zero-padded where the array is smaller."""
    for axis, size in ((-2, rows), (-1, columns)):
        length = values.shape[axis]
        margin = max(0, size // 2 - length // 2)
        padding = [(0, 0)] * values.ndim
        padding[axis] = (margin, max(0, size - length - margin))
        values = np.pad(values, padding)
        first = values.shape[axis] // 2 - size // 2
        values = np.take(values, range(first, first + size), axis)
    return values


def volume(coils, shape=(40, 36), slices=2, spacing=(8.0, 1.5, 1.5), seed=0):
    """Random k-space that is strongest around DC, as that of objects."""
    rng = np.random.default_rng(seed)
    size = (slices, coils, *shape)
    distance = np.hypot(*(np.indices(shape) - np.array(shape)[:, None, None] // 2))
    kspace = (rng.normal(size=size) + 1j * rng.normal(size=size)) / (1 + distance)
    label = rng.integers(0, 3, (slices, *shape)).astype(np.uint8)
    image = np.ones((slices, *shape), np.float32)
    return Volume("patient001", "frame01", image, label, spacing, kspace=kspace.astype(np.complex64))


@pytest.mark.parametrize("coils", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "spacing", "rows"),
    [
        ((40, 36), (8.0, 1.5, 1.5), 27),  # 40 x 1.5 mm over pixels of 36 x 1.5 / 24 mm
        ((36, 36), (8.0, 1.0, 1.0), 24),
        ((31, 40), (8.0, 2.0, 1.0), 37),
        ((20, 17), (8.0, 1.0, 1.0), 28),  # fewer lines than the matrix
    ],
)
def test_parity_with_numpy(coils, shape, spacing, rows):
    raw = volume(coils, shape, spacing=spacing)
    scan = replace(SCAN, coils=coils)
    stack = prepare([raw], scan, 3)
    images = centre(numpy_images(centre(raw.kspace.astype(complex), rows, scan.matrix)), scan.matrix, scan.matrix)
    initial = centre(raw.kspace, rows, scan.matrix)[..., scan.initial_views]
    reference = np.sqrt((np.abs(images) ** 2).sum(1))
    indices = torch.arange(2)
    for dtype in (torch.float32, torch.float64):
        hybrid = simulation.encode(stack, indices, torch.tensor([5, 6]), scan, dtype)
        full = simulation.zero_filled(hybrid, None, scan).numpy()
        unit = full.max() / centre(reference, 16, 16).max()
        np.testing.assert_allclose(full, unit * centre(reference, 16, 16), atol=1e-5 * full.max())
        # The unit is a power of two that brings the initial lines near to 1.
        assert np.log2(unit) == pytest.approx(round(np.log2(unit)), abs=1e-5)
        acquired = np.zeros((2, 24), bool)
        acquired[:, [3, 4, 11, 12, 13, 20]] = True
        some = simulation.zero_filled(hybrid, torch.from_numpy(acquired), scan).numpy()
        kspace = centre(raw.kspace.astype(complex), rows, 24) * acquired[:, None, None, :]
        images = centre(numpy_images(kspace), 16, 16)
        np.testing.assert_allclose(some, unit * np.sqrt((np.abs(images) ** 2).sum(1)), atol=1e-5 * full.max())
    assert 0.2 < np.abs(unit * initial).mean() < 5
    assert stack.data_range.tolist() == pytest.approx([full.max()] * 2, rel=1e-5)
    np.testing.assert_allclose(stack.images.numpy(), unit * reference, atol=1e-5 * full.max())
    pixels = (spacing[1] * shape[0] / rows, spacing[2] * shape[1] / 24)
    np.testing.assert_allclose(stack.spacing.numpy(), [[8.0, *pixels]] * 2, rtol=1e-6)
    assert pixels[0] == pytest.approx(pixels[1], rel=0.02)


def test_noise_and_phase_are_not_simulated():
    stack = prepare([volume(2)], replace(SCAN, snr=1.0), 3)
    indices, keys = torch.tensor([0, 0]), torch.tensor([1, 2])
    noise = simulation.thermal_noise(stack, indices, keys, replace(SCAN, snr=1.0))
    assert not noise.any()
    hybrid = simulation.encode(stack, indices, keys, SCAN, torch.float64)
    assert torch.equal(hybrid[0], hybrid[1])


def test_lines_that_were_never_measured_are_not_available():
    raw = volume(2)
    raw.kspace[0, :, :, :10] = 0
    raw.kspace[1, :, :, 25] = 0
    stack = prepare([raw], SCAN, 3)
    # The matrix is columns 6..29 of 36.
    assert (~stack.available[0]).nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert (~stack.available[1]).nonzero()[:, 0].tolist() == [19]
    few = prepare([volume(2, (20, 18))], SCAN, 3)
    assert few.available[0].nonzero()[:, 0].tolist() == list(range(3, 21))
    assert not torch.view_as_complex(few.hybrid)[..., ~few.available[0]].any()


def test_labels_follow_the_image():
    """A shape in the label and in the image of one coil: they still cover each other on a coarser, cropped grid."""
    label = np.zeros((1, 60, 44), np.uint8)
    label[0, 24:40, 12:30] = 1
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(label, axes=(1, 2))), axes=(1, 2))[:, None]
    raw = Volume("p", "f", label.astype(np.float32), label, (8.0, 1.0, 1.0), kspace=kspace.astype(np.complex64))
    scan = Acquisition(matrix=32, crop=24)
    stack = prepare([raw], scan, 2)
    image = centre(stack.images.numpy(), 24, 24)[0]
    seen, drawn = image > 0.5 * np.median(image[stack.labels[0].numpy() == 1]), stack.labels[0].numpy() == 1
    assert (seen & drawn).sum() / (seen | drawn).sum() > 0.85
    exact = prepare([raw], Acquisition(matrix=44, crop=24), 2)
    np.testing.assert_array_equal(exact.labels[0].numpy(), label[0, 18:42, 10:34])


def test_virtual_coils_keep_everything_of_as_many_sources():
    """Two sources seen by six coils: two virtual coils have the same root sum of squares."""
    rng = np.random.default_rng(1)
    sources = volume(2)
    mixing = np.linalg.qr(rng.normal(size=(6, 6)) + 1j * rng.normal(size=(6, 6)))[0][:, :2]
    seen = np.einsum("js,zsrl->zjrl", mixing, sources.kspace).astype(np.complex64)
    stack = prepare([replace(sources, kspace=seen)], SCAN, 3)
    assert stack.hybrid.shape == (2, 2, 24, 24, 2)
    expected = prepare([sources], SCAN, 3)
    ratio = stack.images.max() / expected.images.max()  # their units may differ
    torch.testing.assert_close(stack.images, ratio * expected.images, atol=1e-5, rtol=1e-4)


def test_virtual_coils_hold_most_of_the_signal_of_the_initial_lines():
    raw = torch.from_numpy(volume(6).kspace)
    hybrid, _ = measured.hybrid_space(raw, 24, 24)
    lines = SCAN.initial_views
    kept = measured.virtual_coils(hybrid, 3, lines)
    for index in range(2):
        singular = np.linalg.svd(hybrid[index][..., lines].reshape(6, -1).numpy(), compute_uv=False)
        energy = kept[index][..., lines].abs().square().sum().item()
        assert energy == pytest.approx((singular[:3] ** 2).sum(), rel=1e-5)


def test_virtual_coils_see_the_initial_lines_only():
    hybrid, _ = measured.hybrid_space(torch.from_numpy(volume(6).kspace), 24, 24)
    other = hybrid.clone()
    later = np.setdiff1d(np.arange(24), SCAN.initial_views)
    other[..., torch.from_numpy(later)] *= torch.linspace(-3, 3, len(later))
    one, two = (measured.virtual_coils(space, 2, SCAN.initial_views) for space in (hybrid, other))
    assert torch.equal(one[..., torch.from_numpy(SCAN.initial_views)], two[..., torch.from_numpy(SCAN.initial_views)])


def test_warping_by_the_identity_changes_nothing():
    stack = prepare([volume(2)], SCAN, 3)
    hybrid = torch.view_as_complex(stack.hybrid)
    same = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]] * 2)
    grid = torch.nn.functional.affine_grid(same, [2, 1, 24, 24], False)
    torch.testing.assert_close(measured.warped(hybrid, stack.available, grid), hybrid, atol=1e-4, rtol=1e-4)
    mirrored = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]] * 2)
    grid = torch.nn.functional.affine_grid(mirrored, [2, 1, 24, 24], False)
    turned = measured.full_image(measured.warped(hybrid, stack.available, grid))
    torch.testing.assert_close(turned, stack.images.flip(-1), atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(SeggymError, match=r"measured with 2 coils, .*set acquisition\.coils=2"):
        prepare([volume(2)], replace(SCAN, coils=4), 3)
    raw = volume(2)
    raw.kspace[0, :, :, 18] = 0
    with pytest.raises(SeggymError, match="lacks line 12 of 24 in some slice"):
        prepare([raw], SCAN, 3)
    for name, value in (
        ("phase_encode", "random"),
        ("orientation", 45.0),
        ("corruption", 0.1),
        ("trajectory", "points"),
    ):
        with pytest.raises(SeggymError, match=f"{name}=.*was measured: leave it out"):
            prepare([volume(2)], replace(SCAN, **{name: value}), 3)
