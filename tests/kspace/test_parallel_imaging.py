"""SENSE and GRAPPA against objects and coils that are known."""

import numpy as np
import pytest
import torch

from seggym.kspace.acquisition import Acquisition
from seggym.kspace.coils import birdcage
from seggym.kspace.reconstruction.grappa import grappa
from seggym.kspace.reconstruction.sense import sense
from seggym.kspace.reconstruction.sensitivities import coil_maps
from seggym.kspace.simulation import zero_filled
from seggym.kspace.transforms import centre_crop, fftc

SIZE = 48
SCAN = Acquisition(matrix=SIZE, crop=32, coils=6)


def scanned(phase=0.8):
    """Magnitude (1, 32, 32) of a smooth object with a disc in it, and its hybrid space in all coils, complex128."""
    y, x = (np.indices((SIZE, SIZE)) - SIZE // 2) / SIZE
    magnitude = np.exp(-((y / 0.25) ** 2) - (x / 0.2) ** 2) + 0.5 * (np.hypot(y + 0.05, x) < 0.12)
    image = torch.from_numpy(magnitude * np.exp(1j * phase * np.sin(2 * np.pi * x)))
    coils = birdcage(SCAN.coils, SIZE).to(torch.complex128) * image
    return centre_crop(torch.from_numpy(magnitude)[None], 32, (-2, -1)), fftc(coils[None], (-1,))


def every(step, centre):
    distance = torch.arange(SIZE) - SIZE // 2
    return ((distance % step == 0) | (distance.abs() <= centre // 2))[None]


def error(image, truth):
    return ((image - truth).square().sum() / truth.square().sum()).item()


@pytest.mark.parametrize("sensitivities", ["known", "estimated"])
def test_sense_of_all_lines_is_the_object(sensitivities):
    truth, hybrid = scanned()
    image = sense(hybrid, every(1, SIZE), SCAN, sensitivities=sensitivities)
    # Known maps are in single precision; estimated ones, of low resolution, are not quite those of the coils.
    assert error(image, truth) < (1e-12 if sensitivities == "known" else 1e-3)


@pytest.mark.parametrize("sensitivities", ["known", "estimated"])
def test_sense_unfolds(sensitivities):
    truth, hybrid = scanned()
    acquired = every(2, 15)
    options = {"sensitivities": sensitivities, "regularisation": 1e-4, "iterations": 40}
    folded = error(zero_filled(hybrid, acquired, SCAN), truth)
    assert error(sense(hybrid, acquired, SCAN, **options), truth) < (1e-3 if sensitivities == "known" else 0.2) * folded


def test_sense_equals_the_normal_equations_solved_directly():
    """Row by row with dense matrices: (E^H E + r) x = E^H y + r x0."""
    _, hybrid = scanned()
    acquired, weight = every(3, 7), 0.05
    maps = coil_maps("known", hybrid, acquired, SCAN)[0].numpy()
    position = np.arange(SIZE) - SIZE // 2
    transform = np.exp(-2j * np.pi * np.outer(position, position) / SIZE) / np.sqrt(SIZE)
    lines = transform[acquired[0].numpy()]
    expected = np.empty((32, SIZE), complex)
    for row in range(32):
        measured = hybrid[0, :, row + SIZE // 2 - 16].numpy()[:, acquired[0].numpy()].ravel()
        operator = np.concatenate([lines * maps[coil, row] for coil in range(SCAN.coils)])
        prior = operator.conj().T @ measured
        left = operator.conj().T @ operator + weight * np.eye(SIZE)
        expected[row] = np.linalg.solve(left, prior + weight * prior)
    image = sense(hybrid, acquired, SCAN, sensitivities="known", regularisation=weight, iterations=200)
    np.testing.assert_allclose(image[0].numpy(), np.abs(expected)[:, SIZE // 2 - 16 : SIZE // 2 + 16], atol=1e-6)


def test_estimated_maps_are_the_coils_where_there_is_signal():
    truth, hybrid = scanned(phase=0.0)
    found = coil_maps("estimated", hybrid, every(1, SIZE), SCAN)
    torch.testing.assert_close(found.abs().square().sum(1), torch.ones(1, 32, SIZE, dtype=torch.float64))
    known = coil_maps("known", hybrid, every(1, SIZE), SCAN)
    bright = (truth > 0.3).expand(SCAN.coils, -1, -1)
    difference = centre_crop(found - known, 32, (-1,))[0].abs()
    assert difference[bright].max() < 0.05


def test_grappa_recovers_skipped_lines():
    truth, hybrid = scanned()
    acquired = every(2, 15)
    folded = error(zero_filled(hybrid, acquired, SCAN), truth)
    assert error(grappa(hybrid, acquired, SCAN, regularisation=1e-6), truth) < 0.05 * folded


def test_grappa_predicts_irregular_lines():
    """Gaps of one and of two lines at irregular places."""
    truth, hybrid = scanned()
    acquired = every(1, SIZE)
    acquired[0, [3, 6, 7, 11, 34, 37, 38, 42, 45]] = False
    folded = error(zero_filled(hybrid, acquired, SCAN), truth)
    assert error(grappa(hybrid, acquired, SCAN, regularisation=1e-6), truth) < 0.05 * folded


def test_grappa_kernel_equals_least_squares():
    """One missing line, two neighbours, one readout sample: the kernel that numpy fits on the same equations."""
    _, hybrid = scanned()
    generator = torch.Generator().manual_seed(0)
    hybrid = hybrid + 0.05 * torch.complex(*torch.randn(2, *hybrid.shape, dtype=torch.float64, generator=generator))
    acquired = torch.zeros(1, SIZE, dtype=torch.bool)
    acquired[0, 20:29] = True  # nine lines around DC, line 24
    acquired[0, 30] = True
    samples = fftc(hybrid, (-2,))[0].numpy()  # (J, S, L)
    sources, targets = [], []
    for place in range(21, 28):
        sources.append(np.concatenate([samples[:, :, place - 1], samples[:, :, place + 1]]).T)
        targets.append(samples[:, :, place].T)
    kernel = np.linalg.lstsq(np.concatenate(sources), np.concatenate(targets), rcond=None)[0]
    line = np.concatenate([samples[:, :, 28], samples[:, :, 30]]).T @ kernel
    expected = np.where(acquired[0].numpy(), samples, 0)
    expected[:, :, 29] = line.T
    images = torch.fft.fftshift(torch.fft.ifft2(np_shift(expected), norm="ortho"), dim=(-2, -1))
    truth = centre_crop(images.abs().square().sum(0).sqrt()[None], 32, (-2, -1))
    image = grappa(hybrid, acquired, SCAN, neighbours=2, readout=1, regularisation=1e-12)
    torch.testing.assert_close(image, truth, rtol=1e-6, atol=1e-6)


def np_shift(samples):
    return torch.fft.ifftshift(torch.from_numpy(samples), dim=(-2, -1))


@pytest.mark.parametrize("centre", [[24], [24, 25], [22, 23, 25, 26]])
def test_grappa_without_a_calibration_block_is_zero_filled(centre):
    _, hybrid = scanned()
    acquired = torch.zeros(1, SIZE, dtype=torch.bool)
    acquired[0, [*centre, 28, 30, 10, 12]] = True
    torch.testing.assert_close(grappa(hybrid, acquired, SCAN), zero_filled(hybrid, acquired, SCAN))
