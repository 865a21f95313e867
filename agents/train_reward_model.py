"""Stage 1: train the networks that score segmentations inside the k-space environments.

``bash train_reward_model.sh cohort=acdc reward_model=unext datadir=/data/acdc``
"""

from dataclasses import replace
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from seggym.cohorts.cohort import open_cohort, seggym_home
from seggym.cohorts.splits import save_split, split_cohort
from seggym.configs.checking import build, plain, require_complete, require_types
from seggym.errors import SeggymError, one_sentence
from seggym.files import write_atomic
from seggym.kspace.acquisition import Acquisition
from seggym.reward_models.checkpoints import open_reward_model, require_labels
from seggym.reward_models.fitting import Plan, fit_reward_model, member_names
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.training import Recipe, start_distributed


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="train_reward_model")
@one_sentence
def main(config: DictConfig) -> None:
    """Train all networks of the reward model and print how well they segment held-out patients."""
    require_complete(config)
    types = {"threads": int, "seed": int, "folds": int}
    require_types({key: config[key] for key in types}, types)
    torch.set_num_threads(config.threads)
    start_distributed()
    cohort = open_cohort(config.cohort.name, config.datadir, **config.cohort.options)
    reconstructs = config.task == "reconstruction"
    if not reconstructs:
        require_labels(cohort, "cohort to one with labels, or task=reconstruction")
    split = split_cohort(cohort, config.cohort.split)
    acquisition = build(Acquisition, config.cohort.acquisition, "cohort.acquisition.")
    place = seggym_home() if config.publish else Path("runs")
    name = f"{config.name}-{config.reward_model.architecture}" if reconstructs else config.name
    folder = Path(config.output).expanduser() if config.output else place / "reward_models" / name
    images = config.reconstruction if isinstance(config.reconstruction, str) else plain(config)["reconstruction"]
    main_recipe = recipe(config, config.reward_model)
    plan = (
        Plan(main_recipe, None, 0, config.task, images)
        if reconstructs
        else Plan(main_recipe, _independent(config), config.folds, config.task, images)
    )
    members = list(config.members) if config.members else None
    fit_reward_model(folder, cohort, split, acquisition, plan, resolve_device(config.device), members)
    # Written last: a call that is refused must not describe the networks of an earlier one.
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())
    save_split(split, folder / "split.json")
    missing = [name for name in member_names(plan) if not (folder / name / "model.json").exists()]
    if missing:
        print(f"still to train before {folder} is a reward model: {', '.join(missing)}")
        return
    print(reconstruction_summary(folder) if reconstructs else summary(folder))


def recipe(config: DictConfig, network: DictConfig) -> Recipe:
    """The training recipe of ``network``: architecture, options, and what it changes in the shared hyperparameters."""
    options = OmegaConf.to_container(network.options, resolve=True)
    assert isinstance(options, dict)
    shared = build(Recipe, config.training, "training.")
    if network.get("training"):
        build(Recipe, network.training, "independent.training.")  # names its own keys if they are wrong
        shared = build(Recipe, {**config.training, **network.training}, "training.")
    return replace(
        shared, architecture=network.architecture, options={str(k): v for k, v in options.items()}, seed=config.seed
    )


def _independent(config: DictConfig) -> Recipe | None:
    if config.independent is None:
        return None
    if config.independent.architecture == config.reward_model.architecture:
        raise SeggymError(
            f"independent.architecture={config.independent.architecture} is the reward model's own: an independent net "
            "must differ; choose another of unet, unetpp, unext"
        )
    return recipe(config, config.independent)


def summary(folder: Path) -> str:
    """Table of Dice on held-out patients, one row per network and acceleration."""
    rows = [f"reward model {folder} (Dice on test patients, k-space sampled centre-out)"]
    rows.append(f"{'network':14}{'acceleration':>13}{'per volume':>26}{'per slice':>26}")
    for name, card in open_reward_model(folder).cards.items():
        for acceleration, scores in card.metrics.get("test", {}).items():
            cells = [_cell(*scores[level]["dice"]) for level in ("volume", "slice")]
            rows.append(f"{name + ' ' + card.architecture:14}{acceleration:>13}{cells[0]:>26}{cells[1]:>26}")
    return "\n".join(rows)


def reconstruction_summary(folder: Path) -> str:
    """Table of SSIM on held-out patients, one row per acceleration."""
    rows = [f"reconstruction {folder} (SSIM on test patients, simulated k-space measured centre-out)"]
    rows.append(f"{'acceleration':14}{'network':>26}{'zero-filled':>26}")
    for acceleration, scores in open_reward_model(folder).cards["full"].metrics.get("test", {}).items():
        rows.append(f"{acceleration:14}{_cell(*scores['ssim']):>26}{_cell(*scores['zero_filled']):>26}")
    return "\n".join(rows)


def _cell(mean: float | None, low: float | None, high: float | None) -> str:
    """Mean and interval; JSON has None where there is no number, such as the interval of a single patient."""
    shown = ["-" if value is None else f"{value:.3f}" for value in (mean, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


if __name__ == "__main__":
    main()
