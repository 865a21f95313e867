"""Spokes and points behind the environments: the same contracts as phase-encode lines."""

import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from seggym.envs.kspace.environment import KSpaceEnv, KSpaceVectorEnv
from seggym.envs.kspace.lookahead import try_lines
from seggym.envs.kspace.settings import OBSERVATIONS, KSpaceSettings
from seggym.errors import SeggymError
from seggym.kspace import simulation
from seggym.kspace.radial import spoke_angles
from seggym.testing import check_seg_env

SCANS = {
    "radial": {"matrix": 48, "crop": 32, "trajectory": "radial", "spokes": 20},
    "golden": {"matrix": 49, "crop": 32, "trajectory": "radial", "spokes": 21, "angles": "golden", "coils": 2},
    "points": {"matrix": 48, "crop": 32, "trajectory": "points", "block": 6},
    "single points": {"matrix": 33, "crop": 32, "trajectory": "points", "coils": 2},
}
KEYS = [21, 22, 23, 24]


@pytest.fixture(params=SCANS)
def scan(request):
    return SCANS[request.param]


def observations(engine, actions):
    """The observation after the reset to KEYS and after each step."""
    engine.begin(torch.arange(len(KEYS)), engine.draw(torch.tensor(KEYS)))
    seen = [engine.observe()]
    for action in actions:
        engine.step(action)
        seen.append(engine.observe())
    return seen


def object_seen(engine, slot):
    """The complex image of each coil, (J, G, G), that scan ``slot`` measures."""
    key = engine.keys[slot : slot + 1]
    straight = torch.zeros(1, dtype=torch.bool)
    sample = engine.samples[slot : slot + 1]
    return simulation.objects(engine.stack, sample, key, engine.acquisition, torch.float64, straight)[0].numpy()


