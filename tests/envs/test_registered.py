"""Every registered id: made both ways, checked by Gymnasium and by us, in this process and in others."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from seggym.cohorts import acdc, cmrxrecon, folder, raw_kspace
from seggym.envs import ENVIRONMENTS, register_envs
from seggym.envs.kspace.environment import KSpaceVectorEnv
from seggym.errors import SeggymError
from seggym.reward_models.checkpoints import ModelCard, save_network
from seggym.reward_models.networks import build_network
from seggym.testing import check_seg_env

# The others have tests of their own (tests/envs/selection).
KSPACE = [name for name in ENVIRONMENTS if name.startswith("KSpace")]
# Environments whose episodes are single slices.
SLICES = [name for name in KSPACE if "3D" not in name]
PHANTOMS = {"patients": 6, "test_patients": 2}

# What check_env may say about our environments, and why it stays.
ALLOWED_WARNINGS = (
    # Features and k-space have no natural bound. (Only where they are asked for.)
    "observation space minimum value is -infinity",
    "observation space maximum value is infinity",
)


@pytest.fixture(scope="module")
def kwargs_of(tmp_path_factory):
    """id -> keyword arguments that make it without a download: written examples and untrained networks."""
    root = tmp_path_factory.mktemp("registered")
    data = {"acdc": acdc.write_example(root / "acdc", patients=4)}
    data["folder"] = folder.write_example(root / "folder", patients=4)
    data["raw"] = raw_kspace.write_example(root / "raw", patients=4)
    data["cmrxrecon"] = cmrxrecon.write_example(root / "cmrxrecon", patients=4)
    torch.manual_seed(0)
    for cohort, crop in (("acdc", 128), ("cmrxrecon", 128), ("folder", 128), ("phantom", 96), ("acdc-hard", 96)):
        card = ModelCard(
            architecture="unet",
            options={"widths": [4, 8, 8, 8]},
            num_outputs=4,
            class_names=["background", "a", "b", "c"],
            task="segmentation",
            crop=crop,
            patients=[],
            cohort=cohort.removesuffix("-hard"),
            fingerprint="none",
        )
        save_network(root / f"net-{cohort}", build_network("unet", 4, widths=[4, 8, 8, 8]), card)

    def make(name):
        cohort = ENVIRONMENTS[name][2]["cohort"]
        kwargs = {"budget": [3, 6], "device": "cpu"}
        if cohort == "phantom":
            kwargs["cohort_options"] = PHANTOMS
        else:
            kwargs["data_root"] = str(data[cohort])
        if cohort == "folder":
            kwargs["cohort_options"] = {"num_classes": 4}
        if "Seg" in name:
            kwargs["reward_model"] = str(
                root / ("net-acdc-hard" if name == "KSpaceSeg-ACDC-Hard-v0" else f"net-{cohort}")
            )
        return kwargs

    return make


def test_registering_again_changes_nothing():
    before = {name: gymnasium.registry[name] for name in ENVIRONMENTS}
    register_envs()
    assert all(gymnasium.registry[name] is spec for name, spec in before.items())


@pytest.mark.parametrize("observation", [None, ["features", "kspace", "image_float", "probabilities", "action_mask"]])
@pytest.mark.parametrize("name", SLICES)
def test_gymnasium_finds_nothing_to_warn_of(kwargs_of, name, observation):
    if observation and "Recon" in name:
        observation = ["kspace", "image_float", "action_mask"]
    options = {"observation": observation} if observation else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make(name, render_mode="rgb_array", **kwargs_of(name), **options)
        check_env(env.unwrapped)
        env.close()
    unexpected = [
        str(warning.message)
        for warning in caught
        if not any(allowed in str(warning.message) for allowed in ALLOWED_WARNINGS)
    ]
    assert unexpected == []
    assert bool(caught) is bool(observation)  # the list is needed only for what is asked for


@pytest.mark.parametrize("name", KSPACE)
def test_our_own_check_passes(kwargs_of, name):
    check_seg_env(gymnasium.make(f"seggym:{name}", **kwargs_of(name)))


@pytest.mark.parametrize("name", KSPACE)
def test_made_in_a_batch(kwargs_of, name):
    envs = gymnasium.make_vec(name, num_envs=3, autoreset_mode="SameStep", **kwargs_of(name))
    assert isinstance(envs.unwrapped, KSpaceVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, info = envs.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(8):
        assert envs.observation_space.contains(observation)
        actions = [rng.choice(np.flatnonzero(mask)) for mask in info["action_mask"]]
        observation, reward, _, _, info = envs.step(np.array(actions))
        assert np.isfinite(reward).all()
    default = gymnasium.make_vec(name, num_envs=2, **kwargs_of(name))
    assert default.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("name", SLICES)
def test_the_defaults_of_v0(kwargs_of, name):
    """They are promised: another default is another version."""
    kwargs = {key: value for key, value in kwargs_of(name).items() if key != "budget"}
    env = gymnasium.make(name, **kwargs)
    hard = "Hard" in name
    lines, crop = (128, 96) if "Phantom" in name or hard else (160, 128)
    lines = {"Radial": 64, "Points": 256}.get(name.split("-")[2], lines)
    space = env.observation_space
    assert set(space.spaces) == {"image", "acquired", "budget"} | ({"energy", "corrupted", "axis"} if hard else set())
    assert (space["image"].shape, space["image"].dtype) == ((1, crop, crop), np.uint8)
    assert space["acquired"].shape == (lines,)
    assert (space["budget"].shape, space["budget"].dtype) == ((1,), np.float32)
    assert env.action_space.n == lines
    observation, info = env.reset(seed=0)
    # Of points those four blocks that hold a sample of the central 3 x 3.
    assert observation["acquired"].sum() == (4 if "Points" in name else 3)
    settings = env.unwrapped.engine.settings
    assert (settings.objective, settings.reward, settings.illegal_action) == ("final", "dense", "noop")
    assert (settings.seg_metric, settings.role) == ("soft_dice", "train")
    assert (settings.remeasure, settings.choose_axis, settings.lines_per_step) == ("any" if hard else "never", False, 1)
    scan = settings.scan
    assert (scan.corruption, scan.phase_encode) == ((0.25, "random") if hard else (0.0, "columns"))
    measured = "Raw" in name or "CMRxRecon" in name
    assert (scan.echo_shift, scan.orientation) == ((12.0, 45.0) if hard else (0.0 if measured else 4.0, 0.0))
    assert (scan.coils, scan.snr) == ((4, None) if measured else (1, 20.0))
    assert ("dice" in info) is ("Seg" in name)


def test_spaces_do_not_depend_on_the_budget(kwargs_of):
    name = "KSpaceRecon-Phantom-v0"
    spaces = [gymnasium.make(name, **{**kwargs_of(name), "budget": budget}).observation_space for budget in (1, 100)]
    assert spaces[0] == spaces[1]


@pytest.mark.parametrize("name", KSPACE)
def test_a_spec_survives_json(kwargs_of, name):
    env = gymnasium.make(name, **kwargs_of(name))
    text = env.spec.to_json()
    json.loads(text)
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(text))
    first, second = env.reset(seed=3), again.reset(seed=3)
    for part in first[0]:
        np.testing.assert_array_equal(first[0][part], second[0][part])
    assert first[1]["key"] == second[1]["key"]


def test_environments_can_be_pickled(kwargs_of):
    name = "KSpaceSeg-Phantom-v0"
    env = gymnasium.make(name, **kwargs_of(name)).unwrapped
    env.reset(seed=0)
    env.step(5)
    copy = pickle.loads(pickle.dumps(env))
    for one, two in zip(env.step(6)[0].values(), copy.step(6)[0].values(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_spawned_workers_make_the_environment(kwargs_of):
    """AsyncVectorEnv with spawn: nothing but the id and plain values reaches the child."""
    name = "KSpaceRecon-Phantom-v0"
    envs = gymnasium.make_vec(
        f"seggym:{name}",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        **kwargs_of(name),
    )
    try:
        observation, info = envs.reset(seed=[5, 6])
        single = gymnasium.make(name, **kwargs_of(name))
        alone, alone_info = single.reset(seed=6)
        np.testing.assert_array_equal(observation["image"][1], alone["image"])
        assert info["key"][1] == alone_info["key"]
        _, reward, _, _, _ = envs.step(np.array([3, 4]))
        assert reward[1] == single.step(4)[1]
    finally:
        envs.close()


def run_fresh(code, tmp_path):
    """Run ``code`` in a new process outside the repository."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment
    )


