"""Environments on raw k-space: what was measured, nothing else, and never a line that was not."""

import csv
import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from seggym.agents.evaluation import evaluate
from seggym.agents.models import TrainSettings
from seggym.agents.training import train
from seggym.cohorts import cmrxrecon, raw_kspace
from seggym.cohorts.cohort import Volume, open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.envs.kspace.environment import KSpaceVectorEnv
from seggym.envs.kspace.sampler import combination_weights
from seggym.errors import SeggymError
from seggym.filming import film
from seggym.kspace import measured
from seggym.kspace.acquisition import Acquisition, prepare
from seggym.reward_models import training, training_scans
from seggym.reward_models.fitting import Plan, fit_reward_model
from seggym.reward_models.training import Recipe

RECON = {"lambda_seg": 0.0, "lambda_recon": 1.0, "reward_model": None}
SMALL = {"matrix": 48, "crop": 32, "snr": None}
OBSERVED = ["image", "acquired", "budget", "energy", "image_float", "kspace", "action_mask"]


@pytest.fixture(scope="module")
def raw_root(tmp_path_factory):
    return raw_kspace.write_example(tmp_path_factory.mktemp("raw"), "ismrmrd", patients=4)


@pytest.fixture(scope="module")
def cine_root(tmp_path_factory):
    return cmrxrecon.write_example(tmp_path_factory.mktemp("cine"), patients=6)


def make(root, count=1, **settings):
    chosen = {
        "cohort": "raw",
        "data_root": str(root),
        "role": "all",
        "acquisition": {**SMALL, "coils": 4},
        "budget": [3, 9],
        "device": "cpu",
        "precision": "fp64",
        **RECON,
        **settings,
    }
    return KSpaceVectorEnv(count, autoreset_mode="SameStep", **chosen)


def numpy_images(kspace):
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)


@pytest.mark.parametrize("coils", [1, 2, 5])
def test_images_are_those_of_the_file(tmp_path, coils):
    """Rank-1 updates against numpy's transform of what h5py reads, root sum of squares over all coils."""
    raw_kspace.write_example(tmp_path, patients=1, coils=coils)
    env = make(tmp_path, 2, acquisition={**SMALL, "coils": coils}, budget=20)
    env.reset(
        seed=0, options={"episodes": [{"sample": 0, "budget": 20, "key": 1}, {"sample": 1, "budget": 9, "key": 2}]}
    )
    with h5py.File(tmp_path / "scan001.h5") as file:
        stored = file["kspace"][()].astype(complex)
    # The readout without its oversampling: 160 of 320 pixels, of the same size as those of the 176 lines.
    half = numpy_images(stored)[:, :, 80:240]
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(half, axes=(2, 3)), norm="ortho"), axes=(2, 3))
    rows = round(48 * 160 / 176)  # readout samples for square pixels at 48 lines
    first, column = 80 - rows // 2, 88 - 24
    kspace = kspace[:, :, first : first + rows, column : column + 48]
    expected = np.sqrt((np.abs(numpy_images(kspace)) ** 2).sum(1))
    unit = env.engine.stack.images.numpy().max() / expected.max()
    rng = np.random.default_rng(0)
    for _ in range(8):
        masks = env.action_masks()
        env.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in masks]))
        acquired = env.engine.acquired.numpy()
        images = np.sqrt((np.abs(numpy_images(kspace * acquired[:, None, None, :])) ** 2).sum(1))
        seen = env.engine.magnitude.numpy()
        np.testing.assert_allclose(seen, unit * images[:, 6:38, 8:40], atol=1e-5 * seen.max())


def test_lines_that_were_never_measured_are_never_offered(raw_root):
    """160 of 176 lines are on the matrix; 20 were left out by the scanner, 12 of them there."""
    env = make(raw_root, 3, acquisition={"coils": 4}, budget=157)
    env.reset(seed=0)
    lines = np.array([160] * 3)
    for step in range(145):
        masks = env.action_masks()
        assert not masks[:, :12].any()
        lines = masks.argmax(1)
        _, _, ended, _, infos = env.step(lines)
        assert ended.all() == (step == 144)
    # Nothing is left to measure, though the budget is.
    final = infos["final_info"]
    assert (final["lines"] == 148).all()
    assert (final["quality"] > 0.99999).all()


def test_an_unavailable_line_is_illegal(raw_root):
    env = make(raw_root, 1, acquisition={"coils": 4})
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([5]))
    assert reward[0] == 0
    assert info["illegal_actions"][0] == 1
    assert not env.engine.acquired[0, 5]


def test_quality_is_ssim_with_all_lines(raw_root):
    env = make(raw_root, 2)
    env.reset(seed=3)
    for action in (10, 30, 33):
        _, _, _, _, info = env.step(np.array([action] * 2))
    engine = env.engine
    for slot in range(2):
        sample = int(engine.samples[slot])
        full = engine.stack.images[sample, 8:40, 8:40].double().numpy()
        expected = structural_similarity(
            full, engine.magnitude[slot].numpy(), win_size=7, data_range=float(engine.stack.data_range[sample])
        )
        assert info["quality"][slot] == pytest.approx(expected, abs=1e-5)


