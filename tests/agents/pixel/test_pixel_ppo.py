"""Per-pixel PPO and REINFORCE: parity with plain torch, a reference that stays, files, and that they learn."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rings import CLASSES, ring_envs, rings
from torch import Tensor, nn

from seggym.agents.pixel.dense_policy import DensePolicy
from seggym.agents.pixel.pixel_ppo import PixelPPO, PixelReinforce
from seggym.agents.pixel.settings import PixelSettings, published
from seggym.agents.pixel.training import Trained, shrink_perturb, train_pixel_ppo
from seggym.envs.adaptation.rewards import OracleReward
from seggym.errors import SeggymError
from seggym.reward_models.networks import UNet

SMALL = {"widths": [4, 8], "norm": "group"}
# From nothing, where RL4Seg's rates are for a network that can segment already.
FROM_NOTHING: dict[str, Any] = {"actor_rate": 2e-3, "critic_rate": 2e-3, "entropy": 0.0, "beta": 0.0}


def network(outputs: int = CLASSES, seed: int = 0, **options: Any) -> UNet:
    torch.manual_seed(seed)
    return UNet(outputs, **{**SMALL, **options})


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def greedy_reward(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((net(images)[0].argmax(1) == labels).float().mean())


def make_trainer(kind: type[PixelPPO], reference: UNet | None = None, **options: Any) -> PixelPPO:
    images, labels = rings(8, size=16)
    trainer = kind(
        DensePolicy, ring_envs(4, images, labels), reference=reference, policy_kwargs={"actor_options": SMALL},
        seed=0, device="cpu", **options,
    )  # fmt: skip
    trainer.policy.load_actor(network().state_dict())
    return trainer


# --- parity with the equations ----------------------------------------------------------------------------------------


def rollout_of(trainer: PixelPPO) -> dict[str, Tensor]:
    """The first rollout that ``trainer`` collects, which it does not learn from."""
    kept: dict[str, Tensor] = {}
    trainer.train = lambda: kept.update(  # type: ignore[method-assign]
        {
            name: torch.from_numpy(getattr(trainer.rollout_buffer, name)[0].copy())
            for name in ("observations", "actions", "rewards", "values", "log_probs")
        }
    )
    trainer.learn(4)
    del trainer.train
    return kept


def test_one_update_is_the_published_loss() -> None:
    """RL4Seg's losses in plain torch, with two Adams and two clipped norms, end in the same weights."""
    reference = network(seed=1)
    options: dict[str, Any] = {"entropy": 0.1, "beta": 0.3, "n_epochs": 3, "batch_size": 4, "clip_range": 0.05}
    rates: dict[str, Any] = {"learning_rate": 3e-3, "critic_rate": 1e-2, "max_grad_norm": 0.02, "critic_grad_norm": 0.1}
    trainer = make_trainer(PixelPPO, reference, **options, **rates)
    actor, critic = copy.deepcopy(trainer.policy.actor), copy.deepcopy(trainer.policy.critic)
    data = rollout_of(trainer)
    trainer.train()

    images, actions = data["observations"], data["actions"].long()

    def log_prob(net: nn.Module) -> Tensor:
        return torch.distributions.Categorical(logits=net(images)[0].flatten(2).transpose(1, 2)).log_prob(actions)

    with torch.no_grad():
        old, value = log_prob(actor), critic(images)[0].flatten(1).sigmoid()
        advantage = data["rewards"] - 0.3 * (old - log_prob(reference)) - value
    torch.testing.assert_close(old, data["log_probs"])
    adams = [
        torch.optim.Adam(net.parameters(), rate, eps=1e-5) for net, rate in ((actor, 3e-3), (critic, 1e-2))
    ]  # fmt: skip
    for _ in range(3):
        logits = actor(images)[0].flatten(2).transpose(1, 2)
        policy = torch.distributions.Categorical(logits=logits)
        ratio = (policy.log_prob(actions) - old).exp()
        gain = torch.minimum(advantage * ratio, advantage * ratio.clamp(0.95, 1.05)).mean()
        losses = -gain - 0.1 * policy.entropy().mean(), (critic(images)[0].flatten(1).sigmoid() - data["rewards"]) ** 2
        for net, loss, adam, norm in zip((actor, critic), losses, adams, (0.02, 0.1), strict=True):
            adam.zero_grad()
            loss.mean().backward()
            nn.utils.clip_grad_norm_(net.parameters(), norm)
            adam.step()
    for mine, expected in ((trainer.policy.actor, actor), (trainer.policy.critic, critic)):
        for parameter, other in zip(mine.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, atol=2e-5, rtol=1e-3)


