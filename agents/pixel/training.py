"""Train a segmentation network by per-pixel policy gradients against a reward map."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn
from torch.nn import functional

from seggym.agents.pixel.dense_policy import DensePolicy
from seggym.agents.pixel.pixel_ppo import PixelPPO, PixelReinforce
from seggym.agents.pixel.reward_map_env import RewardMapVecEnv
from seggym.agents.pixel.settings import PixelSettings
from seggym.agents.vec_env import BatchedVecEnv
from seggym.envs.adaptation.engine import AdaptationEngine
from seggym.envs.adaptation.environment import AdaptationVectorEnv
from seggym.envs.adaptation.rewards import OracleReward
from seggym.errors import SeggymError
from seggym.reward_models.error_net import RewardMap
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.networks import UNet

# What is kept of the trainer's log, and its name there.
_LOGGED = {
    "reward": "rollout/reward_map",
    "divergence": "rollout/divergence",
    "policy_loss": "train/policy_gradient_loss",
    "value_loss": "train/value_loss",
    "entropy": "train/entropy_loss",
    "clip_fraction": "train/clip_fraction",
    "approx_kl": "train/approx_kl",
    "entropy_weight": "train/entropy_weight",
    "beta": "train/beta",
}

# Images seen, the network as it is, and what was logged since the last call.
Progress = Callable[[int, nn.Module, dict[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """What a training gave: networks on the device of the one that it began with, and a row of the log per rollout.

    A row has ``images`` (seen so far), ``reward`` (mean of the map of the label maps drawn), ``divergence`` (mean log
    pi - log pi_ref of theirs, nats per pixel), ``entropy`` (nats per pixel), losses, ``clip_fraction``, ``approx_kl``,
    the weights of the schedules and, with anchors, ``anchor_loss``.
    """

    actor: UNet
    critic: UNet
    log: list[dict[str, float]]


def train_pixel_ppo(
    actor: UNet,
    critic: UNet | None,
    reference: UNet | None,
    images: Tensor,
    reward: RewardMap | OracleReward,
    settings: PixelSettings,
    anchors: tuple[Tensor, Tensor] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train ``actor`` to be rewarded by ``reward`` on ``images``, held to ``reference``.

    The networks given stay as they are. ``critic`` is a network of one output, or None for a new one; ``reference`` may
    be None where ``settings.beta`` is 0. ``images`` are float32 (n, 1, H, W) in [0, 1]. ``reward`` is called with a
    batch of them and label maps int64 (B, H, W); an :class:`~seggym.envs.adaptation.rewards.OracleReward` knows their
    truth. ``anchors`` are images (m, 1, H, W) and masks, integer (m, H, W), that are taken for right: between rollouts
    the actor is trained on some of them as in supervised learning. ``progress`` is called after each rollout has been
    learned from; it may look at the actor and copy it.

    Raises :class:`SeggymError` for networks, images, anchors or settings that do not suit each other.
    """
    _check(actor, critic, images, anchors)
    home, device = next(actor.parameters()).device, resolve_device(settings.device)
    if isinstance(reward, nn.Module):
        reward.to(device)
    engine = AdaptationEngine(images, reward, actor.head.out_channels, settings.batch, device=device)
    batch = AdaptationVectorEnv(settings.batch, engine=engine, autoreset_mode="SameStep")
    trainer = _trainer(RewardMapVecEnv(BatchedVecEnv(batch)), actor, critic, reference, settings, device)
    callback = _BetweenRollouts(settings, anchors, progress)
    # Nothing is printed: the callback reads the log.
    trainer.learn(settings.images, callback=callback, log_interval=settings.images + 1)
    policy: Any = trainer.policy
    return Trained(policy.actor.to(home).eval(), policy.critic.to(home).eval(), callback.log)


def _trainer(
    env: RewardMapVecEnv,
    actor: UNet,
    critic: UNet | None,
    reference: UNet | None,
    settings: PixelSettings,
    device: torch.device,
) -> PixelPPO:
    critic_options = settings.critic_options if critic is None else critic.options
    algorithm = PixelPPO if settings.algorithm == "ppo" else PixelReinforce
    trainer = algorithm(
        DensePolicy,
        env,
        learning_rate=settings.course("actor_rate"),
        critic_rate=settings.course("critic_rate"),
        batch_size=settings.minibatch or settings.batch,
        n_epochs=settings.epochs,
        clip_range=settings.clip,
        normalize_advantage=settings.normalize_advantage,
        entropy=settings.course("entropy"),
        beta=settings.course("beta"),
        max_grad_norm=settings.actor_grad_norm,
        critic_grad_norm=settings.critic_grad_norm,
        reference=reference,
        policy_kwargs={"actor_options": actor.options, "critic_options": critic_options},
        seed=settings.seed,
        device=device,
    )
    trainer.policy.load_actor(actor.state_dict())
    if critic is not None:
        trainer.policy.critic.load_state_dict(critic.state_dict())
    return trainer


