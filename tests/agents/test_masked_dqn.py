"""Masked DQN: no illegal action, whether greedy, exploring or warming up, and no illegal action in the target."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

from seggym.agents.algorithms.masked_dqn import MaskedDQN, MaskedDQNPolicy, random_legal
from seggym.agents.extractors import DictExtractor
from seggym.agents.vec_env import BatchedVecEnv
from seggym.errors import SeggymError


@pytest.fixture
def make_model(tiny_env):
    def make(observation=("acquired", "budget", "action_mask"), **kwargs):
        env = gymnasium.make_vec(
            tiny_env["id"],
            num_envs=4,
            vectorization_mode="vector_entry_point",
            autoreset_mode="SameStep",
            **{**tiny_env["kwargs"], "observation": list(observation), "illegal_action": "raise"},
        )
        arguments = {"learning_starts": 40, "batch_size": 16, "buffer_size": 400, "seed": 0, **kwargs}
        return MaskedDQN(
            MaskedDQNPolicy,
            BatchedVecEnv(env),
            policy_kwargs={"features_extractor_class": DictExtractor, "net_arch": [16]},
            **arguments,
        )

    return make


def test_never_takes_an_illegal_action(make_model):
    # The environment raises on the first illegal one. Warm-up, exploration and the greedy phase are all in it.
    model = make_model(train_freq=1, exploration_fraction=0.6)
    model.learn(400)
    assert model.num_timesteps == 400
    assert model.exploration_rate == pytest.approx(0.05)


def test_the_mask_is_necessary(make_model, tiny_env):
    model = make_model()
    stock = DQN("MultiInputPolicy", model.env, learning_starts=40, buffer_size=400, seed=0)
    with pytest.raises(SeggymError, match="illegal"):
        stock.learn(400)


def test_q_values_and_greedy_choice(make_model):
    model = make_model()
    observation = model.env.reset()
    tensors, _ = model.policy.obs_to_tensor(observation)
    masked = model.q_net(tensors).detach().numpy()
    free = super(type(model.q_net), model.q_net).forward(tensors).detach().numpy()
    legal = observation["action_mask"].astype(bool)
    np.testing.assert_array_equal(masked[legal], free[legal])
    assert (masked[~legal] == np.finfo(np.float32).min).all()
    chosen, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(chosen, np.where(legal, free, -np.inf).argmax(1))


def test_target_uses_the_mask_of_the_next_state(make_model):
    model = make_model(gamma=1.0)
    model.learn(60)
    batch = model.replay_buffer.sample(32)
    with torch.no_grad():
        free = super(type(model.q_net_target), model.q_net_target).forward(batch.next_observations).numpy()
        target = model.q_net_target(batch.next_observations).max(1).values.numpy()
    masks = batch.next_observations["action_mask"].numpy() != 0
    np.testing.assert_array_equal(target, np.where(masks, free, -np.inf).max(1))
    ended = batch.dones.numpy()[:, 0] == 1
    assert ended.any()
    assert masks[ended].all()
    assert not masks[~ended].all(1).any()


def test_every_environment_tosses_its_own_coin(make_model):
    model = make_model()
    model.exploration_rate = 0.5
    observation = model.env.reset()
    many = {name: np.repeat(value[:1], 4000, 0) for name, value in observation.items()}
    greedy = model.predict(many, deterministic=True)[0]
    differs = model.predict(many)[0] != greedy
    # 28 of 29 random legal actions differ from the greedy one.
    assert differs.mean() == pytest.approx(0.5 * 28 / 29, abs=0.04)


def test_random_legal_is_uniform():
    np.random.seed(0)  # noqa: NPY002  the stream that the function draws from
    masks = np.tile(np.array([0, 1, 0, 1, 1], np.int8), (30000, 1))
    counts = np.bincount(random_legal(masks), minlength=5) / 30000
    np.testing.assert_allclose(counts, [0, 1 / 3, 0, 1 / 3, 1 / 3], atol=0.015)


def test_an_observation_without_mask_is_refused(make_model):
    with pytest.raises(SeggymError, match="action_mask"):
        make_model(observation=("acquired", "budget"))
