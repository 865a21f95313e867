"""Centred transforms against the definition of the DFT."""

import numpy as np
import pytest
import torch

from seggym.kspace.transforms import centre_crop, fftc, ifftc


def dft_matrix(size):
    position = np.arange(size) - size // 2
    return np.exp(-2j * np.pi * np.outer(position, position) / size) / np.sqrt(size)


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (8, 9), (5, 12)])
def test_transforms_equal_the_definition(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *shape)) + 1j * rng.normal(size=(3, *shape))
    rows, columns = (dft_matrix(size) for size in shape)
    expected = np.einsum("ij,bjk,kl->bil", rows, x, columns)
    np.testing.assert_allclose(fftc(torch.from_numpy(x), (-2, -1)).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(fftc(torch.from_numpy(x), (-2,)).numpy(), rows @ x, atol=1e-12)
    back = np.einsum("ij,bjk,kl->bil", rows.conj(), x, columns.conj())
    np.testing.assert_allclose(ifftc(torch.from_numpy(x), (-2, -1)).numpy(), back, atol=1e-12)


@pytest.mark.parametrize("size", [8, 9, 160, 161])
def test_orthonormal_and_centred(size):
    x = torch.randn(2, size, size, dtype=torch.complex128)
    spectrum = fftc(x, (-2, -1))
    torch.testing.assert_close(spectrum.abs().square().sum(), x.abs().square().sum())
    torch.testing.assert_close(ifftc(spectrum, (-2, -1)), x)
    constant = fftc(torch.ones(size, size, dtype=torch.complex128), (-2, -1))
    assert int(constant.abs().argmax()) == (size // 2) * size + size // 2
    point = torch.zeros(size, size, dtype=torch.complex128)
    point[size // 2, size // 2] = 1
    torch.testing.assert_close(fftc(point, (-2, -1)), torch.full_like(point, 1 / size))


@pytest.mark.parametrize("length", [4, 5, 8, 9])
@pytest.mark.parametrize("size", [3, 4, 6, 7, 8, 9])
def test_centre_crop_keeps_the_centre(length, size):
    x = torch.arange(length) - length // 2
    cropped = centre_crop(x, size, (0,))
    assert len(cropped) == size
    wanted = torch.arange(size) - size // 2
    inside = (wanted >= x[0]) & (wanted <= x[-1])
    assert cropped.tolist() == torch.where(inside, wanted, 0).tolist()
