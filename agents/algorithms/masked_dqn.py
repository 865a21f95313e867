"""DQN that neither takes nor bootstraps from illegal actions; stable-baselines3 has none.

The mask travels in the observation (key ``action_mask``), so the replay buffer keeps the one of the next state too. The
terminal observation carries an all-ones mask, which the target multiplies by zero anyway.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import DQNPolicy, MultiInputPolicy, QNetwork

from seggym.errors import SeggymError

MASK = "action_mask"


class MaskedQNetwork(QNetwork):
    """Q values with the most negative number for illegal actions; serves the greedy choice and the target alike."""

    def forward(self, obs: Any) -> torch.Tensor:
        """Q values (N, A)."""
        values = super().forward(obs)
        return values.masked_fill(obs[MASK] == 0, torch.finfo(values.dtype).min)


class MaskedDQNPolicy(MultiInputPolicy):
    """The DQN policy for Dict observations, made of masked networks."""

    def make_q_net(self) -> MaskedQNetwork:
        """Both the online and the target network."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return MaskedQNetwork(**arguments).to(self.device)


class MaskedDQN(DQN):
    """DQN for environments whose observation has the part ``action_mask``.

    Beside the masks one thing differs from stable-baselines3: every environment of a batch tosses its own epsilon coin,
    where theirs explores in all environments of a step or in none.
    """

    policy_aliases = {"MultiInputPolicy": MaskedDQNPolicy}  # noqa: RUF012  declared as a ClassVar by the parent

    def __init__(self, policy: str | type[DQNPolicy], env: Any, **kwargs: Any) -> None:
        super().__init__(policy, env, **kwargs)
        space = self.observation_space
        if not isinstance(space, spaces.Dict) or MASK not in space.spaces:
            raise SeggymError(
                f"masked_dqn needs the observation part {MASK!r}, found {space}: add it to env.kwargs.observation"
            )

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Greedy among the legal actions; unless ``deterministic``, a random legal one with probability epsilon."""
        actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        if deterministic:
            return actions, state
        assert isinstance(observation, dict)
        masks = np.atleast_2d(observation[MASK])
        explores = np.random.rand(len(masks)) < self.exploration_rate  # noqa: NPY002  the stream that SB3 seeds
        return np.where(explores, random_legal(masks), actions).reshape(actions.shape), state

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps >= learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert isinstance(self._last_obs, dict)
        actions = random_legal(self._last_obs[MASK])
        return actions, actions


def random_legal(masks: np.ndarray) -> np.ndarray:
    """One action per row of ``masks`` (N, A), uniform among its nonzero entries: int64 (N,)."""
    draws = np.random.rand(*masks.shape)  # noqa: NPY002  the stream that SB3 seeds and a resume restores
    return np.where(masks != 0, draws, -1).argmax(1)
