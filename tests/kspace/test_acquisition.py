"""Preparation of slices, and the simulated measurement of them."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from seggym.errors import SeggymError
from seggym.kspace import simulation
from seggym.kspace.acquisition import Acquisition, prepare


@dataclass
class Slices:
    image: np.ndarray
    label: np.ndarray
    spacing: tuple = (10.0, 1.5, 1.5)
    patient: str = "patient001"
    frame: str = "frame01"
    kspace: np.ndarray | None = None

    @property
    def name(self):
        return f"{self.patient}_{self.frame}"


def block(shape, rows, columns):
    label = np.zeros((1, *shape), np.uint8)
    label[:, rows[0] : rows[1], columns[0] : columns[1]] = 1
    return Slices(100.0 * label.astype(np.float32), label)


def full_image(stack, scan):
    """Reconstruction of all slices at full k-space, without phase and noise: (n, C, C)."""
    indices = torch.arange(len(stack))
    clean = simulation.encode(stack, indices, indices, scan, torch.float64)
    return simulation.zero_filled(clean, None, scan).numpy()


def edges(profile):
    """Positions where a profile crosses half of its plateau, first and last, by linear interpolation."""
    half = np.median(profile[profile > 0.5 * profile.max()]) / 2
    above = np.flatnonzero(profile > half)
    first, last = above[0], above[-1]
    rising = first - (profile[first] - half) / (profile[first] - profile[first - 1])
    falling = last + (profile[last] - half) / (profile[last] - profile[last + 1])
    return rising, falling


QUIET = {"snr": None, "phase": (0.0, 0.0), "echo_shift": 0.0}


@pytest.mark.parametrize("shape", [(160, 160), (200, 256), (255, 201), (171, 171), (320, 320), (96, 100)])
@pytest.mark.parametrize(("matrix", "crop"), [(160, 128), (129, 97), (128, 96)])
def test_labels_lie_on_the_image(shape, matrix, crop):
    """The edges of a block in the reconstruction and in the labels agree within half a pixel of the coarser grid."""
    scan = Acquisition(matrix=matrix, crop=crop, **QUIET)
    height, width = shape
    volume = block(shape, (height // 2 - height // 6, height // 2 + height // 8), (width // 3, width // 2 + width // 7))
    stack = prepare([volume], scan, 2)
    image, label = full_image(stack, scan)[0], stack.labels[0].numpy()
    assert image.shape == label.shape == (crop, crop)
    side = max(shape) + max(shape) % 2
    tolerance = 0.5 * max(1.0, matrix / side) + 0.1
    for axis in (0, 1):
        inside = np.flatnonzero(label.any(1 - axis))
        middle = int(np.median(np.flatnonzero(label.any(axis))))
        profile = image.take(middle, 1 - axis)
        first, last = edges(profile)
        assert first == pytest.approx(inside[0] - 0.5, abs=tolerance)
        assert last == pytest.approx(inside[-1] + 0.5, abs=tolerance)
    area = label.sum() * (side / matrix) ** 2
    assert area == pytest.approx(volume.label.sum(), rel=0.08)


def test_intensities_and_spacing_survive_the_change_of_grid():
    scan = Acquisition(matrix=160, crop=128, **QUIET)
    volume = Slices(np.full((2, 200, 256), 70.0, np.float32), np.zeros((2, 200, 256), np.uint8), (8.0, 1.4, 1.2))
    stack = prepare([volume], scan, 4)
    image = full_image(stack, scan)
    # The middle of the padded rows is a plateau.
    assert image[0, 64, 64] == pytest.approx(70, rel=0.02)
    step = 256 / 160
    np.testing.assert_allclose(stack.spacing.numpy(), [[8.0, 1.4 * step, 1.2 * step]] * 2, rtol=1e-6)
    assert stack.names == ["patient001_frame01_slice0", "patient001_frame01_slice1"]
    assert stack.images.dtype == torch.float32
    assert stack.labels.dtype == torch.uint8


def test_k_space_is_cropped_not_the_image():
    """A fine grid of lines vanishes, and the object outside the network's crop is still in the signal."""
    scan = Acquisition(matrix=64, crop=32, **QUIET)
    stripes = np.tile(np.array([0.0, 100.0], np.float32), (1, 256, 128))
    image = full_image(prepare([Slices(stripes, np.zeros((1, 256, 256), np.uint8))], scan, 2), scan)[0]
    np.testing.assert_allclose(image, 50, atol=1)
    outside = np.zeros((1, 256, 256), np.float32)
    outside[:, 100:156, 4:30] = 100
    stack = prepare([Slices(outside, np.zeros((1, 256, 256), np.uint8))], scan, 2)
    few = torch.zeros(1, 64, dtype=torch.bool)
    few[:, 30:35] = True
    index = torch.tensor([0])
    folded = simulation.zero_filled(simulation.encode(stack, index, index, scan, torch.float64), few, scan)
    assert full_image(stack, scan).max() < 12
    assert float(folded.max()) > 4


