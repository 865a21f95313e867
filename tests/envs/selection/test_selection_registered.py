"""Every selection id: made both ways from written example data, checked by Gymnasium and by us."""

import json
import warnings
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from seggym.cohorts import acdc, chaos, davis, mscmr
from seggym.envs import ENVIRONMENTS
from seggym.envs.selection import images
from seggym.envs.selection.environment import SelectionVectorEnv
from seggym.envs.selection.settings import SelectionSettings
from seggym.errors import SeggymError
from seggym.testing import check_seg_env

NAMES = [name for name in ENVIRONMENTS if name.startswith("ALSelect")]
WRITERS = {
    "acdc": partial(acdc.write_example, patients=8),
    "mscmr": partial(mscmr.write_example, patients=8),
    "chaos": partial(chaos.write_example, patients=8, modalities=("ct",)),
    "davis": partial(davis.write_example, patients=8, layout="h5"),
    "images": images.write_example,
}


@pytest.fixture(scope="module")
def kwargs_of(tmp_path_factory, untrained_encoder):
    """id -> keyword arguments that make it without a download and without training an encoder."""
    root = tmp_path_factory.mktemp("selection")

    def make(name):
        cohort = ENVIRONMENTS[name][2]["cohort"]
        kwargs = {"budget": [2, 4], "initial": 2, "candidates": 5, "device": "cpu", "size": 32}
        if cohort == "phantom":
            kwargs["cohort_options"] = {"patients": 6, "test_patients": 2}
        elif cohort == "instances":
            # Every class is in the reward set: the precision of an absent one is no number.
            kwargs["cohort_options"] = {"images": 60, "variant": "balanced"}
            kwargs["learner_options"] = {"first_iterations": 2, "iterations": 1, "batch": 2, "width": 8, "proposals": 4}
            return kwargs
        else:
            kwargs["data_root"] = str(root / cohort)
            if not (root / cohort).is_dir():
                WRITERS[cohort](root / cohort)
        if cohort == "images":
            kwargs["learner_options"] = {"iterations": 3}
        else:
            kwargs["encoder"] = untrained_encoder
        return kwargs

    return make


@pytest.mark.parametrize("action", ["candidates", "pool"])
@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_finds_nothing_to_warn_of(kwargs_of, name, action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make(name, render_mode="rgb_array", action=action, **kwargs_of(name))
        check_env(env.unwrapped)
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("objective", ["final", "area"])
@pytest.mark.parametrize("name", NAMES)
def test_our_own_check_passes(kwargs_of, name, objective):
    env = gymnasium.make(f"seggym:{name}", objective=objective, **kwargs_of(name))
    check_seg_env(env, objective=objective)


@pytest.mark.parametrize("name", NAMES)
def test_made_in_a_batch(kwargs_of, name):
    envs = gymnasium.make_vec(name, num_envs=3, autoreset_mode="SameStep", **kwargs_of(name))
    assert isinstance(envs.unwrapped, SelectionVectorEnv)
    observation, info = envs.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(6):
        assert envs.observation_space.contains(observation)
        actions = [rng.choice(np.flatnonzero(mask)) for mask in info["action_mask"]]
        observation, reward, _, _, info = envs.step(np.array(actions))
        assert np.isfinite(reward).all()
    seeds = envs.reset(seed=5)[1]["key"]
    single = gymnasium.make(name, **kwargs_of(name))
    assert [single.reset(seed=5 + slot)[1]["key"] for slot in range(3)] == seeds.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_of_v0(kwargs_of, name):
    """They are promised: another default is another version."""
    env = gymnasium.make(name, **{**kwargs_of(name), "candidates": 32})
    settings = env.unwrapped.engine.settings
    kwargs = ENVIRONMENTS[name][2]
    plain = SelectionSettings(**kwargs)
    assert (plain.budget, plain.initial, plain.candidates, plain.samples_per_query) == (15, 5, 32, 1)
    assert (plain.role, tuple(plain.shares), plain.unit, plain.ann_type) == ("train", (0.1, 0.6, 0.3), "slice", "mask")
    assert (plain.objective, plain.reward, plain.illegal_action, plain.action) == (
        "final",
        "gain",
        "noop",
        "candidates",
    )
    kind = name.split("-")[1]
    assert (plain.learner, plain.metric, plain.size) == {
        "Classification": ("classifier", "accuracy", 32),
        "Instances": ("instances", "map", 64),
    }.get(kind, ("probe", "dice", 96))
    assert plain.spacing == (2.0 if kind in ("ACDC", "Phantom", "MSCMR") else None)
    classes = len(env.unwrapped.engine.pool.class_names)
    space = env.observation_space
    assert space["candidates"].shape == (min(32, len(env.unwrapped.engine.pool)), 14 + 3 * classes)
    assert space["learner"].shape == (10 + 2 * classes,)
    assert settings.cohort == kwargs["cohort"]


@pytest.mark.parametrize("name", ["ALSelect-Phantom-v0", "ALSelect-Classification-v0"])
def test_a_spec_survives_json(kwargs_of, name):
    env = gymnasium.make(name, **kwargs_of(name))
    text = env.spec.to_json()
    json.loads(text)
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(text))
    first, second = env.reset(seed=3), again.reset(seed=3)
    for part in first[0]:
        np.testing.assert_array_equal(first[0][part], second[0][part])