def direct_magnitude(engine, slot):
    """The image of the measured views by transforms in their definition, sums over pixels and samples."""
    scan, image = engine.acquisition, object_seen(engine, slot)
    acquired = engine.acquired[slot].numpy()
    grid = (np.arange(scan.grid) - scan.grid // 2) / scan.grid
    pixel = (np.arange(scan.crop) - scan.crop // 2) / scan.matrix
    frequency = np.arange(scan.matrix) - scan.matrix // 2
    if scan.trajectory == "radial":
        angles = spoke_angles(scan)[acquired]
        ky, kx = (np.outer(wave(angles), frequency).ravel() for wave in (np.sin, np.cos))
        weight = np.tile(np.where(frequency == 0, 0.25, np.abs(frequency)) * np.pi / len(angles), len(angles))
    else:
        block = np.arange(scan.matrix) // scan.block
        view = block[:, None] * (scan.matrix // scan.block) + block
        ky, kx = (axis[acquired[view]] for axis in np.meshgrid(frequency, frequency, indexing="ij"))
        weight = np.ones(len(ky))
    down, across = (np.exp(-2j * np.pi * np.outer(k, grid)) for k in (ky, kx))
    samples = np.einsum("ky,jyx,kx->jk", down, image, across, optimize=True) * scan.matrix / scan.grid**2
    down, across = (np.exp(2j * np.pi * np.outer(k, pixel)) for k in (ky, kx))
    images = np.einsum("jk,ky,kx->jyx", samples * weight, down, across, optimize=True) / scan.matrix
    return np.sqrt((np.abs(images) ** 2).sum(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_images_follow_from_the_definition(make_engine, play, scan, dtype):
    engine = make_engine(2, dtype=dtype, acquisition={**scan, "snr": None}, budget=10)
    play(engine, [11, 12], 6)
    for slot in range(2):
        expected = direct_magnitude(engine, slot)
        assert np.abs(engine.magnitude[slot].numpy() - expected).max() < 1e-5 * expected.max()
    # The last image of a run equals that of all its views at once.
    assert engine.acquired.sum(1).tolist() == [len(engine.acquisition.initial_views) + 6] * 2


def test_noise_is_white_and_of_the_stated_strength(make_engine, scan):
    quiet, noisy = (make_engine(4, acquisition={**scan, "snr": snr}) for snr in (None, 10.0))
    for engine in (quiet, noisy):
        engine.begin(torch.arange(4), engine.draw(torch.tensor(KEYS)))
    noise = (noisy.scanner.signal - quiet.scanner.signal).numpy()
    sigma = noisy.stack.signal[0].item() / 10.0
    for part in (noise.real, noise.imag):
        assert part.std() == pytest.approx(sigma, rel=0.03)
        assert abs(part.mean()) < 0.05 * sigma
    # Neither from sample to sample nor from view to view.
    assert abs(np.vdot(noise[:, 1:], noise[:, :-1])) < 0.05 * np.vdot(noise, noise).real
    if noise.shape[-1] > 1:
        assert abs(np.vdot(noise[..., 1:], noise[..., :-1])) < 0.05 * np.vdot(noise, noise).real


def test_a_batch_is_its_scans_bit_for_bit(make_engine, play, scan):
    engine = make_engine(4, acquisition=scan, lambda_recon=0.3, observation=list(OBSERVATIONS))
    actions = play(engine, KEYS, 5)
    together = observations(engine, actions)
    qualities = engine.quality.clone()
    for slot, key in enumerate(KEYS):
        single = make_engine(1, acquisition=scan, lambda_recon=0.3, observation=list(OBSERVATIONS))
        single.begin(torch.arange(1), single.draw(torch.tensor([key])))
        for step, seen in enumerate(together):
            if step:
                single.step(actions[step - 1][slot : slot + 1])
            alone = single.observe()
            for name in seen:
                assert torch.equal(alone[name][0], seen[name][slot]), (name, step)
        assert torch.equal(single.quality[0], qualities[slot])


def test_unmeasured_views_do_not_show(make_engine, play, scan):
    engine = make_engine(4, acquisition=scan, observation=list(OBSERVATIONS), lambda_recon=0.5)
    actions = play(engine, KEYS, 5)
    expected = observations(engine, actions)
    engine.begin(torch.arange(4), engine.draw(torch.tensor(KEYS)))
    for number, before in enumerate(expected):
        if number:
            engine.step(actions[number - 1])
        kept, energy = engine.scanner.signal.clone(), engine.scanner.energy.clone()
        hidden = ~engine.acquired
        engine.scanner.signal[hidden] = 100 * torch.randn_like(kept[hidden])
        engine.scanner.energy[hidden] = 1e6 * torch.rand_like(energy[hidden])
        seen = engine.observe()
        assert all(torch.equal(seen[name], before[name]) for name in OBSERVATIONS)
        engine.scanner.signal.copy_(kept)
        engine.scanner.energy.copy_(energy)
    # Measured ones do: otherwise nothing is tested above.
    engine.scanner.signal[engine.acquired] *= torch.rand_like(engine.scanner.signal[engine.acquired].real)
    assert not torch.equal(engine.observe()["kspace"], expected[-1]["kspace"])


def test_lookahead_is_what_a_step_brings(make_engine, play, scan):
    engine = make_engine(3, acquisition=scan, lambda_recon=0.5)
    play(engine, KEYS[:3], 2)
    views = engine.action_mask().long().argmax(1)
    kept = engine.scanner.planes.clone()
    expected = try_lines(engine, torch.arange(3), views)
    assert torch.equal(engine.scanner.planes, kept)
    engine.step(views)
    torch.testing.assert_close(expected, engine.quality, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["radial", "points"])
def test_a_scan_goes_on_from_its_state(make_engine, play, name):
    engine, other = (make_engine(3, acquisition=SCANS[name], budget=8) for _ in range(2))
    play(engine, KEYS[:3], 3)
    other.load_state_dict(engine.state_dict())
    for _ in range(3):
        actions = engine.action_mask().long().argmax(1)
        one, two = engine.step(actions), other.step(actions)
        assert torch.equal(one.parts["quality"], two.parts["quality"])
    assert torch.equal(engine.scanner.magnitude, other.scanner.magnitude)


@pytest.mark.parametrize("name", ["radial", "points"])
def test_measured_again_a_view_is_replaced(make_engine, name):
    engine = make_engine(2, acquisition={**SCANS[name], "corruption": 0.5}, remeasure="any", budget=12)
    engine.begin(torch.arange(2), engine.draw(torch.tensor([1, 2])))
    view = torch.tensor([7, 9])
    for _ in range(4):
        engine.step(view)
    measured = engine.scanner.measured(slice(None))
    direct = engine.scanner.trajectory.reconstruct(measured, engine.acquired)
    found = torch.complex(engine.scanner.planes[:, :, 0], engine.scanner.planes[:, :, 1])
    assert (found - direct).abs().max() < 1e-9 * direct.abs().max()


@pytest.mark.parametrize("render", ["radial", "single points"])
def test_gymnasium_and_our_own_check_find_nothing(make_engine, render):
    env = KSpaceEnv(engine=make_engine(1, acquisition=SCANS[render], dtype=torch.float32), render_mode="rgb_array")
    check_env(env, skip_render_check=True)
    check_seg_env(env)
    env.reset(seed=0)
    before = env.render()
    env.step(int(env.action_masks().argmax()))
    after = env.render()
    assert before.shape == after.shape
    # The newest view is drawn in orange in the panel of k-space.
    orange = np.array((255, 140, 0)) / 255

    def coloured(picture):
        panel = picture[22 : 22 + 256, 10 : 10 + 256] / 255.0
        strength = panel[..., :1].clip(0.1)
        return (np.abs(panel / strength - orange).max(-1) < 0.05) & (panel[..., 0] > 0.5)

    assert coloured(after).sum() > coloured(before).sum()


def test_spaces_and_budget_count_views(make_engine):
    env = KSpaceVectorEnv(
        2, engine=make_engine(2, acquisition=SCANS["points"], observation=["acquired", "energy", "kspace"])
    )
    assert env.single_action_space.n == 64
    assert env.single_observation_space["acquired"].n == 64
    assert env.single_observation_space["energy"].shape == (64,)
    assert env.single_observation_space["kspace"].shape == (2, 48, 48)
    radial = KSpaceVectorEnv(2, engine=make_engine(2, acquisition=SCANS["golden"], observation=["acquired", "kspace"]))
    assert radial.single_observation_space["kspace"].shape == (4, 49, 21)
    observation, info = radial.reset(seed=0)
    assert observation["acquired"].sum(1).tolist() == [3, 3]
    assert info["action_mask"].sum(1).tolist() == [18, 18]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 18}, "must lie in 1..17"),
        ({"candidates": [0, 20]}, "< 20"),
        ({"candidates": [6, 6]}, "initial lines only"),
        ({"lines_per_step": 2}, "lines_per_step=2"),
        ({"choose_axis": True}, "choose_axis=True"),
    ],
)
def test_settings_are_checked_against_the_views(options, message):
    chosen = {"cohort": "phantom", "reward_model": "stub", "acquisition": SCANS["radial"], "budget": 3, **options}
    with pytest.raises(SeggymError, match=message):
        KSpaceSettings(**chosen)


def test_a_network_of_another_trajectory_is_warned_of():
    phantoms = {"patients": 6, "test_patients": 2}
    options = {"cohort": "phantom", "reward_model": "phantom-points", "cohort_options": phantoms, "device": "cpu"}
    radial = {"matrix": 128, "crop": 96, "trajectory": "radial", "spokes": 16}
    with pytest.warns(UserWarning, match="trained on scans of trajectory=points, this environment measures radial"):
        KSpaceEnv(**options, acquisition=radial, budget=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = KSpaceEnv(**{**options, "reward_model": "phantom-radial"}, acquisition=radial, budget=3)
    assert env.reset(seed=0)[0]["acquired"].sum() == 3
