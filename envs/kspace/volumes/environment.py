"""The multi-slice environments as Gymnasium sees them, on the code of the 2-D ones: only what an episode is differs."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from seggym.envs.kspace.environment import KSpaceEnv, KSpaceVectorEnv, observation_space
from seggym.envs.kspace.segmentation import GRID
from seggym.envs.kspace.volumes.engine import VolumeEngine
from seggym.envs.kspace.volumes.rendering import VolumeCanvas
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.envs.kspace.volumes.sources import build_volume_engine


def volume_observation_space(engine: VolumeEngine) -> spaces.Dict:
    """Space of one environment's observation; it depends on neither the budget nor the depth of any volume."""
    slots, crop, classes = engine.num_slots, engine.acquisition.crop, engine.stack.num_classes
    lines = (slots, engine.num_lines) if engine.settings.slices == "allocate" else (engine.num_lines,)
    parts: dict[str, spaces.Space] = {
        "acquired": spaces.MultiBinary(lines if len(lines) > 1 else lines[0]),
        "energy": spaces.Box(0, 1, lines, np.float32),
        "budget": spaces.Box(0, 1, (1,), np.float32),
        "slices": spaces.Box(0, 1, (slots * 3,), np.float32),
        "slice_probabilities": spaces.Box(0, 1, (slots * classes,), np.float32),
        "probability_grid": spaces.Box(0, 1, (classes * GRID * GRID,), np.float32),
        "images": spaces.Box(0, 255, (slots, crop, crop), np.uint8),
        "action_mask": spaces.MultiBinary(engine.num_actions),
    }
    return spaces.Dict({part: parts[part] for part in engine.settings.observation})


def space_of(engine: Any) -> spaces.Dict:
    """Space of one environment's observation of ``engine``, whichever of the two kinds it is."""
    volumes = isinstance(engine.settings, VolumeSettings)
    return volume_observation_space(engine) if volumes else observation_space(engine)


class KSpaceVolumeVectorEnv(KSpaceVectorEnv):
    """N volumes in one batch. The specification is :class:`KSpaceVolumeEnv`'s, with a leading axis N everywhere; the
    rest is as in :class:`seggym.envs.kspace.environment.KSpaceVectorEnv`.
    """

    engine: VolumeEngine
    _canvas = VolumeCanvas

    def _build(self, settings: dict[str, Any], num_envs: int) -> VolumeEngine:
        return build_volume_engine(VolumeSettings(**settings), num_envs)

    def _space(self) -> spaces.Dict:
        return volume_observation_space(self.engine)

    def _more_info(self) -> dict[str, torch.Tensor]:
        info = {"depth": self.engine.real.sum(1), "lines_per_slice": self.engine.lines_per_slice()}
        if self.engine.settings.slices == "sequential":
            info["slice"] = self.engine.current()
        if self.engine.settings.pair:
            info["ejection_fraction"], info["true_ejection_fraction"] = self.engine.ejection_fractions()
        return info


class KSpaceVolumeEnv(KSpaceEnv):
    """Measure the lines of k-space that the segmentation of a whole volume needs.

    ## Description
    A short-axis volume is scanned slice by slice (2-D multi-slice: every slice has a k-space of its own, nothing is
    3-D encoded). A block of lines around the centre of (simulated) k-space of every slice is measured first; then every
    step measures one more phase-encode line, of every slice or of one, and a pretrained network segments what has
    changed. With ``pair=true`` an episode scans both cardiac phases of a patient, end-diastole in the first slots and
    end-systole after it. Volumes have different depths: Z slots are there for every volume (``max_slices``, twice that
    for pairs), and those that it does not fill are never measured, legal or scored, and zero in every observation.

    ## Action Space
    - ``slices="shared"``: ``Discrete(M)``, a line that is measured in every slice.
    - ``slices="sequential"``: ``Discrete(M)``, a line of the current slice. Slices follow one another in anatomical
      order, each with an equal share of the budget; what the shares leave over goes to the first slices.
    - ``slices="allocate"``: ``Discrete(Z * M)``, line ``a % M`` of slice ``a // M``: the agent allocates the budget.

    Illegal are lines that are measured already or no candidates, and slots without a slice. An illegal action measures
    nothing and uses one unit of budget (``illegal_action``: "noop", "penalty" or "raise").

    ## Observation Space
    ``Dict`` of (``observation=`` chooses)

    - ``acquired`` int8 and ``energy`` float32, of the lines that an action can be about: (M,) with "shared" (the energy
      is the mean over slices) and with "sequential" (of the current slice), (Z, M) with "allocate";
    - ``budget`` float32 (1,): what is left, divided by M ("shared") or Z * M;
    - ``slices`` float32 (Z * 3,): per slot, whether it holds a slice, the share of its lines that is measured, and
      whether it is the current one;
    - ``slice_probabilities`` float32 (Z * K,): mean probability of every class in every slice;
    - ``probability_grid`` float32 (K * 8 * 8,): mean class probabilities over a coarse grid, averaged over slices (with
      "sequential" those of the current slice);
    - ``images`` uint8 (Z, C, C), not by default; ``action_mask`` int8 (A,), not by default.

    Everything is a function of measured samples only.

    ## Rewards
    The gain in Dice of the volume: the smoothed soft Dice of :func:`seggym.reward_models.metrics.soft_quality` with
    intersections and areas summed over all slices, mean over the classes that the volume has, less the penalty on area
    predicted for classes that it lacks; of a pair, the mean of its two volumes. It sums to the final minus the initial
    quality (``objective="final"``) or to the area under the curve (``objective="area"``), as in the 2-D environments.

    ## Starting State
    ``sample`` is a volume (or, of pairs, a patient), ``budget`` counts lines of every slice with "shared" and lines of
    all slices together otherwise. Volume, budget and the keys of all slices derive from one 64-bit key;
    ``reset(options={"episodes": [{"sample": 3, "budget": 12, "key": 42}]})`` replays an episode.

    ## Episode End
    Terminated when the budget is used up or nothing is left to measure. Never truncated.

    ## Information
    ``action_mask``, ``sample``, ``key``, ``budget``, ``lines`` (in the unit of the budget, the initial ones included),
    ``measurements``, ``time``, ``quality``, ``dice`` (hard Dice of the volume per foreground class, NaN where absent;
    of a pair the mean), ``absent_area`` (voxels predicted for absent classes), ``illegal_actions``, ``reward_parts``;
    ``depth``, ``lines_per_slice`` (Z,), with "sequential" ``slice`` (the current slot); of pairs ``ejection_fraction``
    (left ventricle, per cent, predicted) and ``true_ejection_fraction`` (NaN where nothing is found at end-diastole).

    ## Arguments
    The fields of :class:`seggym.envs.kspace.volumes.settings.VolumeSettings`, and ``render_mode="rgb_array"``.

    ## Example
    >>> import gymnasium as gym, seggym
    >>> env = gym.make("KSpaceSeg3D-Phantom-v0", slices="allocate", budget=40)
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(info["action_mask"].argmax())

    ## Version History
    * v0: initial version.
    """

    _batch_type = KSpaceVolumeVectorEnv