def test_reinforce_is_its_equation() -> None:
    trainer = make_trainer(PixelReinforce, learning_rate=1e-2, max_grad_norm=1e9)
    actor, before = copy.deepcopy(trainer.policy.actor), weights(trainer.policy.critic)
    data = rollout_of(trainer)
    trainer.train()
    logits = actor(data["observations"])[0].flatten(2).transpose(1, 2)
    log_prob = torch.distributions.Categorical(logits=logits).log_prob(data["actions"].long())
    reward = data["rewards"]
    adam = torch.optim.Adam(actor.parameters(), 1e-2, eps=1e-5)
    (-(reward - reward.mean()) / (reward.std() + 1e-8) * log_prob).mean().backward()
    adam.step()
    for parameter, other in zip(trainer.policy.actor.parameters(), actor.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, atol=2e-5, rtol=1e-3)
    assert same(weights(trainer.policy.critic), before)


def test_schedules_go_from_first_to_last() -> None:
    settings = PixelSettings(entropy=[0.2, 0.0], beta=0.1)
    assert [settings.course("entropy")(remaining) for remaining in (1.0, 0.5, 0.0)] == [0.2, 0.1, 0.0]
    assert settings.course("beta")(0.3) == pytest.approx(0.1)
    # The last rollout may see more images than were asked for.
    assert settings.course("entropy")(-0.1) == 0.0
    images, labels = rings(8, size=16)
    options: dict[str, Any] = {"images": 24, "batch": 4, "device": "cpu", "epochs": 1}
    given = PixelSettings(**options, entropy=[0.2, 0.0], beta=[0.0, 0.6], actor_rate=[1e-3, 0.0])
    log = train_pixel_ppo(network(), None, network(), images, OracleReward(labels, CLASSES), given).log
    assert [row["images"] for row in log] == [4, 8, 12, 16, 20, 24]
    np.testing.assert_allclose([row["entropy_weight"] for row in log], np.arange(5, -1, -1) / 6 * 0.2, atol=1e-9)
    # Weighed when a rollout is collected, before its images are counted.
    np.testing.assert_allclose([row["beta"] for row in log], np.arange(6) / 6 * 0.6, atol=1e-9)
    assert log[0]["divergence"] == pytest.approx(0, abs=1e-6)


def test_the_published_schedules() -> None:
    assert [published(i)["entropy"] for i in (1, 2, 3, 4)] == pytest.approx([0.15, 0.075, 0.05, 0.0375])
    assert [published(i)["beta"] for i in (1, 2, 4)] == pytest.approx([0.05, 0.025, 0.0125])
    assert [published(i)["batch"] for i in (1, 2, 4)] == [8, 16, 32]
    with pytest.raises(SeggymError, match="iteration is 0"):
        published(0)


# --- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_reference_is_bit_identical_after_training(norm: str) -> None:
    images, labels = rings(8, size=16)
    reference = network(seed=1, norm=norm)
    reference.train()
    before = weights(reference)
    settings = PixelSettings(images=32, batch=4, device="cpu", actor_rate=1e-2)
    kept: list[PixelPPO] = []
    trainer = make_trainer(PixelPPO, reference, beta=0.1, learning_rate=1e-2)
    trainer.learn(32)
    kept.append(trainer)
    assert same(weights(kept[0].reference), before)
    assert not kept[0].reference.training
    assert not any(parameter.requires_grad for parameter in kept[0].reference.parameters())
    trained = train_pixel_ppo(network(), None, reference, images, OracleReward(labels, CLASSES), settings)
    assert same(weights(reference), before)
    assert reference.training
    assert not same(weights(trained.actor), weights(network()))