@pytest.mark.parametrize("snr", [5.0, 20.0])
def test_noise_has_the_stated_level(snr):
    scan = Acquisition(matrix=96, crop=64, snr=snr)
    rng = np.random.default_rng(0)
    volume = Slices(rng.uniform(50, 150, (3, 120, 120)).astype(np.float32), np.zeros((3, 120, 120), np.uint8))
    stack = prepare([volume], scan, 2)
    indices = torch.arange(3)
    noise = simulation.thermal_noise(stack, indices, indices + 10, scan)
    image = simulation.reconstruct(noise, None, scan)[:, 0].numpy()
    sigma = (stack.signal / snr).numpy()
    for index in range(3):
        for part in (image[index].real, image[index].imag):
            assert part.std() == pytest.approx(sigma[index], rel=0.05)
            assert abs(part.mean()) < 4 * sigma[index] / 64
    centre = volume.image[:, 45:75, 45:75].mean()
    assert float(stack.signal.mean()) == pytest.approx(centre, rel=0.05)


def test_noise_free_scans_have_no_noise():
    scan = Acquisition(matrix=48, crop=32, snr=None)
    stack = prepare([block((60, 60), (20, 40), (20, 40))], scan, 2)
    noise = simulation.thermal_noise(stack, torch.tensor([0]), torch.tensor([1]), scan)
    assert (noise.shape, noise.dtype) == ((1, 1, 48, 48), torch.complex64)
    assert not noise.any()


def test_a_scan_without_noise_can_be_recorded():
    scan = Acquisition(snr=math.inf)
    assert scan == Acquisition(snr=None)
    stored = json.loads(json.dumps(scan.as_dict(), allow_nan=False))
    assert Acquisition(**stored) == scan
    for snr in (0.0, -1.0, math.nan, -math.inf):
        with pytest.raises(SeggymError, match=r"positive number \(null for"):
            Acquisition(snr=snr)


@pytest.mark.parametrize("size", [48, 49])
def test_phase_has_the_stated_amplitude_and_echo_shift(size):
    keys = torch.arange(5)
    amplitude = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    phase = simulation.smooth_phase(keys, amplitude, torch.zeros(5, dtype=torch.float64), size)
    torch.testing.assert_close(phase.amax((1, 2)), amplitude)
    torch.testing.assert_close(phase.amin((1, 2)), -amplitude)
    shifted = simulation.smooth_phase(keys, amplitude, torch.full((5,), 3.0, dtype=torch.float64), size) - phase
    torch.testing.assert_close(shifted.diff(dim=2), torch.full_like(shifted.diff(dim=2), 2 * torch.pi * 3 / size))
    assert shifted.diff(dim=1).abs().max() < 1e-12


def test_the_echo_lies_where_the_shift_says():
    scan = Acquisition(matrix=48, crop=32, phase=(0.0, 0.0), echo_shift=4.0)
    seen = set()
    for number in range(12):
        volume = block((60, 60), (20, 40), (20, 40))
        volume.patient = f"patient{number:03d}"
        stack = prepare([volume], scan, 2)
        hybrid = simulation.encode(stack, torch.tensor([0]), torch.tensor([5]), scan, torch.float64)
        strongest = int(hybrid[0, 0].abs().square().sum(0).argmax()) - scan.dc
        assert abs(strongest - float(stack.echo_shift[0])) <= 0.51
        seen.add(strongest)
    assert len(seen) > 3


def test_patients_keep_their_phase_and_differ_from_each_other():
    scan = Acquisition(matrix=48, crop=32)
    volumes = []
    for patient in ("patient001", "patient002"):
        for frame in ("frame01", "frame09"):
            volume = block((60, 60), (20, 40), (20, 40))
            volume.patient, volume.frame = patient, frame
            volumes.append(volume)
    stack = prepare(volumes, scan, 2)
    for draws, (low, high) in ((stack.phase_amplitude, (0.5, 3.0)), (stack.echo_shift, (-4.0, 4.0))):
        assert draws[0] == draws[1]
        assert draws[2] == draws[3]
        assert draws[0] != draws[2]
        assert bool(((draws >= low) & (draws <= high)).all())
    alone = prepare(volumes[2:], scan, 2)
    torch.testing.assert_close(alone.phase_amplitude, stack.phase_amplitude[2:], rtol=0, atol=0)


def test_nothing_to_scan_is_one_sentence():
    with pytest.raises(SeggymError, match="no slice to scan"):
        prepare([], Acquisition(), 4)
