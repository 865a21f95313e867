"""Rollouts of one-step episodes in which every pixel has its own reward, value and advantage."""

from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, RolloutBuffer

from seggym.errors import SeggymError

# Images float32 (B, 1, H, W) and flat label maps (B, P) to log probabilities (B, P).
LogProbability = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PixelRolloutBuffer(RolloutBuffer):
    """T = ``buffer_size`` steps of N = ``n_envs`` environments of P pixels.

    ``rewards``, ``values``, ``log_probs``, ``advantages`` and ``returns`` are float32 (T, N, P). Of an image there is
    one step, so the advantage of a pixel is its reward less its value. With a reference (:attr:`reference`) the reward
    of the policy is r - beta (log pi(a) - log pi_ref(a)), the KL penalty of Stiennon et al. (NeurIPS 2020), pixel by
    pixel; the critic learns r alone, which is in [0, 1] and means a probability. ``baseline=False`` leaves the values
    out of the advantages (REINFORCE).
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        baseline: bool = True,
    ) -> None:
        self.baseline = baseline
        # Set by the algorithm before a rollout: the frozen network, and the weight of the divergence from it.
        self.reference: LogProbability | None = None
        self.beta = 0.0
        self.divergence = 0.0
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """An empty rollout."""
        # Not RolloutBuffer's, which makes arrays without the axis of pixels.
        BaseBuffer.reset(self)
        steps = (self.buffer_size, self.n_envs)
        self.observations = np.zeros((*steps, *self.obs_shape), self.observation_space.dtype)
        self.actions = np.zeros((*steps, self.action_dim), np.uint8 if self._small() else np.int64)
        self.episode_starts = np.zeros(steps, np.float32)
        for name in ("rewards", "values", "log_probs", "advantages", "returns"):
            setattr(self, name, np.zeros((*steps, self.action_dim), np.float32))
        self.generator_ready = False

    def _small(self) -> bool:
        assert isinstance(self.action_space, spaces.MultiDiscrete)
        return int(self.action_space.nvec.max()) <= 256

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: torch.Tensor,
        log_prob: torch.Tensor,
    ) -> None:
        """Append a step: ``reward``, ``value`` and ``log_prob`` are (N, P)."""
        if np.shape(reward) != (self.n_envs, self.action_dim):
            raise SeggymError(
                f"a rollout of label maps was given rewards of shape {np.shape(reward)}, expected one for each pixel, "
                f"{(self.n_envs, self.action_dim)}: wrap the environments in RewardMapVecEnv, outermost"
            )
        self.observations[self.pos] = obs
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.cpu().numpy()
        self.log_probs[self.pos] = log_prob.cpu().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Advantages of the policy and returns that the critic learns; ``last_values`` of next images play no part."""
        if not np.all(dones) or not self.episode_starts[1:].all():
            raise SeggymError("per-pixel PPO knows episodes of one step only: use it with the SegAdapt environments")
        reward = self.rewards
        if self.reference is not None:
            ratio = self.log_probs - self._reference_log_probs()
            self.divergence = float(ratio.mean())
            reward = reward - self.beta * ratio
        self.advantages = reward - self.values if self.baseline else reward.copy()
        self.returns = self.rewards.copy()

    def _reference_log_probs(self) -> np.ndarray:
        assert self.reference is not None
        with torch.inference_mode():
            steps = [
                self.reference(self.to_torch(images), self.to_torch(actions)).cpu().numpy()
                for images, actions in zip(self.observations, self.actions, strict=True)
            ]
        return np.stack(steps)
