"""SSIM, PSNR and NMSE against scikit-image and numbers worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from seggym.errors import SeggymError
from seggym.reward_models.image_quality import encode_reference, nmse, psnr, ssim


def random_pair(seed, height, width, scale=1.0, pedestal=0.0, contrast=1.0, batch=3):
    """Reference, noisy image and data range (above the maximum, as a volume's is), float64."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    pattern = np.sin(9 * rows * generator.random((batch, 1, 1))) * np.cos(11 * columns) + (rows > 0.5)
    reference = scale * (pedestal + contrast * (pattern + 2))
    image = np.abs(reference + scale * contrast * 0.2 * generator.normal(size=reference.shape))
    return reference, image, reference.max(axis=(1, 2)) * generator.uniform(1, 1.5, batch)


def skimage_ssim(reference, image, data_range):
    options = {"win_size": 7, "gaussian_weights": False, "use_sample_covariance": True}
    return np.array(
        [
            structural_similarity(r, i, data_range=extent, **options)
            for r, i, extent in zip(reference, image, data_range, strict=True)
        ]
    )


def skimage_psnr(reference, image, data_range):
    return np.array(
        [
            peak_signal_noise_ratio(r, i, data_range=extent)
            for r, i, extent in zip(reference, image, data_range, strict=True)
        ]
    )


def tensors(*arrays, dtype=torch.float64):
    return [torch.from_numpy(array).to(dtype) for array in arrays]


sizes = st.integers(7, 40)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), height=sizes, width=sizes, scale=st.sampled_from([1e-3, 1.0, 4000.0]))
def test_float64_equals_skimage(seed, height, width, scale):
    case = random_pair(seed, height, width, scale)
    reference, image, data_range = tensors(*case)
    terms = encode_reference(reference, data_range)
    expected = skimage_ssim(case[0], case[1], case[2])
    np.testing.assert_allclose(ssim(image, terms).numpy(), expected, atol=1e-10, rtol=0)
    np.testing.assert_allclose(psnr(image, terms).numpy(), skimage_psnr(*case), atol=1e-9, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pedestal=st.sampled_from([0.0, 10.0, 100.0]),
    contrast=st.sampled_from([1.0, 0.1]),
)
def test_float32_stays_within_1e_5_of_skimage_in_float64(seed, pedestal, contrast):
    # A high pedestal is the case in which naive float32 loses the variance of a window.
    case = random_pair(seed, 64, 48, pedestal=pedestal, contrast=contrast)
    reference, image, data_range = tensors(*case, dtype=torch.float32)
    found = ssim(image, encode_reference(reference, data_range))
    assert found.dtype == torch.float32
    rounded = [part.double().numpy() for part in (reference, image, data_range)]
    np.testing.assert_allclose(found.numpy(), skimage_ssim(*rounded), atol=1e-5, rtol=0)


def test_image_equal_to_its_reference():
    for dtype, ceiling in ((torch.float32, 138.47), (torch.float64, 313.07)):
        reference, _, data_range = tensors(*random_pair(0, 32, 32), dtype=dtype)
        terms = encode_reference(reference, data_range)
        assert ssim(reference, terms).tolist() == pytest.approx([1.0] * 3)
        assert psnr(reference, terms).tolist() == pytest.approx([ceiling] * 3, abs=0.01)
        assert nmse(reference, terms).tolist() == [0.0] * 3


def test_constant_images_by_hand():
    # Without variance SSIM is its luminance factor, (2ab + c) / (a^2 + b^2 + c) with c = (0.01 L)^2.
    terms = encode_reference(torch.full((1, 9, 9), 3.0).double(), torch.tensor([10.0]))
    image = torch.full((1, 9, 9), 1.0).double()
    assert ssim(image, terms).item() == pytest.approx((2 * 3 * 1 + 0.01) / (9 + 1 + 0.01), rel=1e-6)
    assert psnr(image, terms).item() == pytest.approx(10 * np.log10(100 / 4), rel=1e-6)
    assert nmse(image, terms).item() == pytest.approx(4 / 9, rel=1e-6)


def test_nmse_by_definition_and_at_zero():
    case = random_pair(5, 20, 30)
    reference, image, data_range = tensors(*case)
    terms = encode_reference(reference, data_range)
    expected = ((case[0] - case[1]) ** 2).sum(axis=(1, 2)) / (case[0] ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(nmse(image, terms).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(nmse(torch.zeros_like(image), terms).numpy(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("score", [ssim, psnr, nmse])
def test_a_batch_scores_bit_for_bit_as_its_members(score):
    reference, image, data_range = tensors(*random_pair(2, 33, 29, batch=6))
    together = score(image, encode_reference(reference, data_range))
    alone = [score(image[i : i + 1], encode_reference(reference[i : i + 1], data_range[i : i + 1])) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_bad_shapes_are_refused_with_a_sentence():
    with pytest.raises(SeggymError, match="7 x 7"):
        encode_reference(torch.ones(1, 6, 20), torch.ones(1))
    with pytest.raises(SeggymError, match="one data range per image"):
        encode_reference(torch.ones(2, 20, 20), torch.ones(1))
    with pytest.raises(SeggymError, match="same crop"):
        ssim(torch.ones(1, 20, 21), encode_reference(torch.ones(1, 20, 20), torch.ones(1)))
