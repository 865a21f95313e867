"""`reconstruction=`: what lies between the measured lines and everything that looks at the image."""

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from seggym.cohorts.cohort import open_cohort
from seggym.envs.kspace.lookahead import try_lines
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import load_reconstruction
from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.reconstruction.methods import METHODS, make_reconstruction
from seggym.kspace.simulation import zero_filled
from seggym.reward_models.checkpoints import ModelCard, save_network
from seggym.reward_models.frozen import load_frozen
from seggym.reward_models.image_quality import ssim
from seggym.reward_models.networks import build_network

WIDTHS = {"widths": [4, 8]}
CPU = torch.device("cpu")
SCAN = Acquisition(matrix=24, crop=16)
PHANTOMS = {"cohort_options": {"patients": 6, "test_patients": 1}, "acquisition": {"matrix": 24, "crop": 16}}
OTHERS = [method for method in METHODS if method != "zero_filled"]


def saved(folder, task="reconstruction", outputs=1, patients=(), architecture="unet", options=None):
    torch.manual_seed(0)
    options = WIDTHS if options is None else options
    network = build_network(architecture, outputs, **options).eval()
    names = ["background", "heart"] if task == "segmentation" else []
    card = ModelCard(architecture, options, outputs, names, task, 16, list(patients), "phantom", "x")
    save_network(folder, network, card)
    return network


def settings(folder):
    chosen = {"method": "network", "folder": str(folder)}
    return KSpaceSettings("phantom", lambda_seg=0.0, lambda_recon=1.0, acquisition={"coils": 2}, reconstruction=chosen)


def engine_with(make_engine, method, **keywords):
    """An engine of three coils with ``method``, made as an environment makes it, and one that fills with zeros."""
    scan = {"matrix": 48, "crop": 32, "coils": 3, **keywords.pop("acquisition", {})}
    plain = make_engine(num_envs=4, acquisition=scan, **keywords)
    chosen = make_engine(num_envs=4, acquisition=scan, reconstruction=method, **keywords).settings
    reconstruction = load_reconstruction(chosen, CPU)
    engine = type(plain)(
        plain.stack, chosen, 4, networks=plain.networks, reconstruction=reconstruction, dtype=plain.dtype
    )
    return engine, plain


@pytest.mark.parametrize("method", OTHERS)
def test_the_engine_shows_and_scores_what_the_method_makes_of_the_measured_lines(make_engine, play, method):
    engine, plain = engine_with(make_engine, method, lambda_seg=0.0, lambda_recon=1.0)
    for each in (engine, plain):
        play(each, [1, 2, 3, 4], 6)
    assert torch.equal(engine.acquired, plain.acquired)
    hybrid = engine.scanner.signal.permute(0, 2, 3, 1)
    expected = METHODS[method](hybrid, engine.acquired, engine.acquisition)
    torch.testing.assert_close(engine.magnitude, expected)
    torch.testing.assert_close(engine.quality, ssim(expected, engine.truth.reconstruction))
    # The reference is the same object.
    assert torch.equal(engine.truth.reconstruction.scaled, plain.truth.reconstruction.scaled)


@pytest.mark.parametrize("method", OTHERS)
def test_batched_equals_single(make_engine, play, method):
    engine, _ = engine_with(make_engine, method)
    actions = play(engine, [1, 2, 3, 4], 5)
    for row in range(4):
        one = type(engine)(
            engine.stack,
            engine.settings,
            1,
            networks=engine.networks,
            reconstruction=load_reconstruction(engine.settings, CPU),
            dtype=engine.dtype,
        )
        one.begin(torch.arange(1), one.draw(torch.tensor([1 + row])))
        for action in actions:
            one.step(action[row : row + 1])
        torch.testing.assert_close(one.magnitude[0], engine.magnitude[row], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.quality[0], engine.quality[row])
        assert torch.equal(one.observe()["image"][0], engine.observe()["image"][row])


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize(
    "keywords",
    [{}, {"remeasure": "any", "acquisition": {"corruption": 0.4}}, {"acquisition": {"phase_encode": "random"}}],
    ids=["plain", "remeasured", "turned"],
)
def test_looking_ahead_tells_what_a_step_brings(make_engine, play, method, keywords):
    engine, _ = engine_with(make_engine, method, **keywords)
    play(engine, [1, 2, 3, 4], 3)
    lines = torch.tensor([3, 21, 30, 40])
    lines = torch.where(engine.action_mask()[torch.arange(4), lines], lines, engine.action_mask().int().argmax(1))
    expected = try_lines(engine, torch.arange(4), lines)
    engine.step(lines)
    torch.testing.assert_close(engine.quality, expected)


@pytest.mark.parametrize("method", OTHERS)
def test_unmeasured_lines_do_not_show(make_engine, play, method):
    engine, _ = engine_with(make_engine, method)
    play(engine, [1, 2, 3, 4], 4)
    before = engine.observe()["image"]
    engine.scanner.signal[~engine.acquired] = 1e6
    engine.scanner.refresh(slice(None))
    assert torch.equal(engine.observe()["image"], before)


