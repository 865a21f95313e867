"""Legal and illegal actions, candidates, stopping, and budgets."""

import numpy as np
import pytest
import torch

from seggym.envs.kspace.environment import KSpaceEnv, KSpaceVectorEnv
from seggym.errors import SeggymError

COUNT = 50


def random_legal(masks, rng):
    return np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])


@pytest.mark.parametrize(
    "settings", [{}, {"candidates": [10, 30]}, {"stop_action": True}, {"budget": [40, 45]}], ids=str
)
def test_masks_are_legal_over_ten_thousand_random_steps(make_engine, settings):
    engine = make_engine(COUNT, dtype=torch.float32, **settings)
    env = KSpaceVectorEnv(COUNT, engine=engine, autoreset_mode="SameStep")
    first, last = settings.get("candidates", (0, 47))
    stop = settings.get("stop_action", False)
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=0)
    for _ in range(10_000 // COUNT):
        masks = env.action_masks()
        assert masks.shape == (COUNT, 48 + stop)
        assert masks.dtype == bool
        np.testing.assert_array_equal(masks, info["action_mask"].astype(bool))
        candidate = (np.arange(48) >= first) & (np.arange(48) <= last)
        np.testing.assert_array_equal(masks[:, :48], candidate & (observation["acquired"] == 0))
        assert masks[:, 48:].all()
        actions = random_legal(masks, rng)
        assert all(env.single_action_space.contains(action) for action in actions)
        before = observation["acquired"]
        observation, reward, terminated, _, info = env.step(actions)
        assert np.isfinite(reward).all()
        assert env.observation_space.contains(observation)
        last_info = info["final_info"] if terminated.any() else info
        assert not last_info["illegal_actions"].any()
        for slot in np.flatnonzero(~terminated):
            gained = np.flatnonzero(observation["acquired"][slot] != before[slot])
            assert gained.tolist() == [actions[slot]]


def test_the_initial_lines_are_an_odd_block_around_dc(make_engine):
    for matrix, crop in ((48, 32), (49, 33)):
        env = KSpaceEnv(engine=make_engine(1, acquisition={"matrix": matrix, "crop": crop, "initial_lines": 5}))
        observation, info = env.reset(seed=0)
        assert np.flatnonzero(observation["acquired"]).tolist() == [matrix // 2 + offset for offset in range(-2, 3)]
        assert np.flatnonzero(info["action_mask"] == 0).tolist() == np.flatnonzero(observation["acquired"]).tolist()
        # DC is where the energy is.
        energy = env.engine.scanner.signal[0].abs().square().sum((1, 2))
        assert abs(int(energy.argmax()) - matrix // 2) <= env.engine.acquisition.echo_shift + 1


@pytest.mark.parametrize("handling", ["noop", "penalty"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_an_illegal_action_uses_budget_and_measures_nothing(make_engine, handling, mode):
    engine = make_engine(3, budget=5, illegal_action=handling, illegal_penalty=0.25)
    env = KSpaceVectorEnv(3, engine=engine, autoreset_mode=mode)
    observation, info = env.reset(seed=0)
    after, reward, terminated, _, after_info = env.step([24, 0, 23])  # 23 and 24 are initial lines
    assert after["acquired"].sum(1).tolist() == [3, 4, 3]
    np.testing.assert_array_equal(after["image"][[0, 2]], observation["image"][[0, 2]])
    np.testing.assert_allclose(after["budget"][:, 0], 4 / 48)
    assert after_info["illegal_actions"].tolist() == [1, 0, 1]
    assert after_info["reward_parts"]["quality"][[0, 2]].tolist() == [0, 0]
    np.testing.assert_array_equal(after_info["quality"][[0, 2]], info["quality"][[0, 2]])
    if handling == "penalty":
        assert after_info["reward_parts"]["illegal"].tolist() == [-0.25, 0, -0.25]
        assert reward[[0, 2]].tolist() == [-0.25, -0.25]
    else:
        assert set(after_info["reward_parts"]) == {"quality"}
        assert reward[[0, 2]].tolist() == [0, 0]
    for _ in range(4):
        assert not terminated.any()
        observation, _, terminated, _, after_info = env.step([24, 24, 24])
    assert terminated.all()
    final = after_info["final_info"] if mode == "SameStep" else after_info
    assert final["illegal_actions"].tolist() == [5, 4, 5]


@pytest.mark.parametrize("action", [24, -1, 48, 10**6])
def test_an_illegal_action_raises_where_asked(make_engine, action):
    env = KSpaceEnv(engine=make_engine(1, illegal_action="raise"))
    env.reset(seed=0)
    with pytest.raises(SeggymError, match=f"action {action} of environment 0 is illegal"):
        env.step(action)


def test_the_action_of_a_reset_step_is_ignored(make_engine):
    """NEXT_STEP: a scan that has just ended begins anew, whatever the action says."""
    env = KSpaceVectorEnv(2, engine=make_engine(2, illegal_action="raise", budget=1))
    env.reset(seed=0)
    _, _, terminated, _, _ = env.step([0, 1])
    assert terminated.all()
    observation, reward, terminated, _, info = env.step([24, 24])
    assert not terminated.any()
    assert not reward.any()
    assert observation["acquired"].sum(1).tolist() == [3, 3]
    assert info["illegal_actions"].tolist() == [0, 0]


def test_candidates_end_the_scan_when_they_run_out(make_engine):
    env = KSpaceEnv(engine=make_engine(1, candidates=[22, 27], budget=20))
    _, info = env.reset(seed=0)
    assert np.flatnonzero(info["action_mask"]).tolist() == [22, 26, 27]
    for line, ends in ((26, False), (22, False), (27, True)):
        _, _, terminated, _, info = env.step(line)
        assert terminated is ends
    assert info["action_mask"].all()
    assert env.action_masks().all()


def test_stop_ends_a_scan_at_once(make_engine):
    env = KSpaceEnv(engine=make_engine(1, stop_action=True, budget=9))
    before, info = env.reset(seed=0)
    assert env.action_space.n == 49
    assert info["action_mask"][48] == 1
    observation, reward, terminated, truncated, info = env.step(48)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["illegal_actions"] == 0
    np.testing.assert_array_equal(observation["image"], before["image"])
    assert observation["budget"] == 0


@pytest.mark.parametrize("budget", [1, 12, 45])
def test_a_scan_ends_with_its_budget(make_engine, budget):
    env = KSpaceEnv(engine=make_engine(1, budget=budget))
    observation, info = env.reset(seed=0)
    steps, terminated = 0, False
    while not terminated:
        assert observation["budget"][0] == pytest.approx((budget - steps) / 48)
        observation, _, terminated, truncated, info = env.step(int(info["action_mask"].argmax()))
        assert not truncated
        steps += 1
    assert steps == budget
    assert observation["acquired"].sum() == 3 + budget
    assert info["lines"] == 3 + budget
    with pytest.raises(SeggymError, match="call reset"):
        env.step(0)


def test_every_scan_of_a_batch_ends_on_its_own(make_engine):
    env = KSpaceVectorEnv(8, engine=make_engine(8, budget=[2, 9]), autoreset_mode="SameStep")
    _, info = env.reset(seed=1)
    budgets = info["budget"]
    assert len(set(budgets.tolist())) > 3
    ended_at = np.zeros(8, int)
    rng = np.random.default_rng(0)
    for step in range(1, 10):
        _, _, terminated, _, _ = env.step(random_legal(env.action_masks(), rng))
        ended_at[terminated & (ended_at == 0)] = step
    np.testing.assert_array_equal(ended_at, budgets)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": 46}, "1..45"),
        ({"budget": 0}, "1..45"),
        ({"budget": [5, 3]}, "1..45"),
        ({"budget": 4.5}, "whole numbers"),
        ({"budget": "12"}, "whole numbers"),
        ({"budget": [3]}, "whole numbers"),
        ({"candidates": [5, 48]}, "candidates"),
        ({"candidates": [23, 25]}, "initial lines only"),
        ({"candidates": 7}, "whole numbers"),
        ({"illegal_action": "ignore"}, "noop"),
        ({"observation": ["picture"]}, "image_float"),
        ({"observation": []}, "image_float"),
        ({"lambda_seg": 0.0}, "lambda"),
        ({"reward_model": None}, "reward_model"),
        ({"acquisition": {"matrix": 48, "crop": 32, "turns": 8}}, "echo_shift"),
        ({"acquisition": {"matrix": 48, "crop": 64}}, "crop=64"),
        ({"acquisition": {"matrix": 48, "crop": 32, "coils": 0}}, "coils=0"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"acquisition": {"matrix": 48, "crop": 32, "initial_lines": 4}}, "odd"),
    ],
)
def test_impossible_settings_are_refused_in_one_sentence(make_engine, settings, words):
    with pytest.raises(SeggymError, match=words):
        make_engine(1, **settings)


@pytest.mark.parametrize(
    ("episodes", "words"),
    [
        ([{"sample": 7, "budget": 3, "key": 1}], "outside 0..6"),
        ([{"sample": 0, "budget": 46, "key": 1}], "budget outside"),
        ([{"sample": 0, "budget": 3}], "sample, budget and key"),
        ([{"sample": 0, "budget": 3, "key": 1}] * 2, "expected one for each"),
        (["abc"], "sample, budget and key"),
    ],
)
def test_impossible_episodes_are_refused_in_one_sentence(make_engine, episodes, words):
    env = KSpaceEnv(engine=make_engine(1))
    with pytest.raises(SeggymError, match=words):
        env.reset(options={"episodes": episodes})