def test_a_heavy_divergence_holds_the_policy_to_the_reference() -> None:
    images, labels = rings(8, size=16)
    # Wrong everywhere, so that reward and reference want different things.
    wrong = OracleReward((labels + 1) % CLASSES, CLASSES)
    start = network()
    options: dict[str, Any] = {"images": 160, "batch": 8, "device": "cpu", **FROM_NOTHING}
    free = train_pixel_ppo(start, None, start, images, wrong, PixelSettings(**{**options, "beta": 0.0}))
    held = train_pixel_ppo(start, None, start, images, wrong, PixelSettings(**{**options, "beta": 5.0}))

    def divergence(trained: Trained) -> float:
        with torch.no_grad():
            ours, theirs = (net(images)[0].log_softmax(1) for net in (trained.actor, start))
        return float((ours.exp() * (ours - theirs)).sum(1).mean())

    assert divergence(held) < 0.3 * divergence(free)


def test_a_divergence_from_nothing_is_refused() -> None:
    with pytest.raises(SeggymError, match="there is no reference"):
        make_trainer(PixelPPO, beta=0.1)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PixelPPO, PixelReinforce])
def test_a_trainer_is_saved_and_goes_on(tmp_path: Path, kind: type[PixelPPO]) -> None:
    trainer = make_trainer(kind, network(seed=1), beta=0.2, entropy=0.1, critic_rate=2e-3)
    trainer.learn(16)
    trainer.save(tmp_path / "model.zip")
    images, labels = rings(8, size=16)
    loaded = kind.load(tmp_path / "model.zip", ring_envs(4, images, labels), device="cpu")
    assert same(weights(loaded.policy), weights(trainer.policy))
    assert same(weights(loaded.reference), weights(trainer.reference))
    assert not any(parameter.requires_grad for parameter in loaded.reference.parameters())
    batch = images.numpy()
    np.testing.assert_array_equal(
        loaded.predict(batch, deterministic=True)[0], trainer.predict(batch, None, None, True)[0]
    )
    # Without environments it predicts.
    alone = kind.load(tmp_path / "model.zip", device="cpu")
    assert alone.predict(batch[0], deterministic=True)[0].shape == (256,)
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps == 32
    assert loaded.rollout_buffer.beta == pytest.approx(0.2)
    assert same(weights(loaded.reference), weights(trainer.reference))
    rates = [group["lr"] for group in loaded.policy.optimizer.param_groups]
    assert rates == pytest.approx([5e-4, 2e-3])


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_changes_nothing_that_it_was_given_and_repeats_itself() -> None:
    images, labels = rings(8, size=16)
    actor, critic, reference = network(), network(1, seed=2), network(seed=3)
    before = [weights(net) for net in (actor, critic, reference)]
    seen: list[tuple[int, float]] = []
    settings = PixelSettings(images=24, batch=8, minibatch=4, device="cpu")

    def progress(count: int, net: nn.Module, row: dict[str, float]) -> None:
        seen.append((count, greedy_reward(net, images, labels)))

    runs = [
        train_pixel_ppo(
            actor, critic, reference, images, OracleReward(labels, CLASSES), settings, (images, labels), progress
        )
        for _ in range(2)
    ]
    assert [same(weights(net), was) for net, was in zip((actor, critic, reference), before, strict=True)] == [True] * 3
    assert same(weights(runs[0].actor), weights(runs[1].actor))
    assert same(weights(runs[0].critic), weights(runs[1].critic))
    assert runs[0].log == runs[1].log
    assert [count for count, _ in seen] == [8, 16, 24] * 2
    assert seen[:3] == seen[3:]
    assert seen[2][1] == greedy_reward(runs[0].actor, images, labels)
    assert all(np.isfinite(value) for row in runs[0].log for value in row.values())
    assert not same(weights(runs[0].critic), before[1])


