"""The k-space environments as Gymnasium sees them: one scan, or N scans in a batch, over the same engine."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from seggym.envs.kspace.engine import Episodes, KSpaceEngine, StepResult
from seggym.envs.kspace.rendering import Canvas
from seggym.envs.kspace.segmentation import GRID
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import build_engine
from seggym.errors import SeggymError

Observation = dict[str, np.ndarray]


def observation_space(engine: KSpaceEngine) -> spaces.Dict:
    """Space of one environment's observation; it depends on the acquisition and the classes, never on the budget."""
    crop, lines = engine.acquisition.crop, engine.num_lines
    features = engine.networks[0].num_features if engine.networks else 0
    kspace = engine.scanner.trajectory.views.shape
    parts: dict[str, spaces.Space] = {
        "image": spaces.Box(0, 255, (1, crop, crop), np.uint8),
        "acquired": spaces.MultiBinary(lines),
        "budget": spaces.Box(0, 1, (1,), np.float32),
        "energy": spaces.Box(0, 1, (lines,), np.float32),
        "corrupted": spaces.MultiBinary(lines),
        "axis": spaces.MultiBinary(1),
        "image_float": spaces.Box(0, np.inf, (1, crop, crop), np.float32),
        "probabilities": spaces.Box(0, 255, (engine.stack.num_classes, crop, crop), np.uint8),
        "probability_grid": spaces.Box(0, 1, (engine.stack.num_classes * GRID * GRID,), np.float32),
        "features": spaces.Box(-np.inf, np.inf, (features,), np.float32),
        "kspace": spaces.Box(-np.inf, np.inf, (2 * engine.acquisition.coils, *kspace), np.float32),
        "action_mask": spaces.MultiBinary(engine.num_actions),
    }
    return spaces.Dict({part: parts[part] for part in engine.settings.observation})


class KSpaceVectorEnv(VectorEnv):
    """N scans in one batch; every scan has its own slice, budget and end.

    The specification is :class:`KSpaceEnv`'s, with a leading axis N everywhere. ``autoreset_mode`` is NEXT_STEP
    (Gymnasium's default, RLlib's assumption) or SAME_STEP (what stable-baselines3 assumes): ``infos["final_obs"]`` and
    ``infos["final_info"]`` then hold the end of an episode. ``output="torch"`` returns tensors on the engine's device.
    ``action_masks()`` is one bool array (N, A). ``state_dict()`` and ``load_state_dict()`` make a resume exact.
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
        engine: KSpaceEngine | None = None,
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
        self.single_action_space = spaces.Discrete(self.engine.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._ended = np.ones(num_envs, bool)
        self._illegal_actions = torch.zeros(num_envs, dtype=torch.int64, device=self.engine.device)
        self._canvases = [self._canvas() for _ in range(num_envs)] if render_mode else []

    # What another family of episodes does in its own way.
    _canvas: Callable[[], Any] = Canvas

    def _build(self, settings: dict[str, Any], num_envs: int) -> Any:
        return build_engine(KSpaceSettings(**settings), num_envs)

    def _space(self) -> spaces.Dict:
        return observation_space(self.engine)

    def _more_info(self) -> dict[str, torch.Tensor]:
        return {}

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode everywhere; ``options={"episodes": [...]}`` replays (see :class:`KSpaceEnv`)."""
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
        self._begin(slots, None if given is None else episodes_from(given, self.engine, self.num_envs))
        return self._observe(), self._info()

    def _begin(self, slots: np.ndarray, episodes: Episodes | None = None) -> None:
        if episodes is None:
            keys = [self._generators[slot].integers(2**63) for slot in slots]
            episodes = self.engine.draw(torch.tensor(keys, dtype=torch.int64))
        index = torch.from_numpy(slots).to(self.engine.device)
        self.engine.begin(index, episodes)
        self._illegal_actions[index] = 0
        self._ended[slots] = False
        for slot in slots if self._canvases else ():
            self._canvases[slot].restart(self.engine, int(slot))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Measure one line per scan. In NEXT_STEP mode the action of a scan that has just ended is ignored."""
        if self.engine.truth is None:
            raise SeggymError("no episode has begun: call reset() before step()")
        resetting = self._ended.copy()
        actions = torch.as_tensor(actions, device=self.engine.device).long().reshape(self.num_envs)
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

    def _finish_same_step(self, result: StepResult) -> dict[str, Any]:
        ended = np.flatnonzero(self._ended)
        info = self._info(result)
        if not len(ended):
            return info
        final_obs, final_info = self._observe(), info
        self._begin(ended)
        info = self._info(result)
        info["final_obs"] = np.full(self.num_envs, None, dtype=object)
        for slot in ended:
            info["final_obs"][slot] = {key: value[slot] for key, value in final_obs.items()}
        mask = np.isin(np.arange(self.num_envs), ended)
        info["final_info"] = {**final_info, **{f"_{key}": mask for key in final_info}}
        info["_final_obs"] = info["_final_info"] = mask
        return info

    def _info(self, result: StepResult | None = None) -> dict[str, Any]:
        """Arrays (N, ...): episodes, quality, legal actions and the parts of the reward of the last step."""
        engine = self.engine
        info: dict[str, Any] = {
            "action_mask": self._legal().to(torch.int8),
            "sample": engine.samples.clone(),
            "key": engine.keys.clone(),
            "budget": engine.budgets.clone(),
            "lines": engine.lines,
            "measurements": engine.steps.clone(),
            "time": engine.duration(engine.steps, engine.decisions),
            "quality": engine.quality.clone(),
            "illegal_actions": self._illegal_actions.clone(),
        }
        if engine.segmentation is not None:
            info["dice"], info["absent_area"] = engine.dice()
        info |= self._more_info()
        # Always there, so that the infos of reset and step have the same keys.
        parts = result.parts if result else {name: torch.zeros_like(engine.quality) for name in engine.part_names}
        info["reward_parts"] = {key: self._out(value) for key, value in parts.items()}
        return {key: value if isinstance(value, dict) else self._out(value) for key, value in info.items()}

    def _observe(self) -> dict[str, Any]:
        observation = self.engine.observe()
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
        """Legal actions, bool (N, A), a fresh array; all ones for a scan that has ended."""
        return self._legal().cpu().numpy()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One uint8 (height, width, 3) picture per scan; None without a render mode."""
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


