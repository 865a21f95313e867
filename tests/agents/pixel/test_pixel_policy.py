"""Policy, buffer, optimizer and wrapper of per-pixel training, each against an independent source."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rings import CLASSES, ring_envs, rings
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from torch.distributions import Categorical

from seggym.agents.pixel.dense_policy import ClippedAdam, DensePolicy, PixelCategorical
from seggym.agents.pixel.pixel_buffer import PixelRolloutBuffer
from seggym.agents.pixel.reward_map_env import RewardMapVecEnv
from seggym.envs.adaptation.engine import AdaptationEngine
from seggym.envs.adaptation.environment import AdaptationEnv
from seggym.envs.adaptation.rewards import OracleReward
from seggym.errors import SeggymError
from seggym.reward_models.networks import build_network

SMALL = {"widths": [4, 8], "norm": "group"}
IMAGES = spaces.Box(0, 1, (1, 8, 8), np.float32)
MAPS = spaces.MultiDiscrete(np.full(64, CLASSES))


def small_policy(**options: Any) -> DensePolicy:
    torch.manual_seed(0)
    return DensePolicy(IMAGES, MAPS, lambda _: 1e-3, actor_options=SMALL, **options)


def test_the_distribution_is_torchs_categorical_at_every_pixel() -> None:
    logits = torch.randn(2, CLASSES, 4, 5, generator=torch.Generator().manual_seed(0))
    ours = PixelCategorical().proba_distribution(logits)
    theirs = Categorical(logits=logits.flatten(2).transpose(1, 2))
    actions = torch.randint(CLASSES, (2, 20), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode)


def test_samples_are_as_frequent_as_they_are_probable() -> None:
    torch.manual_seed(0)
    probabilities = torch.tensor([0.1, 0.3, 0.6])
    logits = probabilities.log()[None, :, None, None].expand(1, 3, 200, 200)
    drawn = PixelCategorical().proba_distribution(logits).sample()
    counts = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    # 40,000 draws: a standard deviation of .0025 at most.
    torch.testing.assert_close(counts, probabilities, atol=0.01, rtol=0)


def test_actor_and_critic_are_two_networks_and_evaluation_is_flat() -> None:
    policy = small_policy(critic_options={"widths": [4, 4], "norm": "group"})
    images = torch.rand(3, 1, 8, 8)
    actions, values, log_probs = policy(images)
    assert actions.shape == values.shape == log_probs.shape == (3, 64)
    flat_values, flat_log_probs, entropy = policy.evaluate_actions(images, actions)
    torch.testing.assert_close(flat_values, values.flatten())
    torch.testing.assert_close(flat_log_probs, log_probs.flatten())
    assert entropy.shape == (192,)
    torch.testing.assert_close(values, policy.critic(images)[0].sigmoid().flatten(1))
    assert torch.equal(policy(images, deterministic=True)[0], policy.actor(images)[0].argmax(1).flatten(1))
    owned = [sum(parameter.numel() for parameter in network.parameters()) for network in (policy.actor, policy.critic)]
    assert sum(parameter.numel() for parameter in policy.parameters()) == sum(owned)
    assert policy.critic.head.out_channels == 1


def test_a_policy_is_saved_and_loaded(tmp_path: Path) -> None:
    policy = small_policy()
    network = build_network("unet", CLASSES, **SMALL)
    policy.load_actor(network.state_dict())
    policy.save(str(tmp_path / "policy.pt"))
    loaded = DensePolicy.load(str(tmp_path / "policy.pt"))
    images = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    expected = network(torch.from_numpy(images))[0].argmax(1).flatten(1).detach().numpy()
    np.testing.assert_array_equal(loaded.predict(images, deterministic=True)[0], expected)
    np.testing.assert_array_equal(loaded.predict(images[0], deterministic=True)[0], expected[0])


def test_clipped_groups_are_two_optimizers() -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(3, 4), nn.Linear(4, 1)
    alone = copy.deepcopy((one, two))
    ours = ClippedAdam(
        [
            {"params": list(one.parameters()), "max_grad_norm": 0.1, "lr": 1e-2},
            {"params": list(two.parameters()), "max_grad_norm": 5.0, "lr": 1e-3},
        ]
    )
    theirs = [torch.optim.Adam(net.parameters(), rate) for net, rate in zip(alone, (1e-2, 1e-3), strict=True)]
    for step in range(5):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        for first, second in ((one, two), alone):
            first.zero_grad()
            second.zero_grad()
            (10 * second(first(x)) ** 2).sum().backward()
        ours.step()
        for net, norm, optimizer in zip(alone, (0.1, 5.0), theirs, strict=True):
            assert nn.utils.clip_grad_norm_(net.parameters(), norm) > norm or norm == 5.0
            optimizer.step()
    for mine, other in zip((one, two), alone, strict=True):
        torch.testing.assert_close(mine.weight, other.weight, rtol=0, atol=0)


def filled(baseline: bool = True, dones: bool = True) -> tuple[PixelRolloutBuffer, dict[str, np.ndarray]]:
    buffer = PixelRolloutBuffer(2, IMAGES, MAPS, "cpu", n_envs=3, baseline=baseline)
    rng = np.random.default_rng(0)
    given = {name: rng.random((2, 3, 64)).astype(np.float32) for name in ("rewards", "values", "log_probs")}
    given["actions"] = rng.integers(0, CLASSES, (2, 3, 64))
    given["images"] = rng.random((2, 3, 1, 8, 8)).astype(np.float32)
    for step in range(2):
        tensors = (torch.from_numpy(given[name][step]) for name in ("values", "log_probs"))
        starts = np.full(3, dones)
        buffer.add(given["images"][step], given["actions"][step], given["rewards"][step], starts, *tensors)
    return buffer, given


def test_advantages_are_rewards_less_divergence_less_values() -> None:
    buffer, given = filled()

    def reference(images: Tensor, actions: Tensor) -> Tensor:
        return -images.flatten(1) - actions

    buffer.reference, buffer.beta = reference, 0.25
    buffer.compute_returns_and_advantage(torch.zeros(3, 64), np.ones(3, bool))
    ratio = given["log_probs"] + given["images"].reshape(2, 3, 64) + given["actions"]
    np.testing.assert_allclose(
        buffer.advantages, given["rewards"] - 0.25 * ratio - given["values"], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(buffer.returns, given["rewards"])
    assert buffer.divergence == pytest.approx(ratio.mean(), rel=1e-5)


def test_minibatches_hold_every_pixel_once_with_its_own_numbers() -> None:
    buffer, given = filled(baseline=False)
    buffer.compute_returns_and_advantage(torch.zeros(3, 64), np.ones(3, bool))
    seen = []
    for batch in buffer.get(2):
        assert batch.advantages.shape == batch.old_log_prob.shape == batch.returns.shape == (128,)
        for row, image in enumerate(batch.observations):
            where = np.argwhere((given["images"] == image.numpy()).all((2, 3, 4)))[0]
            seen.append(tuple(where))
            pixels = slice(64 * row, 64 * row + 64)
            np.testing.assert_array_equal(batch.actions[row].numpy(), given["actions"][tuple(where)])
            np.testing.assert_array_equal(batch.advantages[pixels].numpy(), given["rewards"][tuple(where)])
            np.testing.assert_array_equal(batch.old_log_prob[pixels].numpy(), given["log_probs"][tuple(where)])
    assert sorted(seen) == [(step, env) for step in range(2) for env in range(3)]


def test_maps_become_rewards_in_our_batch_and_in_stock_environments() -> None:
    images, labels = rings(5, size=16)
    ours = ring_envs(2, images, labels)

    def make() -> AdaptationEnv:
        return AdaptationEnv(engine=AdaptationEngine(images, OracleReward(labels, CLASSES), CLASSES, 1, labels))

    for envs in (ours, RewardMapVecEnv(DummyVecEnv([make, make]))):
        envs.reset()
        actions = np.zeros((2, 256), int)
        _, rewards, dones, infos = envs.step(actions)
        assert rewards.shape == (2, 256)
        assert rewards.dtype == np.float32
        assert dones.all()
        for reward, info in zip(rewards, infos, strict=True):
            np.testing.assert_array_equal(reward, labels[int(info["sample"])].flatten().numpy() == 0)


def test_what_does_not_suit_is_one_sentence() -> None:
    buffer, given = filled()
    with pytest.raises(SeggymError, match="episodes of one step only"):
        buffer.compute_returns_and_advantage(torch.zeros(3, 64), np.zeros(3, bool))
    buffer.reset()
    nothing = torch.zeros(3, 64)
    with pytest.raises(SeggymError, match="RewardMapVecEnv, outermost"):
        buffer.add(given["images"][0], given["actions"][0], np.zeros(3), np.ones(3), nothing, nothing)
    with pytest.raises(SeggymError, match="needs images"):
        DensePolicy(spaces.Box(0, 1, (8, 8), np.float32), MAPS, lambda _: 1e-3)
    with pytest.raises(SeggymError, match="flat label maps"):
        DensePolicy(IMAGES, spaces.MultiDiscrete(np.full((8, 8), 3)), lambda _: 1e-3)
    with pytest.raises(SeggymError, match="same number of labels"):
        DensePolicy(IMAGES, spaces.MultiDiscrete(np.arange(64) + 2), lambda _: 1e-3)
    with pytest.raises(SeggymError, match=r"do not suit the actor.*make the policy"):
        small_policy().load_actor(build_network("unet", 4, **SMALL).state_dict())
