"""A segmentation network as a policy of stable-baselines3: one categorical distribution per pixel."""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from seggym.errors import SeggymError
from seggym.reward_models.networks import build_network

DEFAULT_NETWORK = {"norm": "group"}


class PixelCategorical(Distribution):
    """One categorical distribution per pixel, from logits (B, K, H, W); actions are flat label maps (B, H * W).

    The ``MultiCategoricalDistribution`` of stable-baselines3 keeps a list with one distribution for each pixel: 17
    times as slow at 32 x 32.
    """

    log_probabilities: Tensor

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> Any:
        """There is none: a network gives the logits."""
        raise NotImplementedError("the logits come from a segmentation network")

    def proba_distribution(self, logits: Tensor) -> "PixelCategorical":
        """Take the logits (B, K, H, W)."""
        self.log_probabilities = logits.flatten(2).log_softmax(1)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Of label maps (B, P): (B, P), one number for each pixel."""
        return self.log_probabilities.gather(1, actions.long()[:, None])[:, 0]

    def entropy(self) -> Tensor:
        """Of each pixel, in nats: (B, P)."""
        return -(self.log_probabilities.exp() * self.log_probabilities).sum(1)

    def sample(self) -> Tensor:
        """Label maps drawn pixel by pixel, int64 (B, P)."""
        # The largest of p / Exponential(1) is a draw from p.
        waits = torch.empty_like(self.log_probabilities).exponential_()
        return (self.log_probabilities.exp() / waits).argmax(1)

    def mode(self) -> Tensor:
        """The most probable label of each pixel, int64 (B, P)."""
        return self.log_probabilities.argmax(1)

    def actions_from_params(self, logits: Tensor, deterministic: bool = False) -> Tensor:
        """Label maps of logits (B, K, H, W)."""
        return self.proba_distribution(logits).get_actions(deterministic)

    def log_prob_from_params(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn label maps of logits (B, K, H, W), and their log probabilities."""
        actions = self.actions_from_params(logits)
        return actions, self.log_prob(actions)


class ClippedAdam(torch.optim.Adam):
    """Adam whose parameter groups each have a norm, ``max_grad_norm``, that their gradients are clipped to.

    Adam treats every parameter by itself, so that an actor and a critic in two groups, each with its own learning rate
    and norm, are trained as by two optimizers.
    """

    def step(self, closure: Any = None) -> Any:
        """Clip each group, then step."""
        for group in self.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], group["max_grad_norm"])
        return super().step(closure)


class DensePolicy(ActorCriticPolicy):
    """Actor and critic as two segmentation networks that share nothing.

    The actor's logits (B, K, H, W) are those of the labels; the critic's output, through a sigmoid, is the value of
    every pixel, what the reward map is expected to be there. Observations are images, ``Box`` float32 (1, H, W);
    actions flat label maps, ``MultiDiscrete`` of H * W equal numbers K.

    ``architecture`` and ``actor_options``, ``critic_options`` are those of
    :func:`~seggym.reward_models.networks.build_network`. ``actor_grad_norm`` and ``critic_grad_norm`` are what the
    gradients of each are clipped to.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        architecture: str = "unet",
        actor_options: Mapping[str, Any] | None = None,
        critic_options: Mapping[str, Any] | None = None,
        actor_grad_norm: float = 0.5,
        critic_grad_norm: float = 0.5,
        **kwargs: Any,
    ) -> None:
        shape = observation_space.shape
        if not isinstance(observation_space, spaces.Box) or shape is None or len(shape) != 3 or shape[0] != 1:
            raise SeggymError(f"DensePolicy needs images, Box (1, height, width), found the observations {shape}")
        if not isinstance(action_space, spaces.MultiDiscrete) or action_space.shape != (shape[1] * shape[2],):
            raise SeggymError(
                f"DensePolicy needs flat label maps, MultiDiscrete with {shape[1] * shape[2]} entries, found the "
                f"actions {action_space.shape}"
            )
        if (action_space.nvec != action_space.nvec[0]).any():
            raise SeggymError("DensePolicy needs the same number of labels at every pixel")
        self.num_classes = int(action_space.nvec[0])
        self.architecture = architecture
        self.actor_options = dict(DEFAULT_NETWORK if actor_options is None else actor_options)
        self.critic_options = dict(self.actor_options if critic_options is None else critic_options)
        self.grad_norms = (actor_grad_norm, critic_grad_norm)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = PixelCategorical()
        self.actor = build_network(self.architecture, self.num_classes, **self.actor_options)
        self.critic = build_network(self.architecture, 1, **self.critic_options)
        # Convolutions are a fifth faster where the channels of a pixel lie together.
        self.actor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's annotations
        self.critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Two groups in this order: PixelPPO sets their rates.
        groups = [
            {"params": list(network.parameters()), "max_grad_norm": norm}
            for network, norm in zip((self.actor, self.critic), self.grad_norms, strict=True)
        ]
        self.optimizer = ClippedAdam(groups, lr=lr_schedule(1), eps=1e-5)

    def load_actor(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a segmentation network of the actor's architecture and options."""
        try:
            self.actor.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise SeggymError(
                f"the weights do not suit the actor ({self.architecture}, {self.num_classes} classes, "
                f"{self.actor_options}): {reason}; make the policy with the options of the network they are of"
            ) from None

    def values(self, obs: PyTorchObs) -> Tensor:
        """What the critic expects of each pixel, (B, P) in [0, 1]."""
        return self.critic(obs)[0].flatten(1).sigmoid()

    def get_distribution(self, obs: PyTorchObs) -> PixelCategorical:
        """The distribution of label maps for images (B, 1, H, W)."""
        return PixelCategorical().proba_distribution(self.actor(obs)[0])

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """As :meth:`values`: what stable-baselines3 calls."""
        return self.values(obs)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Label maps (B, P) of images (B, 1, H, W), their values and log probabilities, (B, P) each."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log probabilities and entropies of label maps (B, P), flat (B * P,) as PPO's loss wants them."""
        distribution = self.get_distribution(obs)
        return self.values(obs).flatten(), distribution.log_prob(actions).flatten(), distribution.entropy().flatten()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return {
            **data,
            "architecture": self.architecture,
            "actor_options": self.actor_options,
            "critic_options": self.critic_options,
            "actor_grad_norm": self.grad_norms[0],
            "critic_grad_norm": self.grad_norms[1],
        }
