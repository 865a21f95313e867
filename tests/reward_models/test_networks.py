"""Networks: shapes, parity with MONAI, the shift of UNeXt, and the messages of the registry."""

import numpy as np
import pytest
import torch
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch import nn

from seggym.errors import SeggymError
from seggym.reward_models.networks import ARCHITECTURES, UNetPlusPlus, build_network
from seggym.reward_models.unext import ShiftedMLP, shift

SMALL = {"unet": [4, 6, 8], "unetpp": [4, 4, 6, 8, 10, 4], "unext": [4, 6, 8, 10, 15]}


@pytest.mark.parametrize("size", [96, 128])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_logits_have_the_size_of_the_image_and_features_the_stated_count(architecture: str, size: int) -> None:
    network = build_network(architecture, 4).eval()
    with torch.inference_mode():
        logits, features = network(torch.randn(1, 1, size, size))
    assert logits.shape == (1, 4, size, size)
    assert features.shape[:2] == (1, network.num_features)
    assert max(features.shape[2:]) < size // 4


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_parameter_gets_a_gradient(architecture: str) -> None:
    # Distributed training stops at a parameter without one.
    network = build_network(architecture, 3, widths=SMALL[architecture])
    network(torch.randn(2, 1, 64, 64))[0].square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_network_can_fit_one_image(architecture: str) -> None:
    torch.manual_seed(0)
    network = build_network(architecture, 2, widths=SMALL[architecture])
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[0, 16:40, 20:50] = 1
    target[1, 30:60, 8:30] = 1
    image = target.unsqueeze(1) + 0.1 * torch.randn(2, 1, 64, 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(network(image)[0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(image)[0].argmax(1) == target).float().mean() > 0.95


def test_a_network_with_group_norm_is_the_same_in_training_and_in_evaluation() -> None:
    torch.manual_seed(0)
    network = build_network("unet", 3, widths=[6, 8, 16], norm="group", in_channels=2)
    x = torch.randn(3, 2, 16, 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained = network.train()(x)[0]
    assert torch.equal(trained, network.eval()(x)[0])
    torch.testing.assert_close(trained[1:2], network(x[1:2])[0])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 8
    assert all(norm.num_channels >= 2 * norm.num_groups for norm in norms)


def test_unetpp_equals_monai() -> None:
    torch.manual_seed(0)
    network = build_network("unetpp", 4, widths=SMALL["unetpp"]).eval()
    assert isinstance(network, UNetPlusPlus)
    reference = BasicUNetPlusPlus(2, 1, 4, tuple(SMALL["unetpp"]), norm=("batch", {"affine": True}), bias=False).eval()
    missing = reference.load_state_dict(network.nodes.state_dict(), strict=False)
    assert all("final_conv" in name for name in missing.missing_keys)
    assert not missing.unexpected_keys
    x = torch.randn(2, 1, 48, 64)
    logits, features = network(x)
    assert torch.equal(logits, reference(x)[0])
    encoder = x
    for level in range(5):
        encoder = getattr(reference, f"conv_{level}_0")(encoder)
    assert torch.equal(features, encoder)


@pytest.mark.parametrize("dim", [2, 3])
def test_shift_moves_five_groups_by_minus_two_to_two(dim: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 16, 6, 7))
    shifted = shift(torch.from_numpy(x), dim).numpy()
    expected = []
    for group, part in enumerate(np.array_split(x, 5, axis=1)):
        moved, offset, size = np.roll(part, group - 2, axis=dim), group - 2, part.shape[dim]
        came_round = range(offset) if offset > 0 else range(size + offset, size)
        np.moveaxis(moved, dim, 0)[list(came_round)] = 0
        expected.append(moved)
    np.testing.assert_array_equal(shifted, np.concatenate(expected, axis=1))


def test_a_shifted_mlp_sees_its_neighbours_and_not_further() -> None:
    torch.manual_seed(0)
    block = ShiftedMLP(10).eval()
    x = torch.randn(1, 10, 15, 15, requires_grad=True)
    block(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    reached = x.grad.abs().sum(dim=(0, 1)) > 0
    # Two pixels by the shift of each axis and one by the depthwise convolution.
    assert reached[4:11, 4:11].any(dim=0).all()
    assert reached[4:11, 4:11].any(dim=1).all()
    assert reached.sum() == reached[4:11, 4:11].sum()


@pytest.mark.parametrize(
    ("architecture", "outputs", "options", "message"),
    [
        ("resnet", 4, {}, "resnet.*unet, unetpp, unext"),
        ("unet", 0, {}, "num_outputs"),
        ("unet", 4, {"depth": 3}, "depth.*widths"),
        ("unet", 4, {"widths": [16]}, "widths"),
        ("unet", 4, {"widths": [16, -1]}, "widths"),
        ("unet", 4, {"widths": "16"}, "widths"),
        ("unet", 4, {"norm": "layer"}, "norm.*batch.*group"),
        ("unet", 4, {"in_channels": 0}, "in_channels.*positive"),
        ("unetpp", 4, {"widths": [8, 8]}, "6 positive"),
        ("unext", 4, {"widths": 8}, "5 positive"),
    ],
)
def test_bad_requests_are_one_sentence(architecture: str, outputs: int, options: dict, message: str) -> None:
    with pytest.raises(SeggymError, match=message):
        build_network(architecture, outputs, **options)