def test_a_scan_along_the_rows_is_reconstructed_as_it_was_measured_and_turned_back(make_engine, play):
    engine, _ = engine_with(make_engine, "pocs", acquisition={"phase_encode": "random"})
    play(engine, [1, 2, 3, 4], 5)
    turned = engine.scanner.transposed
    assert turned.any()
    assert not turned.all()
    image = METHODS["pocs"](engine.scanner.signal.permute(0, 2, 3, 1), engine.acquired, engine.acquisition)
    torch.testing.assert_close(engine.magnitude[turned], image[turned].mT)
    torch.testing.assert_close(engine.magnitude[~turned], image[~turned])


def test_full_kspace_is_reconstructed_as_well(make_engine, play):
    engine, plain = engine_with(make_engine, {"method": "total_variation", "strength": 0.1})
    for each in (engine, plain):
        play(each, [1, 2, 3, 4], 2)
    rows = torch.arange(4)
    every = torch.ones_like(engine.acquired)
    expected = METHODS["total_variation"](
        engine.scanner.signal.permute(0, 2, 3, 1), every, engine.acquisition, strength=0.1
    )
    torch.testing.assert_close(engine.scanner.full(rows), expected)
    assert not torch.allclose(engine.scanner.full(rows), plain.scanner.full(rows), rtol=1e-3)


@pytest.mark.parametrize("method", ["pocs", {"method": "total_variation", "iterations": 2}])
def test_environments_with_it_are_sound(phantom_root, method):
    options = {"cohort_options": {"patients": 6, "test_patients": 1}, "reconstruction": method, "budget": 3}
    env = gymnasium.make("KSpaceSeg-Phantom-v0", **options)
    check_env(env.unwrapped, skip_render_check=True)
    many = gymnasium.make_vec("KSpaceSeg-Phantom-v0", num_envs=2, **options)
    many.reset(seed=[5, 6])
    env.reset(seed=6)
    for action in (70, 58, 75):
        observation, reward, *_ = env.step(action)
        together, rewards, *_ = many.step([action, action])
    assert abs(int(together["image"][1].astype(int).max()) - int(observation["image"].max())) <= 1
    assert rewards[1] == pytest.approx(reward, abs=1e-4)


def test_the_image_network_sees_the_normalised_zero_filled_image(tmp_path):
    network = saved(tmp_path)
    hybrid = torch.complex(*torch.randn(2, 5, 2, 24, 24)) * 300
    acquired = torch.rand(5, 24) < 0.5
    reconstruct = load_reconstruction(settings(tmp_path), CPU)
    magnitude = zero_filled(hybrid, acquired, SCAN)
    mean, std = magnitude.mean((1, 2), keepdim=True), magnitude.std((1, 2), correction=0, keepdim=True)
    with torch.no_grad():
        expected = network(((magnitude - mean) / std)[:, None])[0][:, 0] * std + mean
    image = reconstruct(hybrid, acquired, SCAN)
    assert torch.allclose(image, expected.clamp_min(0), rtol=2e-3, atol=0.3)
    # Intensities scale with the input: the network sees normalised images.
    assert torch.allclose(reconstruct(hybrid * 7, acquired, SCAN), 7 * image, rtol=1e-2, atol=1)


@pytest.mark.parametrize(("architecture", "options"), [("unet", WIDTHS), ("unrolled", {"cascades": 2, "width": 4})])
def test_patients_that_it_was_trained_on_are_for_training_only(tmp_path, phantom_root, architecture, options):
    def make(role):
        chosen = {"method": "network", "folder": str(tmp_path)}
        return gymnasium.make("KSpaceRecon-Phantom-v0", reconstruction=chosen, role=role, **PHANTOMS)

    cohort = open_cohort("phantom", patients=6, test_patients=1)
    saved(tmp_path, patients=cohort.patients, architecture=architecture, options=options)
    make("train").reset(seed=0)
    for role in ("val", "test"):
        with pytest.raises(SeggymError, match="was trained on patient00"):
            make(role)


def test_a_segmentation_network_reconstructs_nothing_and_the_other_way_round(tmp_path):
    saved(tmp_path / "seg", "segmentation", 2)
    saved(tmp_path / "rec")
    with pytest.raises(SeggymError, match="expected reconstruction"):
        load_reconstruction(settings(tmp_path / "seg"), CPU)
    with pytest.raises(SeggymError, match="expected segmentation"):
        load_frozen(tmp_path / "rec")
    with pytest.raises(SeggymError, match="nowhere"):
        load_reconstruction(settings(tmp_path / "nowhere"), CPU)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"reconstruction": "magic"}, "'magic' is unknown"),
        ({"reconstruction": {"method": "network"}}, "must be"),
        ({"reconstruction": {"method": "network", "folder": "x", "iterations": 3}}, "must be"),
        ({"reconstruction": "sense"}, r"acquisition\.coils is 1"),
        ({"reconstruction": "pocs", "acquisition": {"trajectory": "points"}}, "is for phase-encode lines"),
    ],
)
def test_what_does_not_fit_is_a_sentence(keywords, message):
    with pytest.raises(SeggymError, match=message):
        KSpaceSettings("phantom", reward_model="x", **keywords)


def test_zero_filling_stays_a_sum_of_lines():
    assert load_reconstruction(KSpaceSettings("phantom", reward_model="x"), CPU) is None
    assert make_reconstruction("zero_filled", {}, SCAN).func is zero_filled
