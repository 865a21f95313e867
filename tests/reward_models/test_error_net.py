"""The error net: what it learns, that it is calibrated and reproducible, and its files."""

import json
from dataclasses import replace

import pytest
import torch
from drawn_hearts import NAMES, hearts, people, taught_policy
from torch.nn import functional

from seggym.errors import SeggymError
from seggym.reward_models import error_training
from seggym.reward_models.calibration import boundary_band, score_pixels
from seggym.reward_models.checkpoints import CARD, WEIGHTS, save_network
from seggym.reward_models.error_net import ErrorNet, load_error_net, log_odds
from seggym.reward_models.error_training import ErrorNetSettings, error_loss, train_error_net, weighted_bce
from seggym.reward_models.frozen import normalise
from seggym.reward_models.networks import UNet
from seggym.reward_models.reward_pairs import PairSettings, build_reward_pairs, policy_logits

SHORT = ErrorNetSettings(iterations=120, widths=(8, 16), validate_every=40, learning_rate=5e-3)


@pytest.fixture(scope="module")
def policy():
    return taught_policy(*hearts(24))


@pytest.fixture(scope="module")
def pairs(policy):
    images, masks = hearts(24, slope=0.4)
    return build_reward_pairs(policy, images, *people(24), class_names=NAMES, truths=masks)[0]


@pytest.fixture(scope="module")
def net(pairs):
    return train_error_net(pairs, SHORT)


def test_it_finds_the_errors_of_a_policy_on_unseen_hearts(net, policy):
    images, truths = hearts(20, seed=9, slope=0.4)
    masks = policy_logits(policy, images).argmax(1)
    scores = score_pixels(net(images, masks), masks, truths)
    softmax = policy_logits(policy, images).softmax(1).amax(1)
    assert 0.4 < scores["accuracy"] < 0.98
    assert scores["auroc"] > 0.7
    # The policy's own confidence is the weaker detector, which is what the net is for.
    assert scores["brier"] < score_pixels(softmax, masks, truths)["brier"]
    right, wrong = net(images, truths), net(images, truths.roll(6, -1))
    assert float(right.mean()) > float(wrong.mean()) + 0.05


def test_it_follows_from_the_seed(net, pairs):
    again = train_error_net(pairs, SHORT)
    assert again.temperature == net.temperature
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), net.parameters(), strict=True))


def test_it_may_begin_as_a_segmentation_network(pairs):
    """Then it tells the labels as that network does, whatever the mask."""
    torch.manual_seed(3)
    network = UNet(len(NAMES), (8, 16), norm="group").eval()
    net = ErrorNet.of_segmentation(network, NAMES, contrast=0.2).eval()
    images, masks = pairs.images[:4], pairs.truths[:4]
    with torch.no_grad():
        expected = network(0.2 * normalise(images[:, 0]))[0]
        assert torch.allclose(net.label_logits(images, masks), expected, atol=1e-5)
        assert torch.equal(net.label_logits(images, masks), net.label_logits(images, 0 * masks))
    taught = train_error_net(pairs, replace(SHORT, iterations=3), net)
    assert not torch.equal(taught.label_logits(images, masks), taught.label_logits(images, 0 * masks))
    with pytest.raises(SeggymError, match=r"the error net knows 2 classes \(a, b\), the masks have 3"):
        ErrorNet.of_segmentation(network, ("a", "b"), contrast=0.2)


def test_validation_patients_are_not_trained_on(pairs, monkeypatch):
    shown = []

    class Watched(error_training._Batches):
        def __init__(self, dataset, *rest):
            shown.extend(dataset.patients)
            super().__init__(dataset, *rest)

    monkeypatch.setattr(error_training, "_Batches", Watched)
    net = train_error_net(pairs, ErrorNetSettings(**{**vars(SHORT), "iterations": 1}))
    _, val = pairs.split(SHORT.validation, SHORT.seed)
    assert not set(shown) & set(val.patients)
    # They chose its weights and its temperature all the same.
    assert set(net.patients) == set(net.labelled) == set(pairs.patients)


