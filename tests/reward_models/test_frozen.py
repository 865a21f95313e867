"""Frozen inference: equality with the unfused network, micro-batches, precision, normalisation and the cache."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.reward_models.checkpoints import WEIGHTS, ModelCard, save_network
from seggym.reward_models.frozen import (
    FrozenNetwork,
    load_frozen,
    normalise,
    resolve_device,
    resolve_precision,
)
from seggym.reward_models.inference import fold_batch_norm
from seggym.reward_models.networks import ARCHITECTURES, build_network

SMALL = {"unet": [4, 6, 8], "unetpp": [4, 4, 6, 8, 10, 4], "unext": [4, 6, 8, 10, 15]}


def trained_like(architecture: str) -> nn.Module:
    """A small network whose batch norms have statistics and weights unlike the initial ones."""
    torch.manual_seed(0)
    network = build_network(architecture, 4, widths=SMALL[architecture]).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            state = module.state_dict()  # shares its memory with the module
            for name in ("running_mean", "bias"):
                state[name].normal_(0, 0.3)
            for name in ("running_var", "weight"):
                state[name].uniform_(0.5, 1.5)
    return network


def images(count: int) -> torch.Tensor:
    return 300 * torch.rand(count, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_frozen_equals_the_unfused_network(architecture: str) -> None:
    network = trained_like(architecture)
    before = copy.deepcopy(network.state_dict())
    batch = images(3)
    prediction = FrozenNetwork(network)(batch)
    with torch.no_grad():
        logits, bottleneck = network(normalise(batch))
    torch.testing.assert_close(prediction.probabilities, logits.softmax(1), atol=1e-4, rtol=0)
    expected = torch.cat([bottleneck.mean((2, 3)), bottleneck.flatten(2).max(2).values], dim=1)
    torch.testing.assert_close(prediction.features, expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_no_batch_norm_is_left(architecture: str) -> None:
    folded = fold_batch_norm(trained_like(architecture))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_a_batch_norm_that_follows_no_convolution_stays_and_still_counts() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), norm).eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(fold_batch_norm(network)(x), network(x))


def test_micro_batches_change_nothing_but_memory() -> None:
    network = trained_like("unet")
    whole = FrozenNetwork(network, precision="fp64", max_batch=7)(images(7))
    parts = FrozenNetwork(network, precision="fp64", max_batch=2)(images(7))
    torch.testing.assert_close(parts.probabilities, whole.probabilities, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.features, whole.features, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("precision", "dtype", "error"), [("bf16", torch.float32, 0.1), ("fp64", torch.float64, 1e-5)])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_other_precisions_stay_close(architecture: str, precision: str, dtype: torch.dtype, error: float) -> None:
    network = trained_like(architecture)
    reference = FrozenNetwork(network)(images(2))
    other = FrozenNetwork(network, precision=precision)(images(2))
    assert other.probabilities.dtype == other.features.dtype == dtype
    assert (other.probabilities - reference.probabilities).abs().max() < error
    torch.testing.assert_close(other.probabilities.sum(1), torch.ones(2, 64, 64, dtype=dtype))


def test_results_may_enter_a_graph() -> None:
    features = FrozenNetwork(trained_like("unet"))(images(6)).features
    layer = nn.Linear(features.shape[1], 1)
    layer(features).sum().backward()
    assert layer.weight.grad is not None


def test_normalise_is_a_z_score_whatever_the_scale() -> None:
    batch = images(3)
    expected = (batch.numpy() - batch.numpy().mean((1, 2), keepdims=True)) / batch.numpy().std((1, 2), keepdims=True)
    np.testing.assert_allclose(normalise(batch)[:, 0].numpy(), expected, atol=1e-3)
    torch.testing.assert_close(normalise(batch), normalise(batch * 1e-9), atol=1e-4, rtol=1e-4)
    assert normalise(batch.double()).dtype == torch.float64
    assert normalise(batch.half()).dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, 1.0, 1234.5678])
def test_a_constant_image_has_no_structure_after_normalise(value: float) -> None:
    assert normalise(torch.full((1, 37, 41), value)).abs().max() < 0.01


def save(folder: Path, task: str = "segmentation") -> None:
    card = ModelCard("unet", {"widths": [4, 6, 8]}, 4, ["background", "a", "b", "c"], task, 64, ["p1"], "phantom", "0")
    save_network(folder, trained_like("unet"), card)


def test_a_folder_is_loaded_once_until_its_files_change(tmp_path: Path) -> None:
    save(tmp_path / "net")
    (tmp_path / "link").symlink_to(tmp_path / "net")
    first = load_frozen(tmp_path / "net")
    assert load_frozen(tmp_path / "link") is first
    assert load_frozen(tmp_path / "net", precision="bf16") is not first
    os.utime(tmp_path / "net" / WEIGHTS, ns=(1, 1))
    assert load_frozen(tmp_path / "net") is not first


def test_a_reconstruction_network_has_no_probabilities(tmp_path: Path) -> None:
    save(tmp_path, task="reconstruction")
    with pytest.raises(SeggymError, match="reconstruction"):
        load_frozen(tmp_path)


def test_auto_is_one_of_the_two_and_bad_names_are_one_sentence() -> None:
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(SeggymError, match=r"int8.*fp32, bf16"):
        resolve_precision("int8", torch.device("cpu"))
    for device in ("gpu", "cuda:99"):
        with pytest.raises(SeggymError, match=device):
            resolve_device(device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees_with_the_processor() -> None:
    network = trained_like("unet")
    gpu = FrozenNetwork(network, device="cuda")(images(5).cuda())
    torch.testing.assert_close(
        gpu.probabilities.cpu(), FrozenNetwork(network)(images(5)).probabilities, atol=1e-4, rtol=0
    )


def segment_images(frozen: FrozenNetwork) -> None:
    frozen(images(1))


def reconstruct_lines(frozen: FrozenNetwork) -> None:
    scan = Acquisition(matrix=64, crop=64)
    frozen.reconstruct(torch.complex(images(1), images(1))[:, None], torch.ones(1, 64, dtype=torch.bool), scan)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("call", [segment_images, reconstruct_lines])
def test_cudnn_neither_rounds_nor_chooses_by_the_clock(precision: str, call: Any) -> None:
    """The settings of cuDNN during the forward pass, as a GPU would see them; they are the user's again afterwards."""
    frozen = FrozenNetwork(trained_like("unet"), precision=precision)
    during: list[tuple[bool, bool, bool]] = []
    flags = torch.backends.cudnn
    frozen.network.register_forward_hook(
        lambda *_: during.append((flags.allow_tf32, flags.benchmark, flags.deterministic))
    )
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        call(frozen)
        frozen.device = torch.device("cuda")
        call(frozen)
        assert flags.allow_tf32
    assert during == [(True, True, False), (False, False, True)]
