"""`reconstructor=`: any network from a folder, between the zero-filled image and everything that looks at it."""

import gymnasium
import pytest
import torch

from seggym.cohorts.cohort import open_cohort
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import load_reconstructor
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import ModelCard, save_network
from seggym.reward_models.frozen import load_frozen
from seggym.reward_models.networks import build_network

WIDTHS = {"widths": [4, 8]}
CPU = torch.device("cpu")


def saved(folder, task, outputs, patients=()):
    torch.manual_seed(0)
    network = build_network("unet", outputs, **WIDTHS).eval()
    names = ["background", "heart"] if task == "segmentation" else []
    card = ModelCard("unet", WIDTHS, outputs, names, task, 16, list(patients), "phantom", "x")
    save_network(folder, network, card)
    return network


def settings(folder):
    return KSpaceSettings("phantom", lambda_seg=0.0, lambda_recon=1.0, reconstructor=str(folder))


def test_its_image_is_what_the_network_makes_of_the_normalised_one(tmp_path):
    network = saved(tmp_path, "reconstruction", 1)
    magnitude = torch.rand(5, 16, 16) * 300
    reconstruct = load_reconstructor(settings(tmp_path), CPU)
    mean, std = magnitude.mean((1, 2), keepdim=True), magnitude.std((1, 2), correction=0, keepdim=True)
    with torch.no_grad():
        expected = network(((magnitude - mean) / std)[:, None])[0][:, 0] * std + mean
    assert torch.allclose(reconstruct(magnitude), expected.clamp_min(0), rtol=2e-3, atol=0.3)
    # Intensities scale with the input: the network sees normalised images.
    assert torch.allclose(reconstruct(magnitude * 7), 7 * reconstruct(magnitude), rtol=1e-2, atol=1)


def test_the_engine_shows_and_scores_its_image(make_engine):
    def flat(magnitude):
        return magnitude.mean((1, 2), keepdim=True).expand_as(magnitude)

    plain = make_engine(num_envs=2)
    engine = type(plain)(plain.stack, plain.settings, 2, networks=plain.networks, reconstructor=flat, dtype=plain.dtype)
    episodes = engine.draw(torch.tensor([1, 2]))
    for each in (plain, engine):
        each.begin(torch.arange(2), episodes)
    assert (engine.observe()["image"] == engine.observe()["image"][:, :, :1, :1]).all()
    assert not torch.equal(engine.quality, plain.quality)


def test_patients_that_it_was_trained_on_are_for_training_only(tmp_path, phantom_root):
    def make(role):
        scan = {"matrix": 24, "crop": 16}
        options = {"cohort_options": {"patients": 6, "test_patients": 1}, "acquisition": scan, "role": role}
        return gymnasium.make("KSpaceRecon-Phantom-v0", reconstructor=str(tmp_path), **options)

    cohort = open_cohort("phantom", patients=6, test_patients=1)
    saved(tmp_path, "reconstruction", 1, cohort.patients)
    make("train")
    for role in ("val", "test"):
        with pytest.raises(SeggymError, match="was trained on patient00"):
            make(role)


def test_a_segmentation_network_is_no_reconstructor_and_the_other_way_round(tmp_path):
    saved(tmp_path / "seg", "segmentation", 2)
    saved(tmp_path / "rec", "reconstruction", 1)
    with pytest.raises(SeggymError, match="expected reconstruction"):
        load_reconstructor(settings(tmp_path / "seg"), CPU)
    with pytest.raises(SeggymError, match="expected segmentation"):
        load_frozen(tmp_path / "rec")
    with pytest.raises(SeggymError, match="nowhere"):
        load_reconstructor(settings(tmp_path / "nowhere"), CPU)
