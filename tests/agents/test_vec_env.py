"""The adapter against the batched environment that it wraps, stepped by hand with the same seeds and actions."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from seggym.agents.vec_env import BatchedVecEnv
from seggym.errors import SeggymError


def make(tiny_env, **kwargs):
    mode = kwargs.pop("autoreset_mode", "SameStep")
    return gymnasium.make_vec(
        tiny_env["id"],
        num_envs=4,
        vectorization_mode="vector_entry_point",
        autoreset_mode=mode,
        **{**tiny_env["kwargs"], **kwargs},
    )


def test_next_step_environments_are_refused(tiny_env):
    with pytest.raises(SeggymError, match="SameStep"):
        BatchedVecEnv(make(tiny_env, autoreset_mode="NextStep"))


def test_equals_the_batch_stepped_by_hand(tiny_env):
    adapter, batch = BatchedVecEnv(make(tiny_env)), make(tiny_env)
    seeds = adapter.seed(3)
    observation, (expected, _) = adapter.reset(), batch.reset(seed=list(seeds))
    returns, lengths, qualities = np.zeros(4), np.zeros(4, int), [[] for _ in range(4)]
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(12):
        for part in expected:
            np.testing.assert_array_equal(observation[part], expected[part])
        actions = rng.integers(0, 32, 4)
        observation, reward, done, infos = adapter.step(actions)
        expected, expected_reward, terminated, truncated, info = batch.step(actions)
        assert reward.dtype == np.float32
        np.testing.assert_allclose(reward, expected_reward, rtol=1e-6)
        np.testing.assert_array_equal(done, terminated | truncated)
        returns += expected_reward
        lengths += 1
        for slot in range(4):
            last = info["final_info"] if done[slot] else info
            qualities[slot].append(last["quality"][slot])
            np.testing.assert_array_equal(adapter.last_infos["quality"][slot], last["quality"][slot])
            if not done[slot]:
                assert infos[slot] == {}
                continue
            ended += 1
            end = infos[slot]
            assert end["episode"] == {"r": pytest.approx(returns[slot]), "l": lengths[slot]}
            assert end["TimeLimit.truncated"] is False
            assert end["lines"] == info["final_info"]["lines"][slot]
            assert end["mean_quality"] == pytest.approx(np.mean(qualities[slot]))
            assert end["reward_parts"]["quality"] == pytest.approx(returns[slot], abs=1e-6)
            for part, value in info["final_obs"][slot].items():
                np.testing.assert_array_equal(end["terminal_observation"][part], value)
            returns[slot], lengths[slot], qualities[slot] = 0, 0, []
    assert ended > 4


def test_tensors_are_the_same_scans(tiny_env):
    arrays, tensors = BatchedVecEnv(make(tiny_env)), BatchedVecEnv(make(tiny_env, output="torch"))
    assert (arrays.gives_tensors, tensors.gives_tensors) == (False, True)
    for adapter in (arrays, tensors):
        adapter.seed(3)
    expected, seen = arrays.reset(), tensors.reset()
    ended = 0
    for step in range(8):
        for part, value in expected.items():
            assert isinstance(seen[part], torch.Tensor)
            np.testing.assert_array_equal(seen[part].numpy(), value)
            assert seen[part].numpy().dtype == value.dtype
        actions = np.arange(4) + 4 * step
        expected, *outcome, infos = arrays.step(actions)
        seen, *same_outcome, same_infos = tensors.step(actions)
        for value, same in zip(outcome, same_outcome, strict=True):
            assert type(same) is np.ndarray
            assert same.dtype == value.dtype
            np.testing.assert_array_equal(same, value)
        for info, same in zip(infos, same_infos, strict=True):
            assert info.keys() == same.keys()
            assert info.get("episode") == same.get("episode")
            assert info.get("reward_parts") == same.get("reward_parts")
            for part, value in info.get("terminal_observation", {}).items():
                np.testing.assert_array_equal(same["terminal_observation"][part].numpy(), value)
            ended += "episode" in info
    assert ended > 4


def test_infos_of_running_environments_cost_nothing_and_finished_ones_are_their_own(tiny_env):
    adapter = BatchedVecEnv(make(tiny_env, budget=1))
    adapter.reset()
    infos = adapter.step(np.arange(4))[3]
    assert len({id(info) for info in infos}) == 4
    adapter = BatchedVecEnv(make(tiny_env, budget=9))
    adapter.reset()
    assert adapter.step(np.arange(4))[3] == [{}] * 4


def test_masks_come_as_one_array(tiny_env):
    adapter: VecEnv = BatchedVecEnv(make(tiny_env))
    adapter.reset()
    masks = adapter.env_method("action_masks")
    assert masks.shape == (4, 32)
    assert masks.dtype == bool
    assert not masks[:, 15:18].any()
    assert masks.sum() == 4 * 29
    assert adapter.has_attr("action_masks")
    assert not adapter.has_attr("nothing_of_the_kind")
    np.testing.assert_array_equal(adapter.env_method("action_masks", indices=[2]), masks[2:3])


def test_neighbouring_seeds_share_no_episode(tiny_env):
    adapter = BatchedVecEnv(make(tiny_env))
    keys = []
    for seed in range(5):
        adapter.seed(seed)
        adapter.reset()
        keys += adapter.last_infos["key"].tolist()
    assert len(set(keys)) == 20
    adapter.seed(0)
    adapter.reset()
    assert adapter.last_infos["key"].tolist() == keys[:4]


def test_state_continues_returns_and_episodes(tiny_env):
    first, second = BatchedVecEnv(make(tiny_env)), BatchedVecEnv(make(tiny_env))
    first.seed(0)
    first.reset()
    first.step(np.array([1, 2, 3, 4]))
    state = first.state_dict()
    second.reset()
    second.load_state_dict(state)
    for step in range(6):
        actions = np.arange(4) + 4 * step
        (a, r, d, i), (b, s, e, j) = first.step(actions), second.step(actions)
        for part in a:
            np.testing.assert_array_equal(a[part], b[part])
        np.testing.assert_array_equal(r, s)
        np.testing.assert_array_equal(d, e)
        assert [x.get("episode") for x in i] == [x.get("episode") for x in j]


def test_images(tiny_env):
    adapter = BatchedVecEnv(make(tiny_env, render_mode="rgb_array"))
    adapter.reset()
    images = adapter.get_images()
    assert len(images) == 4
    assert images[0].dtype == np.uint8
    assert adapter.render().ndim == 3
    assert BatchedVecEnv(make(tiny_env)).get_images() == [None] * 4
