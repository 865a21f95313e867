"""Engines as Gymnasium sees them: N episodes in a batch, or a single one; the same for every family of environments."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from seggym.errors import SeggymError


class BatchVectorEnv(VectorEnv):
    """N episodes of one engine in one batch; every one of them has its own budget and end.

    ``autoreset_mode`` is NEXT_STEP (Gymnasium's default, RLlib's assumption) or SAME_STEP (what stable-baselines3
    assumes): ``infos["final_obs"]`` and ``infos["final_info"]`` then hold the end of an episode. ``output="torch"``
    returns tensors on the engine's device. ``action_masks()`` is one bool array (N, A). ``state_dict()`` and
    ``load_state_dict()`` make a resume exact.

    A family says what its engine, spaces and picture are (:meth:`_build`, :meth:`_space`, :meth:`_action_space`,
    :attr:`_canvas`), how episodes are written (:meth:`_episodes`) and what it reports beside the rewards
    (:meth:`_report`).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  Gymnasium declares it so
        "render_modes": ["rgb_array"],
        "render_fps": 2,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        output: str = "numpy",
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        engine: Any | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.DISABLED:
            raise SeggymError("autoreset_mode='Disabled' is not offered: choose 'NextStep' or 'SameStep'")
        if output not in ("numpy", "torch"):
            raise SeggymError(f"output={output!r} is unknown, expected 'numpy' or 'torch'")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise SeggymError(f"render_mode={render_mode!r} is unknown, expected 'rgb_array' or None")
        if max_episode_steps is not None:
            raise SeggymError(
                "max_episode_steps is not needed: an episode ends when its budget is used up; set budget="
            )
        self.engine = self._build(settings, num_envs) if engine is None else engine
        self.num_envs, self.output, self.render_mode, self.autoreset_mode = num_envs, output, render_mode, mode
        self.metadata = {**type(self).metadata, "autoreset_mode": mode}
        self.single_observation_space = self._space()
        self.single_action_space = self._action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._ended = np.ones(num_envs, bool)
        self._begun = False
        self._illegal_actions = torch.zeros(num_envs, dtype=torch.int64, device=self.engine.device)
        self._canvases = [self._canvas() for _ in range(num_envs)] if render_mode else []

    # What a family of episodes does in its own way.
    _canvas: Callable[[], Any]
    # Whether actions can be illegal, so that infos say which are not.
    _masked = True

    def _build(self, settings: dict[str, Any], num_envs: int) -> Any:
        """The engine of keyword arguments."""
        raise NotImplementedError

    def _space(self) -> spaces.Space:
        """Space of one environment's observation: a Dict of parts, or one Box."""
        raise NotImplementedError

    def _action_space(self) -> spaces.Space:
        """Space of one environment's action: integers of any shape."""
        return spaces.Discrete(self.engine.num_actions)

    def _episodes(self, given: list[Any]) -> Any:
        """``options["episodes"]``, one for each environment, as the engine's episodes."""
        raise NotImplementedError

    def _report(self) -> dict[str, torch.Tensor]:
        """What infos say beside legal actions and rewards, each (N, ...)."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode everywhere; ``options={"episodes": [...]}`` replays those."""
        if seed is not None:
            seeds = range(seed, seed + self.num_envs) if isinstance(seed, (int, np.integer)) else seed
            if len(seeds) != self.num_envs:
                raise SeggymError(
                    f"seed holds {len(seeds)} numbers, expected a single one or one for each of {self.num_envs} "
                    "environments"
                )
            for slot, value in enumerate(seeds):
                if value is not None:
                    self._generators[slot] = np.random.default_rng(value)
        given = (options or {}).get("episodes")
        slots = np.arange(self.num_envs)
        if given is not None and len(given) != self.num_envs:
            raise SeggymError(
                f"options['episodes'] holds {len(given)} episodes, expected one for each of {self.num_envs} "
                "environments"
            )
        self._begin(slots, None if given is None else self._episodes(given))
        return self._observe(), self._info()

    def _begin(self, slots: np.ndarray, episodes: Any | None = None) -> None:
        if episodes is None:
            keys = [self._generators[slot].integers(2**63) for slot in slots]
            episodes = self.engine.draw(torch.tensor(keys, dtype=torch.int64))
        index = torch.from_numpy(slots).to(self.engine.device)
        self.engine.begin(index, episodes)
        self._illegal_actions[index] = 0
        self._ended[slots] = False
        self._begun = True
        for slot in slots if self._canvases else ():
            self._canvases[slot].restart(self.engine, int(slot))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One action per environment. In NEXT_STEP mode that of an episode that has just ended is ignored."""
        if not self._begun:
            raise SeggymError("no episode has begun: call reset() before step()")
        resetting = self._ended.copy()
        actions = torch.as_tensor(actions, device=self.engine.device).long().reshape(self.action_space.shape or ())
        active = torch.from_numpy(~resetting).to(self.engine.device) if resetting.any() else None
        result = self.engine.step(actions, active)
        self._illegal_actions += result.illegal
        for slot in np.flatnonzero(~resetting) if self._canvases else ():
            self._canvases[slot].add(self.engine, int(slot))
        self._ended = result.terminated.cpu().numpy().copy()
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            if resetting.any():
                self._begin(np.flatnonzero(resetting))
            infos = self._info(result)
        else:
            infos = self._finish_same_step(result)
        reward = torch.stack(list(result.parts.values())).sum(0).to(torch.float64)
        truncated = torch.zeros_like(result.terminated)
        outputs = (self._out(reward), self._out(result.terminated), self._out(truncated))
        return self._observe(), *outputs, infos

    def _finish_same_step(self, result: Any) -> dict[str, Any]:
        ended = np.flatnonzero(self._ended)
        info = self._info(result)
        if not len(ended):
            return info
        final_obs, final_info = self._observe(), info
        self._begin(ended)
        info = self._info(result)
        info["final_obs"] = np.full(self.num_envs, None, dtype=object)
        for slot in ended:
            info["final_obs"][slot] = _of(final_obs, slot)
        mask = np.isin(np.arange(self.num_envs), ended)
        info["final_info"] = {**final_info, **{f"_{key}": mask for key in final_info}}
        info["_final_obs"] = info["_final_info"] = mask
        return info

    def _info(self, result: Any | None = None) -> dict[str, Any]:
        """Arrays (N, ...): episodes, quality, legal actions and the parts of the reward of the last step."""
        engine = self.engine
        info: dict[str, Any] = {"action_mask": self._legal().to(torch.int8)} if self._masked else {}
        info |= self._report()
        if self._masked:
            info["illegal_actions"] = self._illegal_actions.clone()
        # Always there, so that the infos of reset and step have the same keys.
        parts = result.parts if result else {name: torch.zeros_like(engine.quality) for name in engine.part_names}
        info["reward_parts"] = {key: self._out(value) for key, value in parts.items()}
        return {key: value if isinstance(value, dict) else self._out(value) for key, value in info.items()}

    def _observe(self) -> Any:
        observation = self.engine.observe()
        if isinstance(observation, torch.Tensor):
            return self._out(observation)
        if "action_mask" in observation:
            observation["action_mask"] = self._legal().to(torch.int8)
        return {part: self._out(value) for part, value in observation.items()}

    def _legal(self) -> torch.Tensor:
        # The last state of an episode has no action to choose: an all-ones mask is what trainers can always use.
        ended = torch.from_numpy(self._ended).to(self.engine.device)
        return self.engine.action_mask() | ended[:, None]

    def _out(self, value: torch.Tensor) -> Any:
        return value if self.output == "torch" else value.cpu().numpy()

    def action_masks(self) -> np.ndarray:
        """Legal actions, bool (N, A), a fresh array; all ones for an episode that has ended."""
        return self._legal().cpu().numpy()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One uint8 (height, width, 3) picture per environment; None without a render mode."""
        if not self._canvases:
            return None
        return tuple(canvas.draw() for canvas in self._canvases)

    def state_dict(self) -> dict[str, Any]:
        """Engine, generators and running episodes; pictures are not part of it."""
        return {
            "engine": self.engine.state_dict(),
            "generators": [generator.bit_generator.state for generator in self._generators],
            "ended": torch.from_numpy(self._ended.copy()),
            "illegal_actions": self._illegal_actions.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was called."""
        self.engine.load_state_dict(state["engine"])
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        self._ended = state["ended"].numpy().copy()
        self._illegal_actions.copy_(state["illegal_actions"])
        self._begun = True


class BatchEnv(gymnasium.Env):
    """A batch of one as a single environment; ``_batch_type`` says of which family."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012
    _batch_type: type[BatchVectorEnv]

    def __init__(self, *, render_mode: str | None = None, engine: Any | None = None, **settings: Any) -> None:
        self.render_mode = render_mode
        # One batch of size one. SAME_STEP would begin the next episode by itself; NEXT_STEP waits for our reset.
        self._batch = self._batch_type(1, render_mode=render_mode, engine=engine, **settings)
        self.engine = self._batch.engine
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; see the class for ``options``."""
        super().reset(seed=seed)
        self._batch._generators = [self.np_random]
        observation, info = self._batch.reset(options=options)
        return _of(observation, 0), _of(info, 0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One action."""
        if self._batch._ended[0]:
            raise SeggymError("the episode has ended (or never begun): call reset() before step()")
        actions = np.asarray(action).reshape(1, *(self.action_space.shape or ()))
        observation, reward, terminated, truncated, info = self._batch.step(actions)
        return _of(observation, 0), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _of(info, 0)

    def action_masks(self) -> np.ndarray:
        """Legal actions, bool (A,), a fresh array; all ones once the episode has ended."""
        return self._batch.action_masks()[0]

    def render(self) -> np.ndarray | None:
        """The episode so far as uint8 (height, width, 3)."""
        frames = self._batch.render()
        return frames[0] if frames else None


def _of(batch: Any, slot: int | np.integer) -> Any:
    """The entry ``slot`` of an array, or of every array in (nested) mappings."""
    return {key: _of(value, slot) for key, value in batch.items()} if isinstance(batch, dict) else batch[slot]
