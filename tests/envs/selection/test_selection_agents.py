"""Agents of stable-baselines3 learn in the selection environments as they are."""

import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN

from seggym.agents.vec_env import BatchedVecEnv
from seggym.envs.selection.environment import SelectionEnv, SelectionVectorEnv


def test_maskable_ppo_trains_on_the_batch(make_selection):
    env = BatchedVecEnv(SelectionVectorEnv(4, autoreset_mode="SameStep", engine=make_selection(4, budget=4)))
    agent = MaskablePPO("MultiInputPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    before = [value.clone() for value in agent.policy.parameters()]
    agent.learn(64)
    assert any((one != other).any() for one, other in zip(before, agent.policy.parameters(), strict=True))
    # With the masks nothing illegal is ever chosen.
    observation = env.reset()
    for _ in range(6):
        masks = env.env_method("action_masks")
        actions, _ = agent.predict(observation, action_masks=masks, deterministic=True)
        assert masks[np.arange(4), actions].all()
        observation, _, _, _ = env.step(actions)
    assert (env.last_infos["illegal_actions"] == 0).all()


def test_dqn_trains_on_one(make_selection):
    env = SelectionEnv(engine=make_selection(1, budget=4))
    DQN("MultiInputPolicy", env, learning_starts=8, buffer_size=64, seed=0, device="cpu").learn(24)