def test_batched_equals_single(raw_root):
    settings = {"observation": OBSERVED, "budget": [6, 9]}
    batch, singles = make(raw_root, 3, **settings), [make(raw_root, 1, **settings) for _ in range(3)]
    seeds = [11, 12, 13]
    observation, _ = batch.reset(seed=seeds)
    for slot, single in enumerate(singles):
        alone, _ = single.reset(seed=[seeds[slot]])
        assert all(alone[name][0].tobytes() == observation[name][slot].tobytes() for name in OBSERVED)
    rng = np.random.default_rng(0)
    for _ in range(5):
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in batch.action_masks()])
        observation, reward, ended, _, _ = batch.step(actions)
        assert not ended.any()
        for slot, single in enumerate(singles):
            alone, gain, _, _, _ = single.step(actions[slot : slot + 1])
            assert gain[0] == reward[slot]
            assert all(alone[name][0].tobytes() == observation[name][slot].tobytes() for name in OBSERVED)


def test_unmeasured_lines_do_not_show(raw_root):
    """The raw files with all but the measured lines replaced by noise: the observations are the same, bit for bit."""
    cohort = open_cohort("raw", raw_root)
    volumes = [volume for volume in cohort.volumes() if volume.patient == "patient001"]
    scan = Acquisition(**{**SMALL, "coils": 3})
    env = make(raw_root, 1, observation=OBSERVED, acquisition={**SMALL, "coils": 3})
    chosen = [24, 23, 25, 20, 31, 9]  # of the matrix, whose first line is number 64 of the file
    rng = np.random.default_rng(0)
    hidden = np.setdiff1d(np.arange(176), np.array(chosen) + 64)
    seen = []
    for replace in (False, True):
        changed = []
        for volume in volumes:
            kspace = volume.kspace.copy()
            if replace:
                noise = rng.normal(size=(*kspace.shape[:3], len(hidden)))
                kspace[..., hidden] = (np.abs(kspace[..., hidden]) > 0) * noise
            changed.append(dataclasses.replace(volume, kspace=kspace))
        engine = type(env.engine)(prepare(changed, scan, 1), env.engine.settings, 1, dtype=torch.float64)
        again = KSpaceVectorEnv(1, engine=engine)
        options = {"episodes": [{"sample": 1, "budget": 9, "key": 5}]}
        steps = [again.reset(options=options)[0]]
        steps += [again.step(np.array([line]))[0] for line in chosen[3:]]
        seen.append(steps)
    for one, two in zip(*seen, strict=True):
        for name in OBSERVED:
            np.testing.assert_array_equal(one[name], two[name], name)


def test_keys_decide_slice_and_budget_only(raw_root):
    env = make(raw_root, 2)
    env.reset(options={"episodes": [{"sample": 2, "budget": 5, "key": key} for key in (1, 2)]})
    assert torch.equal(env.engine.scanner.signal[0], env.engine.scanner.signal[1])


def test_resume_is_exact(raw_root):
    env, other = make(raw_root, 3), make(raw_root, 3)
    env.reset(seed=5)
    env.step(np.array([3, 4, 5]) + 24)
    other.load_state_dict(env.state_dict())
    for actions in ([30, 31, 32], [10, 11, 12], [13, 14, 15], [9, 8, 7]):
        one, two = env.step(np.array(actions)), other.step(np.array(actions))
        np.testing.assert_array_equal(one[0]["image"], two[0]["image"])
        np.testing.assert_array_equal(one[1], two[1])


