"""Vectorised environments whose reward is a map."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from seggym.errors import SeggymError


class RewardMapVecEnv(VecEnvWrapper):
    """Give ``info["reward_map"]``, stacked to float32 (N, P), as the rewards of a step.

    It is the outermost wrapper: what monitors record is still the scalar reward. For evaluation use the environments
    within (:attr:`venv`), stable-baselines3's ``evaluate_policy`` adds up scalars.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)

    def reset(self) -> Any:
        """Begin everywhere."""
        return self.venv.reset()

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """As the environments within, with maps as rewards."""
        observations, _, dones, infos = self.venv.step_wait()
        missing = next((slot for slot, info in enumerate(infos) if "reward_map" not in info), None)
        if missing is not None:
            raise SeggymError(
                f"environment {missing} reports no reward_map in its info: RewardMapVecEnv is for one-step "
                "environments of label maps, the SegAdapt environments"
            )
        maps = np.stack([np.asarray(info["reward_map"], np.float32).reshape(-1) for info in infos])
        return observations, maps, dones, infos
