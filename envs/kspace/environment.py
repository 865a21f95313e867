"""The k-space environments as Gymnasium sees them: one scan, or N scans in a batch, over the same engine."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.envs.kspace.rendering import Canvas
from seggym.envs.kspace.segmentation import GRID
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import build_engine
from seggym.envs.vector import BatchEnv, BatchVectorEnv
from seggym.errors import SeggymError


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


class KSpaceVectorEnv(BatchVectorEnv):
    """N scans in one batch; every scan has its own slice, budget and end.

    The specification is :class:`KSpaceEnv`'s, with a leading axis N everywhere; the rest is as in
    :class:`seggym.envs.vector.BatchVectorEnv`.
    """

    engine: Any
    _canvas: Callable[[], Any] = Canvas

    def _build(self, settings: dict[str, Any], num_envs: int) -> Any:
        return build_engine(KSpaceSettings(**settings), num_envs)

    def _space(self) -> spaces.Dict:
        return observation_space(self.engine)

    def _episodes(self, given: list[Any]) -> Episodes:
        return episodes_from(given, self.engine.device)

    def _report(self) -> dict[str, torch.Tensor]:
        engine = self.engine
        info: dict[str, torch.Tensor] = {
            "sample": engine.samples.clone(),
            "key": engine.keys.clone(),
            "budget": engine.budgets.clone(),
            "lines": engine.lines,
            "measurements": engine.steps.clone(),
            "time": engine.duration(engine.steps, engine.decisions),
            "quality": engine.quality.clone(),
        }
        if engine.segmentation is not None:
            info["dice"], info["absent_area"] = engine.dice()
        return info | self._more_info()

    def _more_info(self) -> dict[str, torch.Tensor]:
        return {}


def episodes_from(given: list[Any], device: torch.device) -> Episodes:
    """``options["episodes"]`` as tensors: each is a mapping with integers sample, budget and key."""
    try:
        rows = [
            [episode[key] for key in ("sample", "budget", "key")] if isinstance(episode, dict) else list(episode)
            for episode in given
        ]
        columns = torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(given), 3)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise SeggymError(
            "options['episodes'] must hold mappings with integers sample, budget and key; info has those "
            "of the running ones"
        ) from None
    return Episodes(*columns.unbind(1))


class KSpaceEnv(BatchEnv):
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
    penalty), ``time`` (its cost), ``level`` (ASMR's reward, in place of ``quality``) and ``error_net`` (the gain in the
    Dice that an error net expects, which needs no labels). See
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

    _batch_type: type[KSpaceVectorEnv] = KSpaceVectorEnv
