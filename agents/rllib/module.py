"""The policy of stable-baselines3 as RLlib wants to see it, so that both train, save and evaluate one network."""

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from seggym.agents.algorithms.masked_dqn import MASK
from seggym.agents.algorithms.networks import find_algorithm, policy_kwargs
from seggym.agents.algorithms.scores import num_passed_scores, policy_heads
from seggym.agents.priors import low_frequency_prior, start_head


class MaskedPolicyModule(TorchRLModule, ValueFunctionAPI):
    """The actor and the critic of ``maskable_ppo``, in :attr:`policy`; illegal actions have no probability.

    The mask is the part ``action_mask`` of the observation, so it is the same when an action is chosen and when it is
    learnt from. ``model_config`` has ``network`` (see :func:`seggym.agents.algorithms.networks.policy_kwargs`),
    ``prior_strength`` and ``num_lines``.
    """

    def setup(self) -> None:
        """Build the policy, with its prior."""
        config, num_actions = self.model_config, int(self.action_space.n)
        arguments = policy_kwargs("maskable_ppo", config["network"])
        # RLlib has its own optimiser, so the learning rate does not matter.
        policy = find_algorithm("maskable_ppo").policy(
            self.observation_space, self.action_space, lambda _: 0.0, **arguments
        )
        assert isinstance(policy, MaskableActorCriticPolicy)
        prior = low_frequency_prior(config["num_lines"], config["prior_strength"], num_actions)
        start_head(policy_heads(policy)[0], prior, num_passed_scores(policy))
        self.policy: MaskableActorCriticPolicy = policy

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Logits (N, A); serves exploration, inference and training alike."""
        observation = batch[Columns.OBS]
        logits = self.policy.get_distribution(observation).distribution.logits  # type: ignore[union-attr]
        legal = observation[MASK] != 0
        return {Columns.ACTION_DIST_INPUTS: logits.masked_fill(~legal, torch.finfo(logits.dtype).min)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """Values (N,)."""
        return self.policy.predict_values(batch[Columns.OBS])[:, 0]
