"""The incremental image against a direct transform with NumPy, and the truncation of the simulated signal."""

import numpy as np
import pytest
import torch

from seggym.kspace import simulation
from seggym.kspace.acquisition import Acquisition, prepare
from seggym.kspace.coils import birdcage


def fft_axis(x, axis):
    """Centred orthonormal DFT by its definition, a matrix product: index N // 2 is the origin on both sides."""
    size = x.shape[axis]
    position = np.arange(size) - size // 2
    matrix = np.exp(-2j * np.pi * np.outer(position, position) / size) / np.sqrt(size)
    return np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)


def ifft_axis(x, axis):
    return np.conj(fft_axis(np.conj(x), axis))


def centre(x, size, axes=(0, 1)):
    for axis in axes:
        start = x.shape[axis] // 2 - size // 2
        x = np.take(x, np.arange(start, start + size), axis)
    return x


def direct_image(stack, scan, sample, key, acquired, coil=0):
    """Zero-filled complex image (C, C) of a coil: phase, 2-D DFT, crop to the matrix, noise, mask, inverse 2-D DFT."""
    index, keys = torch.tensor([sample]), torch.tensor([key])
    amplitude, shift = stack.phase_amplitude[index].double(), stack.echo_shift[index].double()
    phase = simulation.smooth_phase(keys, amplitude, shift, scan.grid)[0].numpy()
    image = stack.images[sample].double().numpy() * np.exp(1j * phase)
    image = image * birdcage(scan.coils, scan.grid)[coil].numpy()
    kspace = centre(fft_axis(fft_axis(image, 0), 1), scan.matrix) * (scan.matrix / scan.grid)
    if scan.snr is not None:
        kspace = kspace + fft_axis(simulation.thermal_noise(stack, index, keys, scan)[0, coil].numpy(), 0)
    return centre(ifft_axis(ifft_axis(kspace * acquired, 0), 1), scan.crop)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("matrix", "crop", "coils"), [(48, 32, 1), (49, 33, 1), (48, 31, 3), (49, 32, 2)])
def test_incremental_update_equals_a_direct_masked_transform(make_engine, play, matrix, crop, coils, dtype):
    engine = make_engine(3, dtype=dtype, acquisition={"matrix": matrix, "crop": crop, "coils": coils}, budget=40)
    play(engine, [11, 12, 13], 12)
    for steps in (0, 25):
        for _ in range(steps):
            engine.step(engine.action_mask().long().argmax(1))
        for slot in range(3):
            acquired = engine.acquired[slot].numpy()
            assert acquired.sum() == 3 + 12 + steps
            episode = int(engine.samples[slot]), int(engine.keys[slot])
            expected = np.stack(
                [direct_image(engine.stack, engine.acquisition, *episode, acquired, coil) for coil in range(coils)]
            )
            scale = np.abs(expected).max()
            found = engine.scanner.planes[slot].numpy()
            np.testing.assert_allclose(found[:, 0] + 1j * found[:, 1], expected, atol=1e-5 * scale)
            combined = np.sqrt((np.abs(expected) ** 2).sum(0))
            np.testing.assert_allclose(engine.magnitude[slot].numpy(), combined, atol=1e-5 * scale)


def test_kspace_observation_is_the_measured_kspace(make_engine, play):
    engine = make_engine(2, observation=["kspace"], acquisition={"matrix": 48, "crop": 32, "snr": None})
    play(engine, [5, 6], 2)
    seen = engine.observe()["kspace"].numpy()
    for slot in range(2):
        sample, key = int(engine.samples[slot]), int(engine.keys[slot])
        acquired = engine.acquired[slot].numpy()
        full = direct_image(engine.stack, Acquisition(48, 48, None), sample, key, acquired)
        expected = fft_axis(fft_axis(full, 0), 1)
        expected /= np.sqrt((np.abs(expected) ** 2).sum() / (acquired.sum() * 48))
        np.testing.assert_allclose(seen[slot, 0] + 1j * seen[slot, 1], expected, atol=1e-5 * np.abs(expected).max())


class Disc:
    """A volume of one slice with sharp edges, on a pixel grid four times as fine as that of the simulation."""

    patient, name, spacing = "patient001", "patient001_frame01", (10.0, 1.0, 1.0)

    def __init__(self, side):
        y, x = (np.indices((side, side)) - side // 2) / side
        image = 100.0 * (np.hypot(y / 0.42, x / 0.36) < 1)
        image[np.hypot(y + 0.05, x - 0.08) < 0.12] = 400.0
        self.image = image[None].astype(np.float32)
        self.label = np.zeros_like(self.image, dtype=np.uint8)
        self.kspace = None


@pytest.mark.parametrize("key", [1, 2, 3])
def test_guard_band_truncation_is_small(key):
    """The phase belongs on the continuous object; on a four times finer grid the signal differs by less than 0.1 %."""
    scan = Acquisition(matrix=48, crop=32, phase=(3.0, 3.0), echo_shift=4.0)
    fine = 4 * scan.grid
    disc = Disc(fine)
    stack = prepare([disc], scan, 2)
    keys = torch.tensor([key])
    amplitude, shift = stack.phase_amplitude.double(), stack.echo_shift.double()
    coarse_phase = simulation.smooth_phase(keys, amplitude, shift * 0, scan.grid)[0].numpy()
    fine_phase = simulation.smooth_phase(keys, amplitude, shift * 0, fine)[0].numpy()
    # Both grids scale the phase to its extremes on their own points; every fourth fine point is a coarse point.
    slope, offset = np.polyfit(fine_phase[::4, ::4].ravel(), coarse_phase.ravel(), 1)
    np.testing.assert_allclose(slope * fine_phase[::4, ::4] + offset, coarse_phase, atol=1e-9)
    ramp = 2 * np.pi * float(shift) * (np.arange(fine) - fine // 2) / fine
    image = disc.image[0].astype(float) * np.exp(1j * (slope * fine_phase + offset + ramp))
    kspace = centre(fft_axis(fft_axis(image, 0), 1), scan.matrix) * (scan.matrix / fine)
    simulated = simulation.encode(stack, torch.tensor([0]), keys, scan, torch.float64)[0, 0].numpy()
    error = fft_axis(simulated, 0) - kspace
    assert np.linalg.norm(error) < 1e-3 * np.linalg.norm(kspace)
