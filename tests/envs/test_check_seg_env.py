"""``check_seg_env`` accepts our environments and notices each way of breaking a contract."""

import gymnasium
import numpy as np
import pytest

from seggym.envs.kspace.environment import KSpaceEnv
from seggym.testing import check_seg_env


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"budget": 1},
        {"stop_action": True, "observation": ["image", "budget", "action_mask"]},
        {"reward": "terminal", "lambda_recon": 1.0},
        {"candidates": [20, 28], "illegal_action": "penalty"},
        {"observation": ["features"]},
    ],
    ids=str,
)
def test_our_environments_pass(make_engine, settings):
    check_seg_env(KSpaceEnv(engine=make_engine(1, **settings)))


def test_weighted_rewards_pass_with_their_objective(make_engine):
    env = KSpaceEnv(engine=make_engine(1, objective="area", budget=8))
    check_seg_env(env, objective="area")
    with pytest.raises(AssertionError, match="summed to"):
        check_seg_env(env)


class Broken(KSpaceEnv):
    """Passes everything on; each subclass breaks one thing."""

    calls = 0

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        self.calls += 1
        return self.spoil(observation, info, 0.0, "reset")[:2]

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        observation, info, reward = self.spoil(observation, info, reward, "step")
        return observation, reward, terminated, truncated, info

    def spoil(self, observation, info, reward, where):
        return observation, info, reward


class OutsideTheSpace(Broken):
    def spoil(self, observation, info, reward, where):
        return {**observation, "image": observation["image"].astype(np.float32)}, info, reward


class NotFinite(Broken):
    def spoil(self, observation, info, reward, where):
        return observation, info, float("nan")


class UnnamedReward(Broken):
    def spoil(self, observation, info, reward, where):
        return observation, info, reward - 0.1


class WrongPart(Broken):
    def spoil(self, observation, info, reward, where):
        parts = {"quality": info["reward_parts"]["quality"] + 0.1}
        return observation, {**info, "reward_parts": parts}, reward + 0.1


class TwoMasks(Broken):
    def spoil(self, observation, info, reward, where):
        mask = info["action_mask"].copy()
        mask[0] = 1 - mask[0]
        return observation, {**info, "action_mask": mask}, reward


class StaleMask(Broken):
    def action_masks(self):
        if self.calls != getattr(self, "_kept", None):
            self._kept, self._mask = self.calls, np.ones(48, bool)
        fresh = super().action_masks()
        if not self._mask.any():
            return self._mask
        self._mask[:] = fresh
        return self._mask


class NoMaskAtTheEnd(Broken):
    def action_masks(self):
        return self.engine.action_mask()[0].numpy()

    def spoil(self, observation, info, reward, where):
        return observation, {**info, "action_mask": self.action_masks()}, reward


class SharedArrays(Broken):
    def spoil(self, observation, info, reward, where):
        if not hasattr(self, "_shared"):
            self._shared = {name: value.copy() for name, value in observation.items()}
        for name, value in observation.items():
            self._shared[name][...] = value
        return self._shared, info, reward


class EndlessBudget(Broken):
    def spoil(self, observation, info, reward, where):
        return {**observation, "budget": np.full(1, 0.5, np.float32)}, info, reward


class Unseeded(Broken):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None, options=options)


class IgnoresSeeds(Broken):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=0, options=options)


class NoReplay(Broken):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)


class FreeIllegalAction(Broken):
    def step(self, action):
        if self.action_masks()[action]:
            return super().step(action)
        observation = {part: value[0].numpy() for part, value in self.engine.observe().items()}
        info = self._batch._info(np.arange(1))
        single = {name: value[0] for name, value in info.items() if name != "reward_parts"}
        return observation, 0.0, False, False, {**single, "reward_parts": {"quality": 0.0}}


class NoKey(Broken):
    def spoil(self, observation, info, reward, where):
        return observation, {name: value for name, value in info.items() if name != "key"}, reward


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (OutsideTheSpace, "outside observation_space"),
        (NotFinite, "expected a finite number"),
        (UnnamedReward, "reward_parts'\\] sum to"),
        (WrongPart, "summed to"),
        (TwoMasks, "disagree"),
        (StaleMask, "fresh one at every call|no action is legal"),
        (NoMaskAtTheEnd, "not all ones"),
        (SharedArrays, "fresh array at every call"),
        (EndlessBudget, "budget"),
        (Unseeded, "differ|lasted"),
        (IgnoresSeeds, "began the same episode"),
        (NoReplay, "replay"),
        (FreeIllegalAction, "used no budget"),
        (NoKey, "lacks key"),
    ],
)
def test_a_broken_contract_is_noticed(make_engine, broken, words):
    with pytest.raises(AssertionError, match=words):
        check_seg_env(broken(engine=make_engine(1)))


def test_other_kinds_of_environments_are_told_what_is_expected():
    with pytest.raises(AssertionError, match="Dict"):
        check_seg_env(gymnasium.make("CartPole-v1"))