def test_the_temperature_is_fitted_and_used(net, pairs):
    logits = net.logits(pairs.images[:4], pairs.truths[:4])
    assert net.temperature != 1
    expected = (logits / net.temperature).sigmoid()
    assert torch.allclose(net(pairs.images[:4], pairs.truths[:4]), expected, atol=1e-6)


def test_gain_and_offset_of_an_image_do_not_matter(net, pairs):
    images, masks = pairs.images[:3], pairs.truths[:3]
    assert torch.allclose(net(images, masks), net(0.4 * images + 0.2, masks), atol=1e-3)


def test_the_probability_of_a_label_by_hand():
    """Softmax of the labels, read off at the mask."""
    label_logits = 3 * torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    masks = torch.randint(0, 4, (2, 5, 5), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    probabilities = label_logits.softmax(1)
    expected = sum(torch.where(masks == label, probabilities[:, label], 0) for label in range(4))
    assert torch.allclose(log_odds(label_logits, masks).sigmoid(), expected, atol=1e-6)
    sure = torch.tensor([400.0, 0, 0, 0]).view(1, 4, 1, 1)
    assert float(log_odds(sure, torch.ones(1, 1, 1))) == pytest.approx(-400, abs=1)


def test_masks_are_categories_not_numbers(pairs):
    """On integer labels class 2 would be twice class 1; here, classes swapped in the weights are swapped in masks."""
    net = ErrorNet(NAMES, (4, 8)).eval()
    other = ErrorNet(NAMES, (4, 8)).eval()
    other.load_state_dict(net.state_dict())
    weights = other.network.stem[0].weight
    with torch.no_grad():
        weights[:, [2, 3]] = weights[:, [3, 2]].clone()
        for parameter in other.network.head.parameters():
            parameter[[1, 2]] = parameter[[2, 1]].clone()
    masks = pairs.truths[:2]
    swapped = torch.tensor([0, 2, 1], dtype=torch.uint8)[masks.long()]
    assert torch.allclose(net(pairs.images[:2], masks), other(pairs.images[:2], swapped), atol=1e-6)
    assert not torch.allclose(net(pairs.images[:2], masks), net(pairs.images[:2], swapped), atol=1e-3)


def test_a_hidden_mask_is_not_seen(net, pairs):
    images, masks = pairs.images[:2], pairs.truths[:2]
    shown = torch.tensor([True, False])
    first, other = (net.label_logits(images, given, shown) for given in (masks, masks.roll(5, -1)))
    assert torch.equal(first[1], other[1])
    assert not torch.allclose(first[0], other[0], atol=1e-3)
    assert torch.allclose(first[0], net.label_logits(images, masks)[0], atol=1e-5)


def test_any_size_and_any_batch(net):
    images, masks = hearts(70, size=34)
    reward = net(images, masks)
    assert reward.shape == (70, 34, 34)
    assert not reward.requires_grad
    assert torch.allclose(reward[:2], net(images[:2], masks[:2].long()), atol=1e-5)
    with pytest.raises(SeggymError, match=r"found \(70, 1, 34, 34\) and \(70, 17, 17\)"):
        net(images, masks[:, :17, :17])


def test_the_loss_by_hand():
    """Weights look at the prediction alone, so they are the same where it is right and where it is wrong."""
    predictions = torch.zeros(1, 16, 16, dtype=torch.uint8)
    predictions[0, 6:10, 6:10] = 1
    correct = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.7
    logits = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(1))
    settings = ErrorNetSettings(foreground_weight=2.0, boundary_weight=5.0)
    weights = 1 + 2.0 * (predictions > 0) + 5.0 * boundary_band(predictions, 5)
    losses = functional.binary_cross_entropy(logits.sigmoid(), correct.float(), reduction="none")
    expected = float((weights * losses).sum() / weights.sum())
    assert float(weighted_bce(logits, predictions, correct, settings)) == pytest.approx(expected, rel=1e-5)
    # Of two classes the label says no more than whether the mask is correct.
    label_logits = torch.stack([torch.zeros_like(logits), torch.where(predictions > 0, logits, -logits)], 1)
    truths = torch.where(correct, predictions, 1 - predictions)
    assert float(error_loss(label_logits, predictions, truths, settings)) == pytest.approx(2 * expected, rel=1e-5)


