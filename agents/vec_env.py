"""A batched Gymnasium environment as stable-baselines3 wants to see it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from seggym.errors import SeggymError


class BatchedVecEnv(VecEnv):
    """Hand a native ``VectorEnv`` to stable-baselines3 without unpacking its batch.

    ``infos`` is one shared empty dict per running environment and a fresh dict per finished one, with
    ``terminal_observation``, ``TimeLimit.truncated``, ``episode`` {"r": return, "l": steps} and the last info of the
    episode; there ``reward_parts`` are sums over the episode and ``mean_quality`` is the mean of ``quality`` over its
    steps. What every environment reports at every step is in :attr:`last_infos`, as it came, with a leading axis N.

    Of an environment that was made with ``output="torch"`` the observations stay tensors on its device
    (:attr:`gives_tensors`); rewards, ends and infos are numpy arrays and numbers, because stable-baselines3 looks into
    them.

    ``group_size`` neighbours share their seeds, so that they run the same episodes as long as those end together (see
    :mod:`seggym.agents.algorithms.grouped`).

    Raises :class:`SeggymError` unless the environment resets in the step that ends an episode (SAME_STEP): any other
    mode would put a transition that never happened into the rollouts.
    """

    def __init__(self, env: VectorEnv, group_size: int = 1) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise SeggymError(
                f"stable-baselines3 needs autoreset_mode='SameStep', this environment has {mode}: pass "
                "autoreset_mode='SameStep' to gymnasium.make_vec"
            )
        self.batch = env
        self.group_size = group_size
        self.gives_tensors = getattr(env, "output", "numpy") == "torch"
        self.last_infos: dict[str, Any] = {}
        self._actions = np.zeros(env.num_envs, np.int64)
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._totals: dict[str, np.ndarray] = {}
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    # --- episodes -----------------------------------------------------------------------------------------------

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Give every environment (every group) its own 64 bits of ``SeedSequence([seed, worker])`` for the next reset.

        seed + worker would let neighbouring runs share nearly all of their episodes.
        """
        if seed is None:
            self._seeds = [None] * self.num_envs
        else:
            workers = (slot // self.group_size for slot in range(self.num_envs))
            states = (np.random.SeedSequence([seed, worker]) for worker in workers)
            self._seeds = [int(state.generate_state(1, np.uint64)[0]) for state in states]
        return self._seeds

    def reset(self) -> Any:
        """Begin new episodes everywhere; returns their observations."""
        options = self._options[0] or None
        observation, self.last_infos = self.batch.reset(seed=self._seeds, options=options)  # type: ignore[arg-type]
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        self._totals = {name: np.zeros(self.num_envs) for name in _totalled(self.last_infos)}
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step every environment; see the class for the infos."""
        observation, *outcome, info = self.batch.step(self._actions)
        reward, terminated, truncated = (_array(value) for value in outcome)
        done = terminated | truncated
        # The info of an environment that has ended already describes its next episode.
        finished = info.get("final_info", {})
        self.last_infos = {name: value for name, value in {**info, **finished}.items() if not name.startswith("_")}
        self.last_infos = {name: value for name, value in self.last_infos.items() if not name.startswith("final_")}
        self._returns += reward
        self._lengths += 1
        for name, value in _totalled(self.last_infos).items():
            self._totals.setdefault(name, np.zeros(self.num_envs))
            self._totals[name] += value
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        if done.any():
            # Fetched from the device once, not for every slot.
            last = {name: _array(value) for name, value in self.last_infos.items() if not isinstance(value, dict)}
            for slot in np.flatnonzero(done).tolist():
                cut_off = bool(truncated[slot] & ~terminated[slot])
                infos[slot] = self._end_of_episode(slot, last, info["final_obs"][slot], cut_off)
        self._returns[done], self._lengths[done] = 0, 0
        for total in self._totals.values():
            total[done] = 0
        return observation, np.asarray(reward, np.float32), done, infos

    def _end_of_episode(
        self, slot: int, infos: dict[str, np.ndarray], final_observation: Any, truncated: bool
    ) -> dict[str, Any]:
        length = int(self._lengths[slot])
        last = {name: value[slot] for name, value in infos.items()}
        parts = {name: float(total[slot]) for name, total in self._totals.items()}
        if "quality" in parts:
            last["mean_quality"] = parts.pop("quality") / length
        return {
            **last,
            "reward_parts": {name.removeprefix("reward_parts/"): value for name, value in parts.items()},
            "terminal_observation": final_observation,
            "episode": {"r": float(self._returns[slot]), "l": length},
            "TimeLimit.truncated": truncated,
        }

    # --- the rest of the interface ------------------------------------------------------------------------------

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Call a method of the batch. ``action_masks`` gives one bool array (N, A), not a list of N arrays."""
        result = getattr(self.batch, method_name)(*args, **kwargs)
        return result if indices is None else result[self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        """Whether the batch has the attribute or method."""
        return hasattr(self.batch, attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of the batch, once for every environment asked for."""
        return [getattr(self.batch, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the whole batch."""
        if indices is not None:
            raise SeggymError(f"{attr_name} belongs to the whole batch and cannot be set for single environments")
        setattr(self.batch, attr_name, value)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Whether the batch is wrapped in ``wrapper_class``; batched environments are not wrapped one by one."""
        return [isinstance(self.batch, wrapper_class)] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One uint8 (height, width, 3) picture per environment, or None without a render mode."""
        frames: Any = self.batch.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def close(self) -> None:
        """Close the batch."""
        self.batch.close()

    def state_dict(self) -> dict[str, Any]:
        """Running episodes and everything that the next ones will be drawn from; copies."""
        return {
            "batch": self.batch.state_dict(),  # type: ignore[attr-defined]
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "totals": {name: total.tolist() for name, total in self._totals.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was called."""
        self.batch.load_state_dict(state["batch"])  # type: ignore[attr-defined]
        self._returns = np.array(state["returns"])
        self._lengths = np.array(state["lengths"])
        self._totals = {name: np.array(total) for name, total in state["totals"].items()}


def _totalled(infos: dict[str, Any]) -> dict[str, np.ndarray]:
    """What is added up over an episode."""
    totals = {f"reward_parts/{name}": _array(value) for name, value in infos.get("reward_parts", {}).items()}
    return {**totals, "quality": _array(infos["quality"])} if "quality" in infos else totals


def _array(value: Any) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
