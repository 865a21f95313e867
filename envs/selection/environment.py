"""The selection environments as Gymnasium sees them: one episode of annotation, or N in a batch."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from seggym.envs.selection.engine import Episodes, SelectionEngine
from seggym.envs.selection.observation import EMBEDDING, candidate_width, class_slots, learner_width
from seggym.envs.selection.pools import PooledEngine, build_engines
from seggym.envs.selection.rendering import Canvas
from seggym.envs.selection.view import EpisodeView
from seggym.envs.vector import BatchEnv, BatchVectorEnv
from seggym.errors import SeggymError


def observation_space(engine: SelectionEngine | PooledEngine) -> spaces.Dict:
    """Space of one environment's observation; it depends on the number of candidates and classes, not on the budget."""
    rows, slots = engine.num_candidates, class_slots(engine)
    parts: dict[str, spaces.Space] = {
        "candidates": spaces.Box(0, 1, (rows, candidate_width(slots)), np.float32),
        "embeddings": spaces.Box(-1, 1, (rows, EMBEDDING), np.float32),
        "learner": spaces.Box(0, 1, (learner_width(slots),), np.float32),
        "budget": spaces.Box(0, 1, (1,), np.float32),
        "progress": spaces.Box(0, 1, (2,), np.float32),
        "action_mask": spaces.MultiBinary(rows),
    }
    return spaces.Dict({part: parts[part] for part in engine.settings.observation})


class SelectionVectorEnv(BatchVectorEnv):
    """N episodes of annotation in one batch, each with its own annotated samples, candidates, learner and budget.

    The specification is :class:`SelectionEnv`'s, with a leading axis N everywhere; the rest is as in
    :class:`seggym.envs.vector.BatchVectorEnv`. With a list as ``split_seed`` the roles are dealt anew for each of its
    seeds, and equally many environments take place in each of those pools; such a batch draws no pictures and has no
    views.
    """

    engine: Any
    _canvas = Canvas

    def _build(self, settings: dict[str, Any], num_envs: int) -> SelectionEngine | PooledEngine:
        return build_engines(settings, num_envs)

    def _space(self) -> spaces.Dict:
        return observation_space(self.engine)

    def _episodes(self, given: list[Any]) -> Episodes:
        try:
            rows = [[episode[key] for key in ("budget", "key")] for episode in given]
            columns = torch.tensor(rows, dtype=torch.int64, device=self.engine.device).reshape(len(given), 2)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise SeggymError(
                "options['episodes'] must hold mappings with integers budget and key; info has those of the running "
                "ones"
            ) from None
        return Episodes(*columns.unbind(1))

    def _report(self) -> dict[str, torch.Tensor]:
        engine = self.engine
        return {
            # All episodes take place in one pool; the k-space environments draw a slice here.
            "sample": torch.zeros_like(engine.keys),
            "key": engine.keys.clone(),
            "budget": engine.budgets.clone(),
            "candidates": engine.candidates.clone(),
            "annotated": engine.count.clone(),
            "rounds": engine.rounds - 1,
            "minutes": engine.minutes.clone(),
            "quality": engine.quality.clone(),
            "dice": engine.scores.clone(),
        }

    def view(self, slot: int = 0, privileged: bool = False) -> EpisodeView:
        """Episode ``slot`` as a query strategy sees it."""
        return EpisodeView(self.engine, slot, privileged)


class SelectionEnv(BatchEnv):
    """Choose the samples whose annotation teaches a segmentation most.

    ## Description
    Active learning on a simulated annotator. A pool of slices (or volumes, or patients) is unlabelled but for a few. At
    every step one sample is chosen and annotated, with a mask or a scribble; after ``samples_per_query`` of them the
    learner is retrained and scored on other patients. The default learner, the *probe*, is a ridge classifier on frozen
    features of an encoder that was trained without labels: retraining takes milliseconds. ``learner="unet"`` trains a
    network instead.

    ## Action Space
    ``Discrete(K)``: a row of the K ``candidates`` drawn from the unlabelled pool at every query
    (``action="candidates"``), or the sample itself, K being the size of the pool (``action="pool"``).
    ``info["candidates"]`` names the samples, -1 for an empty row. Illegal are empty rows and annotated samples: nothing
    is annotated and one unit of budget is used (``illegal_action``: "noop", "penalty" or "raise").

    ## Observation Space
    ``Dict`` of (``observation=`` chooses)

    - ``candidates`` float32 (K, 14 + 3 classes): :data:`seggym.envs.selection.observation.CANDIDATE_FEATURES`, then
      ``CLASS_FEATURES`` of every class; a row of zeros for an empty one;
    - ``embeddings`` float32 (K, 16): principal components of the encoder's features;
    - ``learner`` float32 (10 + 2 classes,): quantiles of the entropy over slices of the state set, predicted and
      annotated class histograms, entropy of the predicted foreground, share of the pool that is annotated;
    - ``budget`` float32 (1,), samples left, divided by the size of the pool; ``progress`` float32 (2,), share of the
      budget that is used, and of the picks before the next retraining;
    - ``action_mask`` int8 (K,).

    Nothing depends on a label that has not been annotated.

    ## Rewards
    The gain in quality at a retraining, 0 between retrainings. Quality is the Dice of each volume of the reward set in
    3-D, mean over its classes, then over volumes; for images accuracy or F1. ``info["reward_parts"]["quality"]`` sums
    to the final minus the initial quality (``objective="final"``), or to the area under the learning curve less the
    initial quality ("area"). ``reward="gain_per_cost"`` divides by the minutes of annotation since the last retraining;
    other parts are ``illegal`` (a penalty) and ``cost`` (``cost_weight`` per hour).

    ## Starting State
    Initial samples, candidates, budget and the learner's random numbers derive from one 64-bit key;
    ``reset(options={"episodes": [{"budget": 12, "key": 42}]})`` replays an episode.

    ## Episode End
    Terminated when the budget is used up or the pool is. Never truncated.

    ## Information
    ``action_mask`` int8 (K,), ``candidates`` int64 (K,), ``key``, ``budget``, ``sample`` (0: there is one pool),
    ``annotated`` (samples, the initial ones included), ``rounds`` (retrainings after the initial one), ``minutes``,
    ``quality``, ``dice`` (per class, mean over volumes; for images the F1 score), ``illegal_actions``,
    ``reward_parts``.

    ## Arguments
    The fields of :class:`seggym.envs.selection.settings.SelectionSettings`, and ``render_mode="rgb_array"``.

    ## Example
    >>> import gymnasium as gym, seggym
    >>> env = gym.make("ALSelect-Phantom-v0", cohort_options={"patients": 12, "test_patients": 3})
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(info["action_mask"].argmax())

    ## Version History
    * v0: initial version.
    """

    _batch_type = SelectionVectorEnv

    def view(self, privileged: bool = False) -> EpisodeView:
        """The episode as a query strategy sees it."""
        return EpisodeView(self.engine, 0, privileged)
