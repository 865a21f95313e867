"""Everything that a run needs to go on as if it had never stopped, as plain tensors, numbers and strings.

Valid only between two rollouts: the rollout buffer of PPO is then empty.
"""

import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from seggym.agents.vec_env import BatchedVecEnv
from seggym.errors import SeggymError
from seggym.files import write_atomic

STATE = "state.pt"
# What stable-baselines3 counts in the algorithm itself; not every algorithm has all of them.
_COUNTERS = (
    "num_timesteps", "_episode_num", "_n_updates", "_n_calls", "exploration_rate", "_current_progress_remaining",
)  # fmt: skip
_BUFFER_ARRAYS = ("actions", "rewards", "dones", "timeouts")


def capture(model: BaseAlgorithm) -> dict[str, Any]:
    """The state of ``model``, its optimiser, buffers, environment, and of every random generator."""
    assert isinstance(model.env, BatchedVecEnv)
    assert isinstance(model._last_obs, dict)
    assert model._last_episode_starts is not None
    state: dict[str, Any] = {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
        "last_observation": {name: torch.as_tensor(value).cpu().clone() for name, value in model._last_obs.items()},
        "last_episode_starts": torch.tensor(model._last_episode_starts),
        "episodes": list(model.ep_info_buffer or ()),
        "env": model.env.state_dict(),
        "random": _random_state(model),
    }
    if isinstance(model, OffPolicyAlgorithm):
        state["replay"] = _replay_state(model.replay_buffer)
    return state


def restore(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Put ``model``, newly made with the same settings, into ``state``."""
    assert isinstance(model.env, BatchedVecEnv)
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model._last_obs = {
        name: value.to(model.device) if model.env.gives_tensors else value.numpy()
        for name, value in state["last_observation"].items()
    }
    model._last_episode_starts = state["last_episode_starts"].numpy()
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    if isinstance(model, OffPolicyAlgorithm):
        _restore_replay(model.replay_buffer, state["replay"])
    model.env.load_state_dict(state["env"])
    _restore_random(model, state["random"])


def write_state(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` as one file, so that a crash leaves the previous checkpoint whole."""
    return write_atomic(folder / STATE, lambda path: torch.save(state, path))


def read_state(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_state` wrote; no code in the file is run."""
    path = folder / STATE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SeggymError(
            f"there is nothing to resume at {path}: set resume=false to begin, or give the run_dir of an earlier run"
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).partition("\n")[0]
        raise SeggymError(f"cannot read {path} ({reason}): restore it, or begin again in another run_dir") from None


def _replay_state(buffer: Any) -> dict[str, Any]:
    assert isinstance(buffer, DictReplayBuffer)
    filled = buffer.buffer_size if buffer.full else buffer.pos
    return {
        "position": buffer.pos,
        "full": buffer.full,
        "observations": {name: torch.tensor(value[:filled]) for name, value in buffer.observations.items()},
        "next_observations": {name: torch.tensor(value[:filled]) for name, value in buffer.next_observations.items()},
        **{name: torch.tensor(getattr(buffer, name)[:filled]) for name in _BUFFER_ARRAYS},
    }


def _restore_replay(buffer: Any, state: dict[str, Any]) -> None:
    assert isinstance(buffer, DictReplayBuffer)
    buffer.pos, buffer.full = state["position"], state["full"]
    for group in ("observations", "next_observations"):
        for name, value in state[group].items():
            getattr(buffer, group)[name][: len(value)] = value.numpy()
    for name in _BUFFER_ARRAYS:
        getattr(buffer, name)[: len(state[name])] = state[name].numpy()


def _random_state(model: BaseAlgorithm) -> dict[str, Any]:
    mersenne: Any = np.random.get_state()  # noqa: NPY002  the stream that is drawn from
    kind, keys, position, has_gauss, cached = mersenne
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "actions": model.action_space.np_random.bit_generator.state,
    }


def _restore_random(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    kind, keys, position, has_gauss, cached = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    model.action_space.np_random.bit_generator.state = state["actions"]