def test_files(net, pairs, tmp_path):
    net.save(tmp_path, size=32, cohort="echo")
    again = load_error_net(tmp_path)
    assert torch.equal(again(pairs.images[:3], pairs.truths[:3]), net(pairs.images[:3], pairs.truths[:3]))
    assert (again.class_names, again.temperature) == (NAMES, net.temperature)
    assert (again.patients, again.labelled) == (net.patients, net.labelled)
    assert again.metrics == net.metrics
    assert not any(parameter.requires_grad for parameter in again.parameters())
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:-8])
    with pytest.raises(SeggymError, match=r"model\.safetensors is damaged"):
        load_error_net(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**card, "metrics": {}}))
    with pytest.raises(SeggymError, match="temperature None, expected an error net"):
        load_error_net(tmp_path)


def test_a_segmentation_network_is_no_error_net(net, policy, tmp_path):
    card = net.save(tmp_path / "errors")
    options = {"widths": [8, 16], "norm": "group", "in_channels": 1}
    parts = {**vars(card), "task": "segmentation", "num_outputs": 3, "options": options}
    save_network(tmp_path / "policy", policy, type(card)(**parts))
    with pytest.raises(SeggymError, match="has task segmentation"):
        load_error_net(tmp_path / "policy")


def test_wrong_classes_and_settings(net, pairs):
    with pytest.raises(SeggymError, match=r"knows 3 classes .* the masks have 2"):
        net.require_classes(("background", "heart"))
    with pytest.raises(SeggymError, match="widths"):
        train_error_net(pairs, ErrorNetSettings(widths=(4, 8)), start=net)
    for wrong in ({"iterations": 0}, {"fresh": 1.5}, {"hidden": -0.1}, {"boundary_weight": -1.0}):
        with pytest.raises(SeggymError, match=next(iter(wrong))):
            ErrorNetSettings(**wrong)


def test_it_goes_on_from_another(net, pairs):
    losses = []
    brief = ErrorNetSettings(**{**vars(SHORT), "iterations": 2, "learning_rate": 1e-6, "validate_every": 1})
    train_error_net(pairs, brief, start=net, progress=lambda number, loss: losses.append((number, loss)))
    assert [number for number, _ in losses] == [1, 2]
    assert losses[0][1] == pytest.approx(net.metrics["loss"], rel=0.02)


def test_images_and_fresh_masks_are_changed_at_random(pairs):
    generator = torch.Generator().manual_seed(0)
    varied = error_training.vary(pairs.images[:4], 0.5, generator)
    assert varied.shape == pairs.images[:4].shape
    assert torch.isfinite(varied).all()
    changed = {
        bool((error_training.distort(pairs.truths[:4], 3, generator) != pairs.truths[:4]).any()) for _ in range(12)
    }
    assert changed == {True}


def test_per_pixel_samples_need_per_pixel_samples(policy):
    """A net that saw smooth distortions alone takes salt and pepper for correct labels."""
    images, masks = hearts(24, slope=0.2)
    unseen, truths = hearts(12, seed=9, slope=0.2)
    drawn = torch.randint(0, 3, truths.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = torch.where(torch.rand(truths.shape, generator=torch.Generator().manual_seed(1)) < 0.3, drawn, truths)
    found = {}
    for name, temperatures in (("without", ()), ("with", (1.0, 5.0))):
        chosen = PairSettings(temperatures=temperatures, weight_noise=(), contrast=(), noise=())
        made, _ = build_reward_pairs(policy, images, *people(24), settings=chosen, class_names=NAMES, truths=masks)
        found[name] = score_pixels(train_error_net(made, SHORT)(unseen, noise), noise, truths)["image_brier"]
    assert found["with"] < found["without"]
