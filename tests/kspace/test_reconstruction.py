"""What every reconstruction promises, and the errors of those that cannot be made."""

import pytest
import torch

from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.lines import mirrored, symmetric_half_width
from seggym.kspace.reconstruction.methods import METHODS, make_reconstruction, parse_reconstruction
from seggym.kspace.simulation import zero_filled

SCAN = Acquisition(matrix=24, crop=16, coils=3)


def measured(count, acquisition=SCAN, seed=0):
    """Random hybrid space complex128 and masks, the centre measured: one-sided, centre-out, irregular, every other."""
    generator = torch.Generator().manual_seed(seed)
    matrix = acquisition.matrix
    shape = (count, acquisition.coils, matrix, matrix)
    hybrid = torch.complex(*torch.randn(2, *shape, dtype=torch.float64, generator=generator))
    distance = torch.arange(matrix) - matrix // 2
    kinds = [
        (distance >= -2) & (distance < 7),
        distance.abs() < 5,
        (torch.rand(matrix, generator=generator) < 0.4) | (distance.abs() < 2),
        (distance % 2 == 0) | (distance.abs() < 4),
    ]
    return hybrid, torch.stack([kinds[index % 4] for index in range(count)])


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_single_calls(method):
    hybrid, acquired = measured(9)
    together = METHODS[method](hybrid, acquired, SCAN)
    assert (together.shape, together.dtype) == ((9, 16, 16), torch.float64)
    for index in range(9):
        one = slice(index, index + 1)
        torch.testing.assert_close(METHODS[method](hybrid[one], acquired[one], SCAN), together[one], rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_unmeasured_lines_are_never_read(method):
    hybrid, acquired = measured(4)
    other = torch.where(acquired[:, None, None, :], hybrid, torch.nan)
    if method == "zero_filled":  # a product with the mask: what the engine's sums are equal to
        other = torch.where(acquired[:, None, None, :], hybrid, 1e6)
    assert torch.equal(METHODS[method](hybrid, acquired, SCAN), METHODS[method](other, acquired, SCAN))


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_is_close_to_double(method):
    hybrid, acquired = measured(4)
    exact = METHODS[method](hybrid, acquired, SCAN)
    rounded = METHODS[method](hybrid.to(torch.complex64), acquired, SCAN)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["homodyne", "pocs", "grappa"])
def test_with_every_line_the_direct_transform_remains(method):
    hybrid, _ = measured(2)
    every = torch.ones(2, 24, dtype=torch.bool)
    torch.testing.assert_close(METHODS[method](hybrid, every, SCAN), zero_filled(hybrid, None, SCAN), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_scan_is_black(method):
    _, acquired = measured(4)
    image = METHODS[method](torch.zeros(4, 3, 24, 24, dtype=torch.complex64), acquired, SCAN)
    assert torch.equal(image, torch.zeros(4, 16, 16))


def test_the_symmetric_centre_by_hand():
    masks = torch.zeros(5, 8, dtype=torch.bool)  # DC is line 4
    masks[0, [3, 4, 5]] = True
    masks[1, [2, 3, 4, 5, 6]] = masks[1, 0] = True
    masks[2, [3, 4, 6]] = True
    masks[3, [3, 5]] = True
    masks[4] = True
    assert symmetric_half_width(masks).tolist() == [1, 2, 0, -1, 3]
    assert mirrored(masks)[2].tolist() == [False, False, True, False, True, True, False, False]
    odd = torch.zeros(1, 7, dtype=torch.bool)  # DC is line 3
    odd[0, [0, 2, 3, 4]] = True
    assert symmetric_half_width(odd).tolist() == [1]
    assert mirrored(odd)[0].nonzero()[:, 0].tolist() == [2, 3, 4, 6]
    assert symmetric_half_width(torch.ones(1, 7, dtype=torch.bool)).tolist() == [3]


@pytest.mark.parametrize("method", ["homodyne", "pocs", "total_variation"])
def test_an_odd_matrix(method):
    scan = Acquisition(matrix=25, crop=16, coils=1)
    hybrid, acquired = measured(4, scan)
    assert METHODS[method](hybrid, acquired, scan).isfinite().all()


def test_options_reach_the_method():
    hybrid, acquired = measured(4)
    method, options = parse_reconstruction({"method": "pocs", "iterations": 2})
    made = make_reconstruction(method, options, SCAN)
    assert torch.equal(made(hybrid, acquired, SCAN), METHODS["pocs"](hybrid, acquired, SCAN, iterations=2))
    assert not torch.equal(made(hybrid, acquired, SCAN), METHODS["pocs"](hybrid, acquired, SCAN))
    assert parse_reconstruction("sense") == ("sense", {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "no reconstruction"),
        ({"iterations": 3}, "no reconstruction"),
        ("compressed", "unknown, expected one of zero_filled"),
        ({"method": "pocs", "steps": 3}, "reconstruction.steps is unknown, expected some of iterations"),
        ({"method": "pocs", "iterations": "3"}, "expected int"),
        ({"method": "pocs", "iterations": 0}, "must be positive"),
        ({"method": "grappa", "readout": 2}, "must be odd"),
        ({"method": "sense", "sensitivities": "guessed"}, "estimated or known"),
    ],
)
def test_what_cannot_be_made_is_a_sentence(value, message):
    with pytest.raises(SeggymError, match=message):
        make_reconstruction(*parse_reconstruction(value), SCAN)


def test_parallel_imaging_needs_coils():
    with pytest.raises(SeggymError, match=r"acquisition\.coils is 1"):
        make_reconstruction("sense", {}, Acquisition())
