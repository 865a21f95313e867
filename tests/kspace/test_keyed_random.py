"""Random numbers by key: distribution, independence, and the same bits in every batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from seggym.kspace.keyed_random import complex_normal, key_of, random_bits, uniform

MASK = 2**64 - 1


def splitmix64(state):
    """The reference generator in Python integers: next output and state (Steele, Lea and Flood, 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31), state


def test_bits_are_those_of_splitmix64():
    def finalise(z):
        return splitmix64((z - 0x9E3779B97F4A7C15) & MASK)[0]

    for key, stream in ((0, 0), (1, 10), (2**63 - 1, 3), (-5, 11)):
        state = finalise((key + finalise(((stream + 1) * 0x9E3779B97F4A7C15) & MASK)) & MASK)
        expected = []
        for _ in range(5):
            output, state = splitmix64(state)
            expected.append(output)
        found = random_bits(torch.tensor([key]), stream, 5)[0].tolist()
        assert [value & MASK for value in found] == expected


@pytest.mark.parametrize("keys", [torch.arange(20_000), torch.arange(20_000) * 2**40, -torch.arange(20_000) * 977])
def test_first_draws_of_many_keys_are_uniform(keys):
    for stream in (0, 1, 10):
        draws = uniform(keys, stream, 1)[:, 0].numpy()
        assert stats.kstest(draws, "uniform").pvalue > 1e-3


def test_draws_of_one_key_are_uniform_and_uncorrelated():
    draws = uniform(torch.tensor([12345]), 7, 100_000)[0].numpy()
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.015
    assert 0 < draws.min() < draws.max() < 1
    scaled = uniform(torch.tensor([12345]), 7, 1000, -2.0, 6.0)[0].numpy()
    np.testing.assert_allclose(scaled, -2 + 8 * draws[:1000], atol=1e-6)


def test_streams_and_neighbouring_keys_are_independent():
    keys = torch.arange(20_000)
    first = uniform(keys, 0, 2).numpy()
    others = [uniform(keys, 1, 1)[:, 0].numpy(), uniform(keys + 1, 0, 1)[:, 0].numpy(), first[:, 1]]
    for other in others:
        assert abs(np.corrcoef(first[:, 0], other)[0, 1]) < 0.03
        table, _, _ = np.histogram2d(first[:, 0], other, bins=8)
        assert stats.chi2_contingency(table).pvalue > 1e-3
    assert len(np.unique(random_bits(keys, 0, 4).numpy())) == 80_000


def test_complex_normal():
    noise = complex_normal(torch.arange(20), 11, 5000).numpy().ravel()
    for part in (noise.real, noise.imag):
        assert stats.kstest(part, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise.real, noise.imag)[0, 1]) < 0.015
    assert np.isfinite(noise).all()


def test_a_batch_does_not_change_the_bits():
    keys = torch.tensor([3, -7, 2**62, 0, 11])
    together = uniform(keys, 5, 33)
    normal = complex_normal(keys, 5, 33)
    for index in range(len(keys)):
        assert torch.equal(uniform(keys[index : index + 1], 5, 33)[0], together[index])
        assert torch.equal(complex_normal(keys[index : index + 1], 5, 33)[0], normal[index])
    assert torch.equal(uniform(keys, 5, 10), together[:, :10])


def test_key_of_text_is_pinned():
    """It must be the same in every process and version: patients keep their phase."""
    assert key_of("patient001") == -5881145408690347738
    assert key_of("patient001") != key_of("patient002")
    assert -(2**63) <= key_of("x") < 2**63
