"""Stage 2: sampling weights of the training slices, for ``train_sampler_filename`` of stage 3.

``bash generate_sampler.sh cohort=acdc datadir=/data/acdc output=samplers/acdc.npz``
"""

from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig

from seggym.cohorts.cohort import open_cohort, seggym_home
from seggym.cohorts.splits import split_cohort
from seggym.configs.checking import build, require_complete, require_types
from seggym.envs.kspace.sampler import combination_weights, save_weights
from seggym.errors import one_sentence
from seggym.kspace.acquisition import Acquisition
from seggym.reward_models.slices import prepared_slices


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="generate_sampler")
@one_sentence
def main(config: DictConfig) -> None:
    """Weigh every training slice and say what that does to the rarest combination of labels."""
    require_complete(config)
    cohort = open_cohort(config.cohort.name, config.datadir, **config.cohort.options)
    require_types({"cap": config.cap}, {"cap": float})
    acquisition = build(Acquisition, config.cohort.acquisition, "cohort.acquisition.")
    stack = prepared_slices(cohort, split_cohort(cohort, config.cohort.split).train, acquisition)
    weights = combination_weights(stack, config.cap)
    default = seggym_home() / "samplers" / f"{cohort.name}.npz"
    path = save_weights(Path(config.output).expanduser() if config.output else default, weights, cohort, stack)
    levels, counts = np.unique(weights.round(6), return_counts=True)
    print(f"{path}: {len(stack)} training slices")
    for level, count in zip(levels, counts, strict=True):
        print(f"  {count:5d} slices are drawn {level:.2f} times as often as in a uniform draw")


if __name__ == "__main__":
    main()
