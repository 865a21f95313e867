"""An encoder for active learning, trained on a cohort's images without labels.

``python agents/train_encoder.py cohort=acdc name=acdc-encoder`` publishes it; then ``encoder="acdc-encoder"``.
"""

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from seggym.cohorts.cohort import open_cohort, seggym_home
from seggym.cohorts.splits import selection_roles, split_cohort
from seggym.configs.checking import build, require_complete, require_types
from seggym.errors import SeggymError, one_sentence
from seggym.reward_models.encoder_store import fit_encoder
from seggym.reward_models.encoders import EncoderRecipe
from seggym.reward_models.labelled_slices import prepared


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="train_encoder")
@one_sentence
def main(config: DictConfig) -> None:
    """Train on the patients of the roles and publish."""
    require_complete(config)
    types = {"name": str, "output": str | None, "size": int, "spacing": float | None, "split_seed": int}
    require_types({name: config[name] for name in types}, types)
    cohort = open_cohort(config.cohort.name, config.datadir, **config.cohort.options)
    wanted = list(config.roles)
    if not wanted or not set(wanted) <= {"state", "pool", "all"}:
        raise SeggymError(f"roles={wanted} must hold some of state and pool, or all")
    if "all" in wanted:
        patients = cohort.patients
    else:
        split = split_cohort(cohort, config.cohort.split)
        roles = selection_roles(split, cohort.groups, shares=list(config.shares), seed=config.split_seed)
        patients = [patient for role in wanted for patient in getattr(roles, role)]
    slices = prepared(cohort, patients, config.size, config.spacing)
    recipe = build(EncoderRecipe, config.recipe, "recipe.")
    folder = Path(config.output).expanduser() if config.output else seggym_home() / "reward_models" / config.name
    start = time.perf_counter()
    fit_encoder(folder, slices.images, cohort, patients, config.spacing, recipe)
    print(f"{folder}: {len(slices)} slices of {len(patients)} patients, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
