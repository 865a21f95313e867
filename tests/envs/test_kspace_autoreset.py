"""Both autoreset modes, fresh arrays and tensors as output."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from seggym.envs.kspace.environment import KSpaceEnv, KSpaceVectorEnv
from seggym.errors import SeggymError

OBSERVATION = ["image", "acquired", "budget", "probabilities", "features", "kspace", "image_float", "action_mask"]
EPISODES = [{"sample": 0, "budget": 2, "key": 1}, {"sample": 1, "budget": 4, "key": 2}]


def make(make_engine, mode, **settings):
    engine = make_engine(2, budget=[2, 6], observation=OBSERVATION, **settings)
    return KSpaceVectorEnv(2, engine=engine, autoreset_mode=mode)


def test_the_mode_is_in_the_metadata(make_engine):
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        assert make(make_engine, mode).metadata["autoreset_mode"] is mode
        assert make(make_engine, mode.value).metadata["autoreset_mode"] is mode
    assert KSpaceVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    with pytest.raises(SeggymError, match="SameStep"):
        make(make_engine, AutoresetMode.DISABLED)


def test_next_step(make_engine):
    """An ended scan returns its own last observation, and begins anew in the step after, with reward 0."""
    env = make(make_engine, AutoresetMode.NEXT_STEP)
    env.reset(seed=0, options={"episodes": EPISODES})
    env.step([0, 0])
    observation, reward, terminated, _, info = env.step([1, 1])
    assert terminated.tolist() == [True, False]
    assert reward[0] != 0
    assert observation["acquired"].sum(1).tolist() == [5, 5]
    assert observation["budget"][0] == 0
    assert info["key"].tolist() == [1, 2]
    assert "final_obs" not in info
    assert info["action_mask"][0].all(), "the mask of a terminal observation is all ones"
    assert observation["action_mask"][0].all()
    assert not info["action_mask"][1].all()
    observation, reward, terminated, _, info = env.step([7, 2])
    assert terminated.tolist() == [False, False]
    assert reward[0] == 0
    assert info["reward_parts"]["quality"][0] == 0
    assert observation["acquired"].sum(1).tolist() == [3, 6]
    assert info["key"][0] != 1


def test_same_step(make_engine):
    """An ended scan returns the first observation of the next one; its own end is in the infos."""
    env = make(make_engine, AutoresetMode.SAME_STEP)
    env.reset(seed=0, options={"episodes": EPISODES})
    _, _, _, _, info = env.step([0, 0])
    assert "final_obs" not in info
    observation, reward, terminated, _, info = env.step([1, 1])
    assert terminated.tolist() == [True, False]
    assert reward[0] != 0
    assert observation["acquired"].sum(1).tolist() == [3, 5]
    assert info["key"][0] != 1
    assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [True, False]
    final = info["final_obs"][0]
    assert env.single_observation_space.contains(final)
    assert final["acquired"].sum() == 5
    assert final["budget"][0] == 0
    assert final["action_mask"].all()
    assert info["final_obs"][1] is None
    last = info["final_info"]
    assert last["key"][0] == 1
    assert last["action_mask"][0].all()
    assert last["lines"][0] == 5
    assert last["_key"].tolist() == [True, False]
    assert not info["action_mask"].all(1).any()


def test_both_modes_tell_the_same_story(make_engine):
    """Same episodes and lines: rewards and last observations agree."""
    ends = {}
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        env = make(make_engine, mode)
        env.reset(seed=0, options={"episodes": [EPISODES[0]] * 2})
        first = env.step([0, 3])
        second = env.step([1, 4])
        same = mode is AutoresetMode.SAME_STEP
        last = second[4]["final_obs"][1] if same else {name: part[1] for name, part in second[0].items()}
        quality = (second[4]["final_info"] if same else second[4])["quality"]
        ends[mode] = (first[1], second[1], last, quality)
    one, other = ends.values()
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    for name in OBSERVATION:
        np.testing.assert_array_equal(one[2][name], other[2][name])
    np.testing.assert_array_equal(one[3], other[3])


def arrays(value):
    if isinstance(value, dict):
        return [array for part in value.values() for array in arrays(part)]
    if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [array for part in value for array in arrays(part)]
    return [value] if isinstance(value, (np.ndarray, torch.Tensor)) else []


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_arrays_are_fresh_at_every_call(make_engine, mode, output):
    """What was returned does not change later, and changing it changes nothing in the environment."""

    def run(spoil):
        engine = make_engine(2, budget=[2, 6], observation=OBSERVATION, lambda_recon=0.5)
        env = KSpaceVectorEnv(2, engine=engine, autoreset_mode=mode, output=output)
        kept, copies, rng = [], [], np.random.default_rng(0)
        result = env.reset(seed=0)
        for _ in range(12):
            masks = env.action_masks()
            kept.append((result, masks))
            copies.append([np.asarray(array).copy() for array in arrays((result, masks))])
            actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
            if spoil:
                for array in arrays((result, masks)):
                    array[...] = 0
            result = env.step(actions)
        return kept, copies

    kept, copies = run(spoil=False)
    for result, copied in zip(kept, copies, strict=True):
        for array, copy in zip(arrays(result), copied, strict=True):
            np.testing.assert_array_equal(np.asarray(array), copy)
    _, spoiled = run(spoil=True)
    for copied, other in zip(copies, spoiled, strict=True):
        for array, copy in zip(copied, other, strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("settings", [{}, {"illegal_action": "penalty"}, {"reward": "level"}], ids=str)
def test_reset_and_step_tell_the_same_things(make_engine, settings):
    env = make(make_engine, AutoresetMode.NEXT_STEP, **settings)
    first, later = env.reset(seed=0)[1], env.step([0, 1])[4]
    assert first.keys() == later.keys()
    assert first["reward_parts"].keys() == later["reward_parts"].keys()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_what_cannot_be_done_is_one_sentence(make_engine, mode):
    env = make(make_engine, mode)
    with pytest.raises(SeggymError, match=r"call reset\(\) before step"):
        env.step([0, 1])
    with pytest.raises(SeggymError, match="seed holds 1 numbers"):
        env.reset(seed=[3])
    with pytest.raises(SeggymError, match="render_mode='human' is unknown"):
        KSpaceVectorEnv(2, engine=env.engine, render_mode="human")
    np.testing.assert_array_equal(env.reset(seed=np.int64(3))[1]["key"], env.reset(seed=[3, 4])[1]["key"])


def test_tensors_are_the_arrays(make_engine):
    results = {}
    for output in ("numpy", "torch"):
        engine = make_engine(2, observation=OBSERVATION)
        env = KSpaceVectorEnv(2, engine=engine, autoreset_mode="SameStep", output=output)
        env.reset(seed=1)
        results[output] = env.step(torch.tensor([1, 2]) if output == "torch" else [1, 2])
    assert all(isinstance(part, torch.Tensor) for part in results["torch"][0].values())
    for one, two in zip(arrays(results["numpy"]), arrays(results["torch"]), strict=True):
        np.testing.assert_array_equal(one, two.numpy())


def test_single_environment_ends_with_an_all_ones_mask(make_engine):
    env = KSpaceEnv(engine=make_engine(1, budget=1, observation=OBSERVATION))
    env.reset(seed=0)
    observation, _, terminated, _, info = env.step(0)
    assert terminated
    assert info["action_mask"].all()
    assert observation["action_mask"].all()
    assert env.action_masks().all()
    assert env.observation_space.contains(observation)
