"""Total variation: its objective against numpy, how it falls, and a phantom that it is made for."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as quasi_newton

from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.lines import centre_phase, keep_lines, measured_rows
from seggym.kspace.reconstruction.total_variation import minimise, objective, total_variation
from seggym.kspace.simulation import zero_filled
from seggym.kspace.transforms import fftc, ifftc

SIZE = 48
SCAN = Acquisition(matrix=SIZE, crop=SIZE)


def piecewise_constant(noise=0.0, dtype=torch.complex128):
    y, x = (np.indices((SIZE, SIZE)) - SIZE // 2) / SIZE
    magnitude = 0.4 * (np.abs(y) < 0.4) * (np.abs(x) < 0.35) + 0.6 * (np.hypot(y - 0.05, x + 0.1) < 0.15)
    image = torch.from_numpy(magnitude * np.exp(1.5j * np.sin(2 * np.pi * (0.5 * x + 0.3 * y))))
    generator = torch.Generator().manual_seed(0)
    image = image + noise * torch.complex(*torch.randn(2, SIZE, SIZE, dtype=torch.float64, generator=generator))
    return torch.from_numpy(magnitude)[None], fftc(image, (-1,))[None, None].to(dtype)


def random_mask():
    distance = torch.arange(SIZE) - SIZE // 2
    drawn = torch.rand(SIZE, generator=torch.Generator().manual_seed(3)) < 0.4
    return (drawn | (distance.abs() < 5))[None]


def test_it_beats_zero_filling_on_a_piecewise_constant_object():
    truth, hybrid = piecewise_constant(noise=0.02)
    acquired = random_mask()
    image, plain = total_variation(hybrid, acquired, SCAN), zero_filled(hybrid, acquired, SCAN)
    assert (image - truth).square().sum() < 0.5 * (plain - truth).square().sum()


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_the_objective_never_rises(dtype):
    """Over 60 iterations, to the precision of the arithmetic, and it is lower at their end."""
    _, hybrid = piecewise_constant(noise=0.02, dtype=dtype)
    acquired = random_mask()
    rows = measured_rows(hybrid, acquired, SCAN)
    phase = centre_phase(rows, acquired)
    data = ifftc(rows, (-1,)) * phase.conj()
    image, values = data, [objective(data, data, phase, acquired, 0.02, 0.05).item()]
    for count in range(1, 60):
        image = minimise(data, phase, acquired, 0.02, 0.05, count, 5)
        values.append(objective(image.to(torch.complex128), data, phase, acquired, 0.02, 0.05).item())
    rounding = 1e-12 if dtype == torch.complex128 else 1e-5
    assert all(after <= before * (1 + rounding) for before, after in itertools.pairwise(values))
    assert values[-1] < 0.85 * values[0]


def test_the_objective_by_hand():
    """Against numpy: the squared error of the measured samples, and the gradient's length, rows ending, columns not."""
    rng = np.random.default_rng(0)
    image, data = rng.normal(size=(2, 1, 1, 6, 8)) + 1j * rng.normal(size=(2, 1, 1, 6, 8))
    acquired = np.array([[False, True, True, False, True, True, False, False]])
    position = np.arange(8) - 4
    transform = np.exp(-2j * np.pi * np.outer(position, position) / 8) / np.sqrt(8)
    data = (data @ transform.T * acquired) @ transform.conj()
    error = ((image - data) @ transform.T)[..., acquired[0]]
    down = np.diff(image, axis=-2, append=image[..., -1:, :])
    right = np.diff(image, axis=-1, append=image[..., :1])
    length = np.sqrt(np.abs(down) ** 2 + np.abs(right) ** 2 + 0.3**2)
    expected = (np.abs(error) ** 2).sum() / 2 + 0.1 * length.sum()
    ones = torch.ones(1, 1, 6, 8, dtype=torch.complex128)
    found = objective(torch.from_numpy(image), torch.from_numpy(data), ones, torch.from_numpy(acquired), 0.1, 0.3)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_weak_one_keeps_measured_lines():
    _, hybrid = piecewise_constant()
    every = torch.ones(1, SIZE, dtype=torch.bool)
    image = total_variation(hybrid, every, SCAN, strength=1e-7, iterations=20)
    torch.testing.assert_close(image, zero_filled(hybrid, None, SCAN), rtol=0, atol=1e-5)


def test_it_does_not_depend_on_the_scale():
    _, hybrid = piecewise_constant(noise=0.02)
    acquired = random_mask()
    torch.testing.assert_close(
        total_variation(300 * hybrid, acquired, SCAN), 300 * total_variation(hybrid, acquired, SCAN)
    )


def test_it_arrives_at_the_minimum():
    """Where a quasi-Newton method of SciPy arrives with numerical care but no knowledge of the problem."""
    generator = torch.Generator().manual_seed(1)
    data = torch.complex(*torch.randn(2, 1, 1, 5, 8, dtype=torch.float64, generator=generator))
    acquired = torch.tensor([[False, False, True, True, True, True, False, True]])
    ones = torch.ones_like(data)
    data = keep_lines(data, acquired)

    def value_and_slope(parameters):
        image = torch.from_numpy(parameters).view(1, 1, 5, 8, 2).requires_grad_()
        value = objective(torch.view_as_complex(image), data, ones, acquired, 0.1, 0.1).sum()
        value.backward()
        return value.item(), image.grad.flatten().numpy()

    start = torch.view_as_real(data).flatten().numpy()
    best = quasi_newton(value_and_slope, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-14})
    found = minimise(data, ones, acquired, 0.1, 0.1, iterations=100, conjugate_steps=20)
    assert objective(found, data, ones, acquired, 0.1, 0.1).item() == pytest.approx(best.fun, rel=1e-8)
