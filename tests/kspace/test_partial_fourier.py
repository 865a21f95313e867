"""Homodyne and POCS against objects whose phase is known."""

import numpy as np
import pytest
import torch

from seggym.kspace import orders
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.homodyne import homodyne
from seggym.kspace.reconstruction.pocs import pocs
from seggym.kspace.simulation import zero_filled
from seggym.kspace.transforms import fftc

SIZE = 64
SCAN = Acquisition(matrix=SIZE, crop=SIZE)
METHODS = (homodyne, pocs)


def discs(phase):
    """Magnitude (1, 64, 64) of two discs, and the hybrid space of the discs with ``phase`` in rad."""
    y, x = (np.indices((SIZE, SIZE)) - SIZE // 2) / SIZE
    magnitude = 0.5 * (np.hypot(y, x) < 0.4) + 1.0 * (np.hypot(y - 0.1, x - 0.05) < 0.15)
    image = torch.from_numpy(magnitude * np.exp(1j * phase(y, x)))[None, None]
    return torch.from_numpy(magnitude)[None], fftc(image, (-1,))


def mask(lines, *, ratio):
    acquired = torch.zeros(1, SIZE, dtype=torch.bool)
    acquired[0, orders.partial_fourier(SIZE, 1, ratio)[:lines]] = True
    return acquired


def error(image, truth):
    return ((image - truth).square().sum() / truth.square().sum()).item()


@pytest.mark.parametrize("method", METHODS)
def test_a_real_object_follows_from_half_of_its_kspace(method):
    """All lines of one side and DC: conjugate symmetry leaves nothing unknown but the outermost line."""
    truth, hybrid = discs(lambda y, x: 0 * x + 0.7)
    acquired = torch.arange(SIZE)[None] >= SIZE // 2
    acquired[0, 0] = True
    assert error(zero_filled(hybrid, acquired, SCAN), truth) > 0.1
    options = {} if method is homodyne else {"iterations": 100}
    # The phase of DC alone is that of the object: homodyne is exact.
    assert error(method(hybrid, acquired, SCAN, **options), truth) < (1e-20 if method is homodyne else 0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_smooth_phase_is_found_in_the_centre(method):
    truth, hybrid = discs(lambda y, x: 1.2 * np.sin(2 * np.pi * (0.6 * x + 0.4 * y) + 1))
    acquired = mask(40, ratio=3)  # ten lines on one side, twenty-nine on the other
    assert error(method(hybrid, acquired, SCAN), truth) < 0.5 * error(zero_filled(hybrid, acquired, SCAN), truth)


@pytest.mark.parametrize("method", METHODS)
def test_the_other_side_is_as_good(method):
    _, hybrid = discs(lambda y, x: 0.8 * np.sin(2 * np.pi * x))
    # The mirror image of a k-space, line by line (the outermost one is left out), is that of the mirrored conjugate.
    acquired = mask(30, ratio=4)
    line = (-torch.arange(SIZE)) % SIZE
    image, other = method(hybrid, acquired, SCAN), method(hybrid[..., line], acquired[..., line], SCAN)
    column = (-torch.arange(SIZE)) % SIZE
    torch.testing.assert_close(other[..., column], image, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_symmetric_mask_gives_the_zero_filled_image(method):
    _, hybrid = discs(lambda y, x: 3 * y)
    hybrid = torch.cat([hybrid, hybrid])
    symmetric = torch.zeros(SIZE, dtype=torch.bool)
    symmetric[SIZE // 2 - 9 : SIZE // 2 + 10] = True
    symmetric[[5, SIZE - 5]] = True
    one_sided = mask(19, ratio=4)[0]
    image = method(hybrid, torch.stack([symmetric, one_sided]), SCAN)
    plain = zero_filled(hybrid, torch.stack([symmetric, one_sided]), SCAN)
    torch.testing.assert_close(image[0], plain[0], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(image[1], plain[1], rtol=1e-2)


def test_pocs_is_its_two_projections():
    """From the definition: the phase of the centre, then the measured lines, in k-space, twelve times."""
    _, hybrid = discs(lambda y, x: 0.8 * np.sin(2 * np.pi * x))
    acquired = mask(25, ratio=4)
    lines, measured = hybrid[0, 0].numpy(), acquired[0].numpy()
    distance = np.abs(np.arange(SIZE) - SIZE // 2)
    half = 5  # 25 lines: DC, 20 on one side and 4 on the other; the window vanishes at the fifth
    assert measured[distance < half].all()
    assert not measured[distance <= half].all()
    window = np.where(distance < half, np.cos(np.pi / 2 * distance / half) ** 2, 0)

    def to_image(k):
        return np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(k, -1), norm="ortho"), -1)

    def to_lines(image):
        return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, -1), norm="ortho"), -1)

    phase = np.angle(to_image(lines * window))
    known = measured | measured[(-np.arange(SIZE)) % SIZE]
    image = to_image(lines * measured)
    for _ in range(12):
        estimate = to_lines(np.abs(image) * np.exp(1j * phase))
        image = to_image(np.where(measured, lines, np.where(known, estimate, 0)))
    found = pocs(hybrid, acquired, SCAN, iterations=12)
    np.testing.assert_allclose(found[0].numpy(), np.abs(image), atol=1e-10)