def test_a_fresh_process_makes_the_id(kwargs_of, tmp_path):
    name = "KSpaceRecon-Phantom-v0"
    code = (
        "import gymnasium\n"
        f"env = gymnasium.make('seggym:{name}', **{kwargs_of(name)!r})\n"
        "observation, info = env.reset(seed=11)\n"
        "print(info['key'], env.step(9)[1])\n"
    )
    result = run_fresh(code, tmp_path)
    assert result.returncode == 0, result.stderr
    env = gymnasium.make(name, **kwargs_of(name))
    _, info = env.reset(seed=11)
    assert result.stdout.split() == [str(info["key"]), str(env.step(9)[1])]


def test_importing_seggym_is_light(tmp_path):
    code = (
        "import sys, seggym, gymnasium\n"
        "print([m for m in ('torch', 'monai', 'stable_baselines3', 'matplotlib') if m in sys.modules])\n"
        "print('KSpaceSeg-ACDC-v0' in gymnasium.registry)\n"
    )
    result = run_fresh(code, tmp_path)
    assert result.stdout.split("\n")[:2] == ["[]", "True"], result.stderr


def test_making_an_environment_imports_what_it_needs_only(kwargs_of, tmp_path):
    """MONAI, for one, takes longer to import than all the rest of the environment."""
    name = "KSpaceSeg-Phantom-v0"
    code = (
        "import sys, gymnasium\n"
        f"gymnasium.make('seggym:{name}', **{kwargs_of(name)!r}).reset(seed=0)\n"
        "heavy = ('monai', 'matplotlib', 'stable_baselines3', 'skimage', 'tensorboard', 'omegaconf', 'hydra')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    result = run_fresh(code, tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_what_is_missing_is_one_sentence(kwargs_of, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path))
    monkeypatch.delenv("SEGGYM_ACDC_ROOT", raising=False)
    with pytest.raises(SeggymError, match="SEGGYM_ACDC_ROOT"):
        gymnasium.make("KSpaceRecon-ACDC-v0")
    kwargs = kwargs_of("KSpaceSeg-ACDC-v0")
    with pytest.raises(SeggymError, match=r"train_reward_model\.sh cohort=acdc.* minutes"):
        gymnasium.make("KSpaceSeg-ACDC-v0", data_root=kwargs["data_root"])
    phantoms = kwargs_of("KSpaceSeg-Phantom-v0")
    with pytest.raises(SeggymError, match="96 x 96"):
        gymnasium.make("KSpaceSeg-ACDC-v0", data_root=kwargs["data_root"], reward_model=phantoms["reward_model"])
    folders = kwargs_of("KSpaceSeg-Folder-v0")
    with pytest.raises(SeggymError, match="4 classes"):
        gymnasium.make("KSpaceSeg-Folder-v0", **{**folders, "cohort_options": {"num_classes": 5}})
    with pytest.raises(SeggymError, match="set budget="):
        KSpaceVectorEnv(2, max_episode_steps=5, **{**ENVIRONMENTS["KSpaceSeg-Phantom-v0"][2], **phantoms})


def test_a_network_never_scores_its_own_patients(kwargs_of, tmp_path):
    """A single network that was trained on a patient of the role is refused."""
    kwargs = kwargs_of("KSpaceSeg-ACDC-v0")
    source = Path(kwargs["reward_model"])
    card = json.loads((source / "model.json").read_text())
    card["patients"] = ["patient001", "patient002", "patient003", "patient004"]
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(SeggymError, match="was trained on patient00"):
        gymnasium.make("KSpaceSeg-ACDC-v0", **{**kwargs, "reward_model": str(tmp_path)})


def test_micro_batch_reaches_the_networks():
    """A larger one than the default counts too: nothing splits the images again."""
    options = {"cohort_options": {"patients": 6, "test_patients": 1}, "micro_batch": 11}
    env = gymnasium.make_vec("KSpaceSeg-Phantom-v0", num_envs=2, vectorization_mode="vector_entry_point", **options)
    assert {network.max_batch for network in env.unwrapped.engine.networks} == {11}
    assert env.unwrapped.engine.micro_batch == 11
