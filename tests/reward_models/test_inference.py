"""Rewrites for inference: the same function as the module that they replace, and nothing else replaced."""

import pytest
import torch
from torch import nn

from seggym.reward_models.inference import DoublingConvolution, HalvingMaxPool, for_inference


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (9, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_halving_is_max_pooling(size, layout):
    x = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    assert torch.equal(HalvingMaxPool()(x), nn.MaxPool2d(2)(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_doubling_is_the_transposed_convolution(bias, layout):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=bias).double()
    x = torch.randn(3, 6, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
    doubling = DoublingConvolution(up).double()
    torch.testing.assert_close(doubling(x), up(x), atol=1e-12, rtol=0)


def kinds(network: nn.Module) -> list[str]:
    return [type(module).__name__ for module in network]  # type: ignore[attr-defined]  # a Sequential


def test_only_what_computes_the_same_is_replaced():
    network = nn.Sequential(
        nn.MaxPool2d(2),
        nn.MaxPool2d(3),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ConvTranspose2d(2, 2, 2, stride=2),
        nn.ConvTranspose2d(2, 2, 3, stride=2),
        nn.ConvTranspose2d(2, 2, 2, stride=2, groups=2),
        nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1),
    )
    before = kinds(network)
    assert kinds(for_inference(network, torch.float32)) == ["HalvingMaxPool", *before[1:]]
    expected = ["HalvingMaxPool", *before[1:5], "DoublingConvolution", *before[6:]]
    assert kinds(for_inference(network, torch.bfloat16)) == expected
    assert kinds(network) == before
