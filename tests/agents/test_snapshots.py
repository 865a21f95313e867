"""Snapshots choose what the trained model chooses, and what is missing, foreign or unfit is refused in one sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from seggym.agents.algorithms import ALGORITHMS
from seggym.agents.models import TrainSettings, make_batch, make_model
from seggym.agents.snapshots import load_policy, save_snapshot, snapshot_folders
from seggym.errors import SeggymError

METADATA = {"reward_model_hash": None, "cohort": "phantom", "data_fingerprint": "0", "metrics": {}}


@pytest.fixture
def settings(tiny_env):
    return TrainSettings(
        run_dir="",
        env_id=tiny_env["id"],
        env_kwargs=tiny_env["kwargs"],
        algorithm="maskable_ppo",
        hyperparameters={},
        network={"extractor": "dict", "extractor_kwargs": {}, "net_arch": [16], "activation": "relu"},
        prior_strength=6.0,
        num_envs=4,
        device="cpu",
    )


@pytest.fixture
def save(settings, tmp_path):
    def save(algorithm="maskable_ppo"):
        # No prior: an untrained network then has an opinion of its own to compare.
        chosen = replace(settings, algorithm=algorithm, prior_strength=0.0)
        if "dqn" in algorithm:
            chosen = replace(chosen, hyperparameters={"buffer_size": 100})
        model = make_model(chosen)
        engine = model.env.batch.engine
        names = ("algorithm", "network", "env_id", "env_kwargs", "seed")
        facts = {name: getattr(chosen, name) for name in names}
        facts |= {"num_lines": engine.num_lines, "num_classes": engine.stack.num_classes}
        facts |= {"patients": sorted(set(engine.stack.patients))}
        return model, save_snapshot(tmp_path / algorithm / "best", model, {**facts, **METADATA}).parent

    return save


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_chooses_what_the_model_chooses(save, algorithm, tiny_env):
    model, run = save(algorithm)
    policy = load_policy(run)
    observation = model.env.reset()
    masks = model.env.env_method("action_masks")
    masked = {"action_masks": masks} if algorithm == "maskable_ppo" else {}
    expected = model.predict(observation, deterministic=True, **masked)[0]
    np.testing.assert_array_equal(policy.predict(observation, **masked)[0], expected)
    one = {name: value[2] for name, value in observation.items()}
    one_masked = {"action_masks": masks[2]} if masked else {}
    assert policy.predict(one, **one_masked)[0] == expected[2]

    engine = model.env.batch.engine
    actions = policy.act(engine, engine.observe(), engine.action_mask())
    assert engine.action_mask().gather(1, actions[:, None]).all()
    if "mask" in algorithm:
        np.testing.assert_array_equal(actions.numpy(), expected)
    with pytest.raises(SeggymError, match=r"trained on 4 of the 4 patients of cohort phantom with role=train"):
        policy.begin(engine)
    policy.begin(make_batch(tiny_env["id"], {**tiny_env["kwargs"], "role": "test"}, 2).engine)


def test_sampling_follows_the_masks(save):
    model, run = save()
    policy = load_policy(run)
    observation = model.env.reset()
    masks = np.zeros((4, 32), bool)
    masks[:, [3, 9]] = True
    torch.manual_seed(0)
    drawn = {int(a) for _ in range(50) for a in policy.predict(observation, None, None, False, masks)[0]}
    assert drawn == {3, 9}


def test_another_environment_is_refused(save, tiny_env):
    _, run = save()
    policy = load_policy(run)
    for change, pattern in (
        ({"acquisition": {"matrix": 40, "crop": 32}}, "num_lines=40 instead of 32"),
        ({"observation": ["acquired", "budget"]}, "no observation part 'image'"),
        ({"acquisition": {"matrix": 32, "crop": 16}}, "image of shape"),
        ({"stop_action": True}, "num_actions=33 instead of 32"),
    ):
        engine = make_batch(tiny_env["id"], {**tiny_env["kwargs"], **change}, 2).engine
        with pytest.raises(SeggymError, match=pattern):
            policy.begin(engine)


def test_missing_and_foreign_snapshots_are_refused(save, tmp_path):
    with pytest.raises(SeggymError, match="no snapshot at"):
        load_policy(tmp_path)
    _, run = save()
    card = run / "best" / "policy.json"
    original = json.loads(card.read_text())
    for change, pattern in (
        ({"_target_": "os.system"}, "_target_"),
        ({"network": {**original["network"], "extractor": "os.system"}}, r"network.extractor='os.system' is unknown"),
        ({"algorithm": "a2c"}, "algorithm 'a2c' is unknown"),
        ({"format": 99}, "format 99"),
        ({"network": {**original["network"], "net_arch": [8]}}, "does not fit"),
        ({"observation": {"image": {"kind": "magic"}}}, "observation part that is unknown"),
        ({"weights": "0"}, "is not the file that"),
        ({"num_actions": "x"}, "num_actions='x' is a str, expected int"),
        ({"env_kwargs": None}, "env_kwargs=None is null, expected dict"),
        ({"patients": [1]}, "patients must be names"),
    ):
        card.write_text(json.dumps({**original, **change}))
        with pytest.raises(SeggymError, match=pattern):
            load_policy(run)
    card.write_text(json.dumps(original))
    weights = run / "best" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SeggymError, match="cannot read"):
        load_policy(run)


def test_folders_by_name_list_and_glob(save, tmp_path):
    _, first = save()
    _, second = save("ppo")
    assert snapshot_folders(first) == [first]
    assert snapshot_folders([first, str(second), first]) == [first, second]
    assert snapshot_folders(str(tmp_path / "*ppo")) == [first, second]
    with pytest.raises(SeggymError, match="no folder matches"):
        snapshot_folders(str(tmp_path / "seed*"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeggymError, match="no snapshot at"):
        snapshot_folders([first, tmp_path / "empty"])
