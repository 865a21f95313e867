"""The algorithms that a config or a snapshot may name."""

from dataclasses import dataclass, field
from typing import Any

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.dqn.policies import MultiInputPolicy

from seggym.agents.algorithms.device_buffer import DeviceRolloutBuffer, MaskableDeviceRolloutBuffer
from seggym.agents.algorithms.masked_dqn import MaskedDQN, MaskedDQNPolicy


@dataclass(frozen=True)
class Algorithm:
    """A trainer, its policy for Dict observations, whether the observation must carry the mask, and its rollout buffer
    (None: the algorithm has no rollouts).
    """

    trainer: type[BaseAlgorithm]
    policy: type[BasePolicy]
    observes_mask: bool = False
    rollout_buffer: type[DeviceRolloutBuffer] | None = None
    policy_kwargs: dict[str, Any] = field(default_factory=dict)


# Returns differ more between slices than between actions, so the critic learns about slices; features of its own keep
# its large gradients out of the actor.
_ACTOR_CRITIC = {"share_features_extractor": False}

ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(PPO, MultiInputActorCriticPolicy, rollout_buffer=DeviceRolloutBuffer, policy_kwargs=_ACTOR_CRITIC),
    "maskable_ppo": Algorithm(
        MaskablePPO,
        MaskableMultiInputActorCriticPolicy,
        rollout_buffer=MaskableDeviceRolloutBuffer,
        policy_kwargs=_ACTOR_CRITIC,
    ),
    "dqn": Algorithm(DQN, MultiInputPolicy),
    "masked_dqn": Algorithm(MaskedDQN, MaskedDQNPolicy, observes_mask=True),
}