def test_anchors_teach_even_where_the_reward_says_nothing() -> None:
    images, labels = rings(100, size=16)

    def silent(images: Tensor, masks: Tensor) -> Tensor:
        return torch.full(masks.shape, 0.5)

    start = network(seed=1, widths=[8, 16])
    options: dict[str, Any] = {"images": 480, "batch": 4, "epochs": 1, "device": "cpu", **FROM_NOTHING}
    settings = PixelSettings(**options, anchor_rate=5e-3, anchor_batch=8)
    taught = train_pixel_ppo(start, None, None, images[:4], silent, settings, anchors=(images[:50], labels[:50]))
    unseen = images[50:], labels[50:]
    assert greedy_reward(taught.actor, *unseen) > greedy_reward(start, *unseen) + 0.5
    assert taught.log[-1]["anchor_loss"] < taught.log[0]["anchor_loss"]
    off = PixelSettings(**{**options, "images": 4}, anchor_steps=0)
    untaught = train_pixel_ppo(start, None, None, images[:4], silent, off, anchors=(images, labels))
    assert "anchor_loss" not in untaught.log[0]


@pytest.mark.parametrize(("algorithm", "batch", "count"), [("ppo", 8, 480), ("reinforce", 4, 960)])
def test_the_reward_rises(algorithm: str, batch: int, count: int) -> None:
    images, labels = rings(100, size=16)
    options = {**FROM_NOTHING, "actor_rate": 5e-3}
    settings = PixelSettings(images=count, batch=batch, device="cpu", algorithm=algorithm, **options)
    start = network(seed=1, widths=[8, 16])
    trained = train_pixel_ppo(start, None, None, images, OracleReward(labels, CLASSES), settings)
    assert greedy_reward(trained.actor, images, labels) > greedy_reward(start, images, labels) + 0.5
    assert trained.log[-1]["reward"] > trained.log[0]["reward"] + 0.3


@pytest.mark.slow
def test_a_fixed_reward_is_reached_within_1500_images() -> None:
    """32 x 32, three classes, reward 1 where the label is right: greedily .98 on images never seen."""
    images, labels = rings(400)
    unseen = rings(100, seed=1)
    start = network(widths=[8, 16, 32])
    settings = PixelSettings(images=1500, batch=16, minibatch=8, device="cpu", **FROM_NOTHING)
    trained = train_pixel_ppo(start, None, None, images, OracleReward(labels, CLASSES), settings)
    assert trained.log[-1]["images"] <= 1504
    assert greedy_reward(start, *unseen) < 0.8
    assert greedy_reward(trained.actor, *unseen) >= 0.98


def test_shrink_and_perturb_by_hand() -> None:
    net = network()
    changed = shrink_perturb(net, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for (name, old), new in zip(net.named_parameters(), changed.parameters(), strict=True):
        if "weight" in name:
            torch.testing.assert_close(new, 0.5 * old + 0.01 * torch.randn(old.shape, generator=generator))
        else:
            assert torch.equal(new, old)
    assert new.requires_grad


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "sac"}, "algorithm='sac'.*reinforce"),
        ({"batch": 1}, "at least 2"),
        ({"minibatch": 64}, "minibatch=64"),
        ({"images": 0}, "images=0"),
        ({"entropy": [0.1, 0.2, 0.3]}, "entropy=.*first, last"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"actor_rate": "fast"}, "actor_rate='fast'"),
        ({"anchor_steps": -1}, "anchor_steps"),
    ],
)
def test_bad_settings_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SeggymError, match=message) as caught:
        PixelSettings(**changes)
    assert "\n" not in str(caught.value)


def test_networks_and_anchors_that_do_not_suit() -> None:
    images, labels = rings(4, size=16)
    reward = OracleReward(labels, CLASSES)
    settings = PixelSettings(images=4, batch=4, device="cpu", beta=0.0)

    def train(critic: UNet | None = None, anchors: Any = None, settings: PixelSettings = settings) -> None:
        train_pixel_ppo(network(), critic, None, images, reward, settings, anchors)

    with pytest.raises(SeggymError, match="critic has 3 outputs"):
        train(critic=network())
    with pytest.raises(SeggymError, match="anchors have images"):
        train(anchors=(images[:0], labels[:0]))
    with pytest.raises(SeggymError, match="anchor has label 3"):
        train(anchors=(images, labels + 1))
    with pytest.raises(SeggymError, match="there is no reference"):
        train(settings=PixelSettings(images=4, batch=4, device="cpu"))
    with pytest.raises(SeggymError, match="expected 0 to 1, the actor's classes"):
        train_pixel_ppo(network(2), None, None, images, reward, settings, (images, labels))
