"""The unrolled reconstruction: where it starts, what it keeps, and that it learns by stage 1's machinery."""

import json
from dataclasses import replace

import pytest
import torch

from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.methods import make_reconstruction
from seggym.kspace.simulation import zero_filled
from seggym.kspace.transforms import fftc
from seggym.reward_models.checkpoints import open_reward_model, read_card
from seggym.reward_models.fitting import Plan, fit_member, fit_reward_model
from seggym.reward_models.frozen import FrozenNetwork, load_frozen, normalise, reconstruct_with
from seggym.reward_models.image_quality import encode_reference, ssim
from seggym.reward_models.networks import build_network
from seggym.reward_models.reconstruction_training import ReconstructionTask
from seggym.reward_models.slices import prepared_slices
from seggym.reward_models.training import Recipe, train_network
from seggym.reward_models.training_scans import Simulator, measure

SCAN = Acquisition(matrix=48, crop=32, coils=2)
OPTIONS = {"cascades": 2, "width": 6, "layers": 3}
UNROLLED = Recipe(
    architecture="unrolled", options=OPTIONS, iterations=40, batch_size=4, validate_every=20, learning_rate=5e-3
)
UNET = Recipe(options={"widths": [4, 8]}, iterations=40, batch_size=4, validate_every=20, learning_rate=5e-3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cohort(phantom_root):
    return open_cohort("phantom", patients=6, test_patients=1)


@pytest.fixture(scope="module")
def stacks(cohort):
    split = split_cohort(cohort)
    return [prepared_slices(cohort, patients, SCAN) for patients in (split.train, split.val)]


def measured(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hybrid = torch.complex(*torch.randn(2, count, 2, 48, 48, generator=generator))
    distance = torch.arange(48) - 24
    return hybrid, torch.stack([(distance > -3 - k) & (distance < 8 + k) for k in range(count)])


def trained_like(**options):
    torch.manual_seed(0)
    network = build_network("unrolled", 1, **{**OPTIONS, **options}).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_it_begins_as_the_zero_filled_image():
    hybrid, acquired = measured()
    image = reconstruct_with(build_network("unrolled", 1, **OPTIONS), hybrid, acquired, SCAN)
    torch.testing.assert_close(image, zero_filled(hybrid, acquired, SCAN), rtol=1e-4, atol=1e-5)


def test_with_full_trust_measured_lines_are_kept():
    """Whatever the convolutions do, the k-space of its image has the measured samples at the measured lines."""
    network = trained_like()
    torch.nn.init.constant_(network.trust, 100.0)
    hybrid, acquired = measured()
    rows = torch.where(acquired[:, None, None, :], hybrid, 0)
    with torch.no_grad():
        lines = fftc(network(rows, acquired), (-1,))
    assert not torch.allclose(lines, rows, atol=0.1)
    kept = acquired[:, None, None, :].expand_as(lines)
    torch.testing.assert_close(lines[kept], rows[kept], rtol=1e-4, atol=1e-4)


def test_a_batch_equals_single_calls_and_the_scale_goes_through():
    frozen = FrozenNetwork(trained_like(), precision="fp64")
    hybrid, acquired = measured()
    hybrid = hybrid.to(torch.complex128)
    together = frozen.reconstruct(hybrid, acquired, SCAN)
    for index in range(3):
        one = slice(index, index + 1)
        torch.testing.assert_close(frozen.reconstruct(hybrid[one], acquired[one], SCAN), together[one])
    torch.testing.assert_close(frozen.reconstruct(1000 * hybrid, acquired, SCAN), 1000 * together)
    assert not torch.allclose(together, zero_filled(hybrid, acquired, SCAN), rtol=0.1)


def test_frozen_it_is_the_same_function():
    network = trained_like()
    hybrid, acquired = measured()
    with torch.no_grad():
        expected = reconstruct_with(network, hybrid, acquired, SCAN)
    torch.testing.assert_close(
        FrozenNetwork(network).reconstruct(hybrid, acquired, SCAN), expected, rtol=1e-4, atol=1e-4
    )
    reduced = FrozenNetwork(network, precision="bf16", max_batch=1).reconstruct(hybrid, acquired, SCAN)
    assert (reduced - expected).norm() < 0.05 * expected.norm()


def test_an_empty_scan_is_black():
    _, acquired = measured()
    image = FrozenNetwork(trained_like()).reconstruct(torch.zeros(3, 2, 48, 48, dtype=torch.complex64), acquired, SCAN)
    assert torch.equal(image, torch.zeros(3, 32, 32))


def test_every_parameter_gets_a_gradient():
    network = trained_like()
    hybrid, acquired = measured()
    reference = encode_reference(zero_filled(hybrid, None, SCAN), torch.full((3,), 3.0))
    (1 - ssim(reconstruct_with(network, hybrid, acquired, SCAN), reference)).mean().backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_the_gradient_of_the_loss_is_that_of_finite_differences(stacks):
    """SSIM works in place, which automatic differentiation must survive."""
    task = ReconstructionTask(*stacks, SCAN, CPU, seed=0)
    _, target = task.batch(2, augment=False)
    target = type(target)(**{name: value.double() for name, value in vars(target).items()})
    image = (target.scaled * target.data_range + target.offset) * 1.1 + 0.01 * torch.randn(2, 32, 32).double()
    direction = torch.randn_like(image)
    image.requires_grad_()
    task.loss(image, target).backward()
    with torch.no_grad():
        step = 1e-6
        slope = (task.loss(image + step * direction, target) - task.loss(image - step * direction, target)) / (2 * step)
    assert (image.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("recipe", [UNROLLED, UNET], ids=["unrolled", "unet"])
def test_training_is_reproducible(stacks, tmp_path, recipe):
    recipe = replace(recipe, precision="fp32", iterations=6, validate_every=3)
    whole, metrics = train_network(recipe, *stacks, SCAN, tmp_path / "whole", CPU, ReconstructionTask)
    again, _ = train_network(recipe, *stacks, SCAN, tmp_path / "again", CPU, ReconstructionTask)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert set(metrics) == {"val_ssim", "iterations", "minutes", "recipe"}


def test_it_learns(stacks, tmp_path):
    """Forty steps beat zero-filling on patients that it has not seen."""
    task = ReconstructionTask(*stacks, SCAN, CPU, seed=0)
    start = task.validate(build_network("unrolled", 1, **OPTIONS))
    _, metrics = train_network(
        replace(UNROLLED, precision="fp32", average=0.8), *stacks, SCAN, tmp_path, CPU, ReconstructionTask
    )
    assert metrics["val_ssim"] > start + 0.01


def test_a_fitted_one_is_a_folder_that_environments_take(cohort, tmp_path):
    split = split_cohort(cohort)
    recipe = replace(UNROLLED, iterations=2, validate_every=2)
    fit_reward_model(tmp_path, cohort, split, SCAN, Plan(recipe, None, 0, "reconstruction"), CPU)
    model = open_reward_model(tmp_path)
    card = model.cards["full"]
    assert (card.task, card.architecture, card.num_outputs, card.class_names) == ("reconstruction", "unrolled", 1, [])
    assert sorted(card.patients) == sorted(split.train)
    assert set(card.metrics["test"]) == {"1", "2", "4", "8", "16"}
    assert json.loads((tmp_path / "index.json").read_text())["folds"] == []
    hybrid, acquired = measured()
    load_frozen(model.full, task="reconstruction").reconstruct(hybrid, acquired, SCAN)
    with pytest.raises(SeggymError, match="was trained on"):
        model.require_unseen("full", split.train, cohort.name)


def test_a_segmentation_may_learn_from_reconstructed_images(cohort, tmp_path):
    """Its batches are what the method makes of the same scans, and the card says so."""
    split = split_cohort(cohort)
    train = prepared_slices(cohort, split.train, SCAN)
    reconstruction = make_reconstruction("pocs", {"iterations": 3}, SCAN)
    plain, chosen = (Simulator(train, SCAN, CPU, 5, method) for method in (None, reconstruction))
    stack, indices, keys, acquired = Simulator(train, SCAN, CPU, 5).scans(4, augment=False)
    images, labels = chosen.batch(4, augment=False)
    hybrid = measure(stack, indices, keys, SCAN).permute(0, 2, 3, 1)
    expected = normalise(reconstruction(hybrid, acquired, SCAN))
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)
    others, same = plain.batch(4, augment=False)
    assert torch.equal(labels, same)
    assert not torch.allclose(images, others, atol=0.01)
    recipe = replace(UNET, iterations=2, validate_every=2)
    chosen_method = {"method": "pocs", "iterations": 3}
    patients = list(split.train)
    fit_member(tmp_path, cohort, patients, split, SCAN, recipe, CPU, reconstruction=chosen_method)
    assert read_card(tmp_path).metrics["reconstruction"] == chosen_method
    with pytest.raises(SeggymError, match="holds a network trained on other"):
        fit_member(tmp_path, cohort, patients, split, SCAN, recipe, CPU)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan(UNROLLED, None, 0), "set task=reconstruction"),
        (lambda: Plan(UNROLLED, None, 3, "reconstruction"), "folds=0"),
        (lambda: Plan(UNROLLED, None, 0, "denoising"), "unknown"),
        (lambda: Plan(UNROLLED, None, 0, "reconstruction", "pocs"), "no use for"),
        (lambda: build_network("unrolled", 2), "only reconstructs"),
        (lambda: build_network("unrolled", 1, cascades=0), "at least 1"),
    ],
)
def test_what_cannot_be_is_a_sentence(make, message):
    with pytest.raises(SeggymError, match=message):
        make()


def test_spokes_cannot_be_learned_from(cohort, tmp_path):
    scan = Acquisition(matrix=48, crop=32, trajectory="points")
    with pytest.raises(SeggymError, match="for phase-encode lines"):
        fit_reward_model(tmp_path, cohort, split_cohort(cohort), scan, Plan(UNROLLED, None, 0, "reconstruction"), CPU)