def _check(actor: UNet, critic: UNet | None, images: Tensor, anchors: tuple[Tensor, Tensor] | None) -> None:
    if critic is not None and critic.head.out_channels != 1:
        raise SeggymError(f"the critic has {critic.head.out_channels} outputs, expected 1: the value of a pixel")
    if anchors is None:
        return
    shown, masks = anchors
    if not len(shown) or shown.shape[1:] != images.shape[1:] or masks.shape != (len(shown), *images.shape[2:]):
        raise SeggymError(
            f"anchors have images {tuple(shown.shape)} and masks {tuple(masks.shape)}, expected (m, "
            f"{', '.join(str(extent) for extent in images.shape[1:])}) and label maps of the same size; pass None "
            "where there are none"
        )
    if int(masks.max()) >= actor.head.out_channels:
        raise SeggymError(
            f"an anchor has label {int(masks.max())}, expected 0 to {actor.head.out_channels - 1}, the actor's classes"
        )


class _BetweenRollouts(BaseCallback):
    """The supervised pass on anchors before a rollout, and a row of the log after one has been learned from."""

    def __init__(
        self, settings: PixelSettings, anchors: tuple[Tensor, Tensor] | None, progress: Progress | None
    ) -> None:
        super().__init__()
        self.settings, self.progress = settings, progress
        self.anchors = anchors if settings.anchor_steps else None
        self.log: list[dict[str, float]] = []

    def _on_training_start(self) -> None:
        if self.anchors is None:
            return
        # Beside the policy's own optimizer, so that neither has the other's moments.
        self._optimizer = torch.optim.Adam(self._actor.parameters(), self.settings.anchor_rate)
        self._generator = torch.Generator().manual_seed(self.settings.seed)
        self._images = self.anchors[0].to(self.model.device, torch.float32)
        self._masks = self.anchors[1].to(self.model.device, torch.int64)

    @property
    def _actor(self) -> nn.Module:
        policy: Any = self.model.policy
        return policy.actor

    def _on_rollout_start(self) -> None:
        # Before a rollout, not after it: the next actions are then drawn by the policy that has learned.
        self._write_row()
        if self.anchors is not None:
            self._learn_anchors()

    def _learn_anchors(self) -> None:
        self.model.policy.set_training_mode(True)
        for _ in range(self.settings.anchor_steps):
            chosen = torch.randint(len(self._images), (self.settings.anchor_batch,), generator=self._generator)
            chosen = chosen.to(self._images.device)
            loss = functional.cross_entropy(self._actor(self._images[chosen])[0], self._masks[chosen])
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self._actor.parameters(), self.settings.actor_grad_norm)
            self._optimizer.step()
        self.logger.record("train/anchor_loss", float(loss.detach()))
        self.model.policy.set_training_mode(False)

    def _on_training_end(self) -> None:
        self._write_row()

    def _on_step(self) -> bool:
        return True

    def _write_row(self) -> None:
        values = self.logger.name_to_value
        if "train/value_loss" not in values:
            return  # nothing has been learned from yet
        row = {"images": float(self.num_timesteps)}
        row |= {name: float(values[key]) for name, key in _LOGGED.items() if key in values}
        row["entropy"] = -row["entropy"]  # the trainer minimises it with its sign turned
        if "train/anchor_loss" in values:
            row["anchor_loss"] = float(values["train/anchor_loss"])
        self.log.append(row)
        if self.progress is not None:
            self.model.policy.set_training_mode(False)
            self.progress(self.num_timesteps, self._actor, dict(row))


def shrink_perturb(network: UNet, generator: torch.Generator, shrink: float = 0.5, noise: float = 0.01) -> UNet:
    """A copy whose weights are ``shrink`` times what they were plus N(0, ``noise``); biases stay.

    Shrink and perturb (Ash and Adams, NeurIPS 2020), as RL4Seg does it between its iterations: everything called a
    weight, those of norms included.
    """
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "weight" in name:
                drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.mul_(shrink).add_(drawn, alpha=noise)
    return changed
