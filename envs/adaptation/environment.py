"""The adaptation environments as Gymnasium sees them: one image to segment, or N in a batch."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from seggym.envs.adaptation.engine import AdaptationEngine, Episodes
from seggym.envs.adaptation.rendering import Canvas
from seggym.envs.vector import BatchEnv, BatchVectorEnv
from seggym.errors import SeggymError


class AdaptationVectorEnv(BatchVectorEnv):
    """N images to segment in one batch; every step ends all of them.

    The specification is :class:`AdaptationEnv`'s, with a leading axis N everywhere; the rest is as in
    :class:`seggym.envs.vector.BatchVectorEnv`.
    """

    engine: AdaptationEngine
    _canvas = Canvas
    _masked = False

    def _build(self, settings: dict[str, Any], num_envs: int) -> AdaptationEngine:
        # Cohorts, shifts and reward networks are read by those who make an engine of settings, not of tensors.
        from seggym.envs.adaptation.settings import AdaptationSettings
        from seggym.envs.adaptation.sources import build_engine

        return build_engine(AdaptationSettings(**settings), num_envs)

    def _space(self) -> spaces.Box:
        return spaces.Box(0, 1, (1, *self.engine.size), np.float32)

    def _action_space(self) -> spaces.MultiDiscrete:
        # Flat: trainers count the entries of a MultiDiscrete by its length.
        return spaces.MultiDiscrete(np.full(self.engine.pixels, self.engine.num_classes))

    def _episodes(self, given: list[Any]) -> Episodes:
        try:
            rows = [[episode[key] for key in ("sample", "key")] for episode in given]
            columns = torch.tensor(rows, dtype=torch.int64, device=self.engine.device).reshape(len(given), 2)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise SeggymError(
                "options['episodes'] must hold mappings with integers sample and key; info has those of the running "
                "ones"
            ) from None
        return Episodes(*columns.unbind(1))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One label map per environment, integer (N, H * W)."""
        self.engine.check(torch.as_tensor(actions))
        return super().step(actions)

    def _report(self) -> dict[str, torch.Tensor]:
        engine = self.engine
        return {
            "sample": engine.samples.clone(),
            "key": engine.keys.clone(),
            "reward_map": engine.maps.flatten(1).clone(),
            "quality": engine.quality.clone(),
            **engine.metrics(),
        }


class AdaptationEnv(BatchEnv):
    """Segment an image of a new domain; the reward says how right every pixel is.

    ## Description
    A network trained on one domain (the source) meets images of another (the target), of which there are no labels. An
    episode shows one image; its segmentation is the one action; the reward is the mean of a map that says how right
    the label of each pixel is. Learned from data, that map needs no labels of the target
    (:class:`seggym.reward_models.error_net.ErrorNet`); two oracles know them and are upper references. Patients of the
    source and of the target are different people.

    ## Action Space
    ``MultiDiscrete`` with one entry for each of the H * W pixels, rows first: its class, 0 (background) to K - 1. Every
    label map is legal.

    ## Observation Space
    ``Box(0, 1, (1, H, W), float32)``: the image.

    ## Rewards
    The mean of ``info["reward_map"]``, in [0, 1], as the part ``adaptation`` of ``info["reward_parts"]``:

    - ``reward="learned"``: P(label correct), of the network in the folder ``reward_model``;
    - ``reward="accuracy"``: 1 where the label is right; ``reward="dice"``: the image's smoothed Dice at every pixel.
      Both look at the labels of the role, those of the target's training part included: they are privileged.

    ## Starting State
    The image derives from one 64-bit key; ``reset(options={"episodes": [{"sample": 3, "key": 42}]})`` shows a given
    one.

    ## Episode End
    Terminated after the one step. Never truncated.

    ## Information
    ``sample`` (number of the image), ``key``, ``reward_map`` float32 (H * W,), ``quality`` (its mean),
    ``reward_parts``. Where labels are known also ``accuracy`` and ``dice`` (K - 1,), NaN for a class that the image
    lacks; those of the target's training part are known to the oracles alone. Before the step the map is zeros and the
    metrics are NaN.

    ## Arguments
    The fields of :class:`seggym.envs.adaptation.settings.AdaptationSettings`, and ``render_mode="rgb_array"``.

    ## Example
    >>> import gymnasium as gym, seggym
    >>> env = gym.make("SegAdapt-Phantom-v0", cohort_options={"patients": 10})
    >>> image, info = env.reset(seed=0)
    >>> image, reward, terminated, truncated, info = env.step(env.action_space.sample())

    ## Version History
    * v0: initial version.
    """

    _batch_type = AdaptationVectorEnv