def episodes_from(given: list[Any], engine: KSpaceEngine, count: int) -> Episodes:
    """``options["episodes"]`` as tensors: each is a mapping with integers sample, budget and key."""
    if len(given) != count:
        raise SeggymError(
            f"options['episodes'] holds {len(given)} episodes, expected one for each of {count} environments"
        )
    try:
        rows = [
            [episode[key] for key in ("sample", "budget", "key")] if isinstance(episode, dict) else list(episode)
            for episode in given
        ]
        columns = torch.tensor(rows, dtype=torch.int64, device=engine.device).reshape(count, 3)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise SeggymError(
            "options['episodes'] must hold mappings with integers sample, budget and key; info has those "
            "of the running ones"
        ) from None
    return Episodes(*columns.unbind(1))


class KSpaceEnv(gymnasium.Env):
    """Measure the lines of k-space that a segmentation needs.

    ## Description
    A slice of a patient is scanned. A block of lines around the centre of (simulated) k-space is measured first; every
    step measures one more phase-encode line, adds it to the zero-filled image and lets a pretrained network segment it.

    Where the cohort holds raw k-space (``KSpaceRecon-Raw-v0``, ``KSpaceSeg-CMRxRecon-v0``) the lines are those that
    were measured, without any noise or phase on top: coils are compressed to ``acquisition.coils`` virtual ones, lines
    that were never measured are never legal, and SSIM compares with the root sum of squares of all lines.

    Lines are one trajectory: ``acquisition={"trajectory": "radial"}`` measures spokes (the ``-Radial`` ids), "points"
    2-D points of k-space (``-Points``). "Line" and M then mean such a view and their number V, except in the image
    (docs/trajectories.md).

    ## Action Space
    ``Discrete(M)``: the absolute index of a line of the acquisition matrix, DC at ``M // 2``; ``Discrete(M + 1)`` with
    ``stop_action``, whose last action ends the scan. A line that is measured already, or is no candidate, is illegal:
    by default it measures nothing and uses one unit of budget (``illegal_action``: "noop", "penalty" or "raise").
    ``lines_per_step`` measures the lines nearest to it as well; ``remeasure`` makes lines legal that are measured
    already; ``choose_axis`` adds two actions, columns and rows, for the axis of phase encoding, the first choice of an
    episode.

    ## Observation Space
    ``Dict`` of ``image`` uint8 (1, C, C), the reconstruction so far; ``acquired`` int8 (M,); ``budget`` float32 (1,),
    the lines left, divided by M. ``observation=`` chooses other parts: ``energy`` float32 (M,), of the measured lines
    on a log scale; ``corrupted`` int8 (M,), measured lines known to be out of phase; ``axis`` int8 (1,), 1 where phase
    is encoded along rows; ``probability_grid`` float32 (K * 8 * 8,), mean class probabilities over a coarse grid;
    ``probabilities`` uint8 (K, C, C); ``features`` float32 (F,), of the scoring network's bottleneck (cross-fitted
    networks have different ones: for a policy take ``probability_grid``); ``kspace`` float32 (2 J, M, M), J coils
    (of spokes (2 J, M, V));
    ``image_float`` float32 (1, C, C); ``action_mask`` int8 (A,). Everything is a function of measured samples only.

    ## Rewards
    The gain in quality, lambda_seg * segmentation + lambda_recon * reconstruction (lambda_2 and lambda_1 of the paper).
    Segmentation quality is the soft Dice over the classes present, less a penalty on area predicted for absent ones.
    ``info["reward_parts"]["quality"]`` sums to the final minus the initial quality; other parts are ``illegal`` (a
    penalty), ``time`` (its cost) and ``level`` (ASMR's reward, in place of ``quality``). See
    :class:`seggym.envs.kspace.settings.KSpaceSettings` for the alternatives.

    ## Starting State
    Slice, budget, phase and noise derive from one 64-bit key, drawn from the environment's generator;
    ``reset(options={"episodes": [{"sample": 3, "budget": 12, "key": 42}]})`` replays an episode.

    ## Episode End
    Terminated when the budget is used up, no candidate is left, or by the stop action. Never truncated.

    ## Information
    ``action_mask`` int8 (A,), ``sample``, ``key``, ``budget``, ``lines`` (different ones, the initial ones included),
    ``measurements`` (after the initial ones, repetitions included), ``time`` (ms), ``quality``, ``dice`` (per
    foreground class, NaN where absent), ``absent_area`` (pixels predicted for absent classes), ``illegal_actions``,
    ``reward_parts``.

    ## Arguments
    The fields of :class:`seggym.envs.kspace.settings.KSpaceSettings`, and ``render_mode="rgb_array"``.

    ## Example
    >>> import gymnasium as gym, seggym
    >>> env = gym.make("KSpaceRecon-Phantom-v0", cohort_options={"patients": 4, "test_patients": 1})
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(info["action_mask"].argmax())

    ## Version History
    * v0: initial version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012
    _batch_type: type[KSpaceVectorEnv] = KSpaceVectorEnv

    def __init__(self, *, render_mode: str | None = None, engine: KSpaceEngine | None = None, **settings: Any) -> None:
        self.render_mode = render_mode
        # One batch of size one. SAME_STEP would begin the next episode by itself; NEXT_STEP waits for our reset.
        self._batch = self._batch_type(1, render_mode=render_mode, engine=engine, **settings)
        self.engine = self._batch.engine
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; see the class for ``options``."""
        super().reset(seed=seed)
        self._batch._generators = [self.np_random]
        observation, info = self._batch.reset(options=options)
        return _first(observation), _first(info)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Measure one line."""
        if self._batch._ended[0]:
            raise SeggymError("the episode has ended (or never begun): call reset() before step()")
        observation, reward, terminated, truncated, info = self._batch.step(np.asarray(action).reshape(1))
        return _first(observation), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def action_masks(self) -> np.ndarray:
        """Legal actions, bool (A,), a fresh array; all ones once the episode has ended."""
        return self._batch.action_masks()[0]

    def render(self) -> np.ndarray | None:
        """The scan so far as uint8 (height, width, 3)."""
        frames = self._batch.render()
        return frames[0] if frames else None


def _first(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: _first(value) if isinstance(value, dict) else value[0] for key, value in batch.items()}