@pytest.mark.parametrize("settings", [{"unit": "volume"}, {"unit": "patient"}, {"ann_type": "scribble"}])
def test_units_and_scribbles_of_a_cohort(kwargs_of, settings):
    kwargs = {**kwargs_of("ALSelect-Phantom-v0"), "initial": 1, "budget": 1, "role": "all", **settings}
    check_seg_env(gymnasium.make("ALSelect-Phantom-v0", **kwargs))


def test_no_patient_is_in_two_roles(kwargs_of):
    kwargs = {**kwargs_of("ALSelect-ACDC-v0"), "scored": ["reward", "val", "test"]}
    engine = gymnasium.make("ALSelect-ACDC-v0", **kwargs).unwrapped.engine
    pool = {name.split("_")[0] for name in engine.pool.table.names}
    sets = [{name.split("_")[0] for name in part.names} for part in _scored_sets(kwargs)]
    everyone = [*pool, *(name for part in sets for name in part)]
    assert len(everyone) == len(set(everyone))
    assert all(sets)
    engine.begin(torch.tensor([0]), engine.draw(torch.tensor([1])))
    assert all(engine.evaluate(0, part).shape[1] == 3 for part in ("reward", "val", "test"))


def _scored_sets(kwargs):
    from seggym.envs.selection.sources import load_material

    settings = SelectionSettings(**{**ENVIRONMENTS["ALSelect-ACDC-v0"][2], **kwargs})
    return load_material(settings, torch.device("cpu"), torch.float32).scored.values()


def test_an_encoder_that_knows_a_reward_patient_is_refused(kwargs_of, tmp_path, untrained_encoder):
    kwargs = kwargs_of("ALSelect-ACDC-v0")
    card = json.loads((tmp_path.parent / untrained_encoder / "model.json").read_text())
    for file in ("model.json", "model.safetensors"):
        source = tmp_path.parent / untrained_encoder / file
        (tmp_path / file).write_bytes(source.read_bytes())
    card |= {"cohort": "acdc", "patients": [f"patient{index:03d}" for index in range(1, 9)]}
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(SeggymError, match="was trained on patient00"):
        gymnasium.make("ALSelect-ACDC-v0", **{**kwargs, "encoder": str(tmp_path)})


def test_what_is_wrong_is_one_sentence(kwargs_of):
    name = "ALSelect-Phantom-v0"
    cases = [
        ({"budget": 5000}, "budget=5000 goes up to 5000"),
        ({"learner": "forest"}, "learner='forest' is unknown, expected one of probe, unet, classifier, instances"),
        ({"learner_options": {"ridges": 1.0}}, "learner_options.ridges is unknown, expected some of ridge, balance"),
        ({"learner": "unet", "learner_options": {"start": "again"}}, "expected scratch or fine_tune"),
        ({"encoder": "nowhere"}, "train one with `python agents/train_encoder.py cohort=phantom name=nowhere`"),
        ({"candidates": 2, "samples_per_query": 3}, "candidates=2 are fewer than samples_per_query=3"),
        ({"costs": {"mask": -1.0}}, "costs.mask=-1.0 must not be negative"),
        ({"metric": "accuracy"}, "metric=accuracy"),
        ({"size": 50}, "size=50 must be a multiple of 16"),
        ({"shares": [0.5, 0.5, 0.0], "scored": ["reward", "val"]}, "scored names val, a role without patients"),
        ({"class_slots": 2}, "class_slots=2 is less than the 4 classes"),
    ]
    for wrong, sentence in cases:
        with pytest.raises(SeggymError) as error:
            gymnasium.make(name, **{**kwargs_of(name), **wrong})
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)
