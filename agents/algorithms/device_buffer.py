"""Rollouts held as tensors on one device, in the dtypes of the spaces.

The buffers of stable-baselines3 are numpy arrays in main memory. They keep a uint8 observation as uint8, but those of
sb3-contrib spend four bytes on every action of a mask, every rollout is allocated anew and copied once more before its
first epoch, and a policy on a GPU fetches each minibatch of each epoch across the bus. Here a rollout has one copy,
where it is trained on, and minibatches are picked out by index. Numbers and minibatches are those of
stable-baselines3: the order of the transitions is drawn from the same stream.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableDictRolloutBufferSamples
from stable_baselines3.common.buffers import BaseBuffer, DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples

from seggym.agents.algorithms.grouped import relative_to_group, require_whole_groups

_SCALARS = ("rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


class DeviceRolloutBuffer(DictRolloutBuffer):
    """T = ``buffer_size`` steps of N = ``n_envs`` environments with Dict observations and Discrete actions, for PPO.

    ``observations_held`` (by part of the observation) and ``held`` (actions int64, float32 for the rest) are tensors
    (N, T, ...) on the device ``held_on``, by default that of the policy, ``device``, to which minibatches go. With
    ``group_size`` above 1, neighbouring environments must be at the same step of the same episode: advantages are
    relative to their group (:mod:`seggym.agents.algorithms.grouped`), returns, which the critic learns, are not.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Discrete,
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 0.99,
        n_envs: int = 1,
        group_size: int = 1,
        held_on: torch.device | str | None = None,
    ) -> None:
        require_whole_groups(group_size, n_envs)
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)
        self.group_size = group_size
        self.held_on = torch.device(self.device if held_on is None else held_on)
        self.observations_held = {
            name: self._allocate(*(part.shape or ()), dtype=_torch_dtype(part.dtype))
            for name, part in observation_space.spaces.items()
        }
        self.held = {name: self._allocate() for name in _SCALARS}
        self.held["actions"] = self._allocate(1, dtype=torch.int64)

    def _allocate(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        # Environments first, so that flattening into transitions needs no copy.
        return torch.zeros(self.n_envs, self.buffer_size, *shape, dtype=dtype, device=self.held_on)

    def reset(self) -> None:
        """Forget the rollout; the next one is written over it."""
        BaseBuffer.reset(self)

    def add(  # type: ignore[override]
        self,
        obs: dict[str, Any],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: torch.Tensor,
        log_prob: torch.Tensor,
    ) -> None:
        """Append a step of all environments; arrays and tensors (N, ...) on any device are copied."""
        for name, held in self.observations_held.items():
            self._write(held, obs[name])
        step = {
            "actions": action,
            "rewards": reward,
            "episode_starts": episode_start,
            "values": value,
            "log_probs": log_prob,
        }
        for name, given in step.items():
            self._write(self.held[name], given)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _write(self, held: torch.Tensor, given: Any) -> None:
        target = held[:, self.pos]
        target.copy_(torch.as_tensor(given).reshape(target.shape))

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Generalised advantages (Schulman et al., 2016) and the returns that the critic learns, on the device.

        ``last_values`` (N,) or (N, 1) are those of the observations after the last step, ``dones`` (N,) says where it
        ended an episode.
        """
        rewards, values, starts, advantages = (
            self.held[name] for name in ("rewards", "values", "episode_starts", "advantages")
        )
        next_values = last_values.detach().to(self.held_on, torch.float32).flatten()
        goes_on = 1 - torch.as_tensor(dones).to(self.held_on, torch.float32)
        advantage = torch.zeros_like(next_values)
        for step in reversed(range(self.buffer_size)):
            error = rewards[:, step] + self.gamma * next_values * goes_on - values[:, step]
            advantage = error + self.gamma * self.gae_lambda * goes_on * advantage
            advantages[:, step] = advantage
            next_values, goes_on = values[:, step], 1 - starts[:, step]
        torch.add(advantages, values, out=self.held["returns"])
        if self.group_size > 1:
            advantages.copy_(relative_to_group(advantages, self.group_size))

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        """Every transition once, in random order, ``batch_size`` at a time (the last may be smaller; None is all)."""
        assert self.full
        count = self.buffer_size * self.n_envs
        order = np.random.permutation(count)  # noqa: NPY002  the stream that SB3 seeds and a resume restores
        for chosen in torch.from_numpy(order).to(self.held_on).split(batch_size or count):
            yield self._get_samples(chosen)

    def _get_samples(self, batch_inds: Any, env: Any = None) -> DictRolloutBufferSamples:  # type: ignore[override]
        return DictRolloutBufferSamples(
            observations={name: self._pick(held, batch_inds) for name, held in self.observations_held.items()},
            actions=self._pick(self.held["actions"], batch_inds),
            old_values=self._pick(self.held["values"], batch_inds),
            old_log_prob=self._pick(self.held["log_probs"], batch_inds),
            advantages=self._pick(self.held["advantages"], batch_inds),
            returns=self._pick(self.held["returns"], batch_inds),
        )

    def _pick(self, held: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return held.flatten(0, 1).index_select(0, chosen).to(self.device)

    # PPO reads these two once per rollout, as arrays, for the explained variance in its log.

    @property
    def values(self) -> np.ndarray:  # type: ignore[override]
        """What the critic said, float32 (N, T)."""
        return self.held["values"].cpu().numpy()

    @property
    def returns(self) -> np.ndarray:  # type: ignore[override]
        """What it should have said, float32 (N, T)."""
        return self.held["returns"].cpu().numpy()


class MaskableDeviceRolloutBuffer(DeviceRolloutBuffer, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """The same for MaskablePPO, with the legal actions ``held["action_masks"]``, bool (N, T, A)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.action_space, spaces.Discrete)
        self.held["action_masks"] = self._allocate(int(self.action_space.n), dtype=torch.bool)

    def add(self, *args: Any, action_masks: Any = None, **kwargs: Any) -> None:
        """Append a step of all environments with its legal actions (N, A)."""
        self._write(self.held["action_masks"], action_masks)
        super().add(*args, **kwargs)

    def _get_samples(self, batch_inds: Any, env: Any = None) -> MaskableDictRolloutBufferSamples:  # type: ignore[override]
        masks = self._pick(self.held["action_masks"], batch_inds)
        return MaskableDictRolloutBufferSamples(*super()._get_samples(batch_inds), action_masks=masks)


def _torch_dtype(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
