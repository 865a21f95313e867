"""Which image to annotate next, where an annotation outlines every object: the selection environment of instances."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seggym.envs.selection.engine import Episodes, SelectionEngine
from seggym.envs.selection.environment import SelectionEnv, SelectionVectorEnv
from seggym.envs.selection.instances_sources import load_instances, make_instance_learner
from seggym.envs.selection.pools import PooledEngine, pooled
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.view import EpisodeView
from seggym.errors import SeggymError
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.instances.segmenter import McDropout


class InstanceEngine(SelectionEngine):
    """Episodes whose quality is mAP: the same annotated samples, candidates and budgets as in its parent.

    ``instances`` and ``vertices`` int64 (N,) count what was outlined, the initial samples included. A minute is spent
    on an image (``costs.volume``) and on each of its objects (``costs.instance``), which is known once it is annotated.
    """

    oracle: Any
    learner: Any

    _STATE = (*SelectionEngine._STATE, "instances", "vertices")

    def _allocate(self) -> None:
        super()._allocate()
        self.instances, self.vertices = torch.zeros_like(self.keys), torch.zeros_like(self.keys)
        # What an image costs beforehand is the same for all; how many objects it has is what nobody knows.
        self.minutes_per_sample = torch.zeros_like(self.minutes_per_sample)

    def begin(self, slots: Tensor, episodes: Episodes) -> None:
        """See the parent."""
        self.instances[slots], self.vertices[slots] = 0, 0
        super().begin(slots, episodes)

    def _annotate(self, rows: Tensor, samples: Tensor) -> None:
        super()._annotate(rows, samples)
        instances, vertices = self.oracle.effort(samples).unbind(-1)
        self.instances[rows] += instances
        self.vertices[rows] += vertices
        self.minutes[rows] += (instances * self._costs.instance).to(self.dtype)

    def _measure(self, learner: Any, rows: Tensor, scored: str) -> tuple[Tensor, Tensor]:
        """mAP (B,) and AP of each class (B, C)."""
        quality, per_class = learner.precision(rows, scored)
        return quality.to(self.dtype), per_class.to(self.dtype)

    def evaluate(self, slot: int, scored: str) -> Tensor:
        """AP of each class on the set ``scored``, float64 (1, C), NaN for absent classes."""
        return self.learner.precision(self._rows[slot : slot + 1], scored)[1]


class InstanceView(EpisodeView):
    """An episode as maskAL's strategies see it: certainty by Monte Carlo dropout beside what others may ask."""

    def certainty(self, indices: np.ndarray, dropout: McDropout, threshold: float, mode: str) -> np.ndarray:
        """float64 (n,) in [0, 1], NaN without detections; ``threshold`` is the mask IoU of one observation."""
        slices = self._engine.pool.slices[self._samples(indices), 0]
        generator = torch.Generator().manual_seed(self._engine.strategy_seed(self._slot) ^ 1)
        found = self._engine.learner.certainty(self._slot, slices, dropout, threshold, mode, generator)  # type: ignore[attr-defined]
        return found.cpu().numpy()


def build_instance_engine(settings: SelectionSettings, num_envs: int) -> InstanceEngine:
    """The engine that ``settings`` describe; images are shared within the process."""
    if settings.learner != "instances":
        raise SeggymError(f"cohort={settings.cohort} is not for ALSelect-Instances, expected instances; leave it out")
    device = resolve_device(settings.device)
    material = load_instances(settings, device)
    learner: Any = make_instance_learner(settings, material, num_envs)
    return InstanceEngine(material.pool, material.oracle, learner, settings, num_envs, device)


class InstanceSelectionVectorEnv(SelectionVectorEnv):
    """N episodes of annotating instances; :class:`InstanceSelectionEnv` with a leading axis N everywhere."""

    def _build(self, settings: dict[str, Any], num_envs: int) -> SelectionEngine | PooledEngine:
        return pooled(settings, num_envs, build_instance_engine)

    def _report(self) -> dict[str, Tensor]:
        engine = self.engine
        found = super()._report()
        found["ap"] = found.pop("dice")
        return {**found, "instances": engine.instances.clone(), "vertices": engine.vertices.clone()}

    def view(self, slot: int = 0, privileged: bool = False) -> InstanceView:
        """Episode ``slot`` as a query strategy sees it."""
        return InstanceView(self.engine, slot, privileged)


class InstanceSelectionEnv(SelectionEnv):
    """Choose the images whose annotation, the outline of every object, teaches an instance segmenter most.

    ## Description
    Active learning as maskAL does it, as an environment: at every step one image of the pool is chosen, a simulated
    annotator outlines its objects, and after ``samples_per_query`` of them a small two-stage network goes on learning
    from where it was. Images are generated (``cohort_options={"images": 320, "variant": "imbalanced", "seed": 0}``), or
    those of ``data_root`` with their annotations (``cohort_options={"classes": [...]}``), resized to ``size`` squares.

    ## Action Space, Observation Space, Starting State, Episode End
    Those of :class:`~seggym.envs.selection.environment.SelectionEnv`. Class probabilities, which the observation is
    read from, are in each pixel those of the best detection there; disagreement is 1 - certainty.

    ## Rewards
    The gain in mAP (COCO: masks, IoU .50 to .95) on the reward set at a retraining, 0 between retrainings;
    ``info["reward_parts"]["quality"]`` sums to the final minus the initial mAP (``objective="final"``), or to the area
    under the curve less the initial one ("area"). ``reward="gain_per_cost"`` divides by minutes: ``costs.volume`` for
    an image and ``costs.instance`` for each object.

    ## Information
    As there, with ``ap`` (of each class, NaN where the reward set has no object) in place of ``dice``, and
    ``instances`` and ``vertices`` outlined so far, the initial images included.

    ## Arguments
    The fields of :class:`seggym.envs.selection.settings.SelectionSettings`, of which unit, ann_type, scribbles,
    spacing, encoder, split and precision are not for instances, and ``render_mode="rgb_array"``; ``learner_options``
    are fields of :class:`seggym.reward_models.instances.learner.InstanceOptions`.

    ## Example
    >>> import gymnasium as gym, seggym
    >>> env = gym.make("ALSelect-Instances-v0", cohort_options={"images": 60}, learner_options={"first_iterations": 5})
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(info["action_mask"].argmax())

    ## Version History
    * v0: initial version.
    """

    _batch_type = InstanceSelectionVectorEnv

    def view(self, privileged: bool = False) -> InstanceView:
        """The episode as a query strategy sees it."""
        return InstanceView(self.engine, 0, privileged)