def test_what_cannot_be_is_a_sentence(raw_root, tmp_path):
    with pytest.raises(SeggymError, match=r"cohort raw at .* has no labels.*lambda_seg=0"):
        make(raw_root, lambda_seg=1.0, reward_model="phantom")
    with pytest.raises(SeggymError, match="has no labels"):
        make(raw_root, observation=["image", "probabilities"], reward_model="phantom")
    with pytest.raises(SeggymError, match="remeasure='any' needs a simulated scan"):
        make(raw_root, remeasure="any")
    with pytest.raises(SeggymError, match=r"set acquisition\.coils=5"):
        make(raw_root, acquisition={**SMALL, "coils": 8})
    with pytest.raises(SeggymError, match="no measured line among the candidates"):
        make(raw_root, acquisition={"coils": 4}, candidates=[0, 11])
    with pytest.raises(SeggymError, match="no labels, so there is no rare combination"):
        combination_weights(make(raw_root).engine.stack, 10)
    script = Path(__file__).parents[2] / "agents" / "train_reward_model.py"
    result = subprocess.run(
        [sys.executable, str(script), "cohort=raw", f"datadir={raw_root}", f"output={tmp_path / 'model'}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert "has no labels" in result.stderr.splitlines()[-1]


def test_a_prepared_scan_is_cached_with_what_it_depends_on(raw_root, monkeypatch):
    first, second = make(raw_root).engine.stack, make(raw_root, acquisition={**SMALL, "coils": 2}).engine.stack
    assert first.hybrid.shape[1:3] == (4, 48)
    assert second.hybrid.shape[1:3] == (2, 48)
    again = make(raw_root, acquisition={**SMALL, "coils": 4, "snr": 7.0}).engine.stack
    assert torch.equal(again.hybrid, first.hybrid)


def test_pictures_and_baselines(raw_root, tmp_path):
    kwargs = {"data_root": str(raw_root), "acquisition": {**SMALL, "coils": 4}}
    path, end = film("KSpaceRecon-Raw-v0", "centre_out", tmp_path / "end.png", env_kwargs={**kwargs, "budget": 4})
    with Image.open(path) as picture:
        assert picture.width > 300
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    assert "centre_out" in end
    result = evaluate(
        lambda observation, mask: np.asarray(mask).argmax(1),
        "KSpaceRecon-Raw-v0",
        eval_range=[1, 4],
        baselines=None,
        progress=False,
        candidates=[12, 35],
        **kwargs,
    )
    names = {policy.name for policy in result.policies}
    assert {"random", "centre_out", "population_greedy", "energy_following"} <= names


def test_a_reward_model_of_measured_scans(cine_root, tmp_path, monkeypatch):
    """Stage 1 trains on augmented k-space, and its networks score the environment."""
    monkeypatch.setattr(training, "native_precision", lambda device: "fp32")
    cohort = open_cohort("cmrxrecon", cine_root)
    scan = {**SMALL, "coils": 3}
    recipe = Recipe(options={"widths": [4, 8]}, iterations=4, batch_size=3, validate_every=2, patience=0)
    plan = Plan(recipe, None, 2)
    folder, cpu = tmp_path / "model", torch.device("cpu")
    fit_reward_model(folder, cohort, split_cohort(cohort), Acquisition(**scan), plan, cpu)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(
            "KSpaceSeg-CMRxRecon-v0", data_root=str(cine_root), reward_model=str(folder), acquisition=scan, budget=3
        )
    _, info = env.reset(seed=0)
    quality = info["quality"]
    total = 0.0
    for line in (20, 30, 10):
        _, reward, ended, _, info = env.step(line)
        total += reward
    assert ended
    assert total == pytest.approx(info["quality"] - quality, abs=1e-6)
    assert info["dice"].shape == (3,)


def test_augmentation_moves_labels_with_the_image():
    """A labelled shape in the k-space of three coils: the label still covers it after every move."""
    label = np.zeros((1, 60, 60), np.uint8)
    label[0, 24:40, 20:38] = 1
    phases = np.exp(1j * np.linspace(0, 2, 3))[:, None, None]
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(label * phases, axes=(1, 2))), axes=(1, 2))[None]
    raw = Volume("p", "f", label.astype(np.float32), label, (8.0, 1.0, 1.0), kspace=kspace.astype(np.complex64))
    scan = Acquisition(matrix=60, crop=56, coils=3)
    stack = prepare([raw], scan, 2)
    moved = training_scans._moved(stack, torch.zeros(12, dtype=torch.int64), scan, np.random.default_rng(0))
    image = measured.full_image(torch.view_as_complex(moved.hybrid))[:, 2:58, 2:58]
    drawn = moved.labels == 1
    assert 0.3 < (drawn[:, None] & drawn[None]).sum((2, 3)).div(drawn.sum()).mul(12).median() < 0.95  # they do move
    level = 0.5 * stack.images.max()
    covered = (image > level) & drawn
    union = (image > level) | drawn
    assert (covered.sum((1, 2)) / union.sum((1, 2))).min() > 0.8


@pytest.fixture
def short_run(raw_root, tmp_path):
    return TrainSettings(
        run_dir=str(tmp_path / "run"),
        env_id="KSpaceRecon-Raw-v0",
        env_kwargs={
            "data_root": str(raw_root),
            "acquisition": {"matrix": 32, "crop": 24, "coils": 2, "snr": None},
            "objective": "area",
            "budget": [4, 8],
            "observation": ["energy", "acquired", "budget"],
        },
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 32, "batch_size": 256, "n_epochs": 8, "gamma": 1.0, "learning_rate": 2e-3},
        network={"extractor": "dict", "extractor_kwargs": {}, "net_arch": [64], "activation": "tanh"},
        prior_strength=0.0,
        total_steps=2048,
        num_envs=16,
        eval_every=1024,
        eval_episodes=8,
        log_every=2048,
        device="cpu",
    )


def test_ppo_learns_on_measured_lines(short_run):
    """From a policy without prior, that is uniform at first, to one that knows where the energy is."""
    train(short_run)
    with open(Path(short_run.run_dir) / "metrics.csv") as file:
        quality = [float(row["mean_quality"]) for row in csv.DictReader(file) if row["phase"] == "validation"]
    assert max(quality[1:]) > quality[0] + 0.03
