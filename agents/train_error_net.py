"""A reward without labels for the k-space environments: a net that finds the errors of their reward model.

``python agents/train_error_net.py env=kspace_phantom +env.kwargs.cohort_options.seed=7 output=runs/scan_errors`` learns
from the labels of those patients; then ``lambda_error=1 error_net=runs/scan_errors`` in environments of all others.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from seggym.agents.bench import settings_of
from seggym.configs.checking import build, plain, require_complete, require_types
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import choose_patients, load_cohort, load_reconstruction, require_fit
from seggym.errors import SeggymError, one_sentence
from seggym.files import write_atomic
from seggym.reward_models.checkpoints import open_reward_model, require_labels
from seggym.reward_models.error_training import ErrorNetSettings, train_error_net
from seggym.reward_models.frozen import load_frozen, resolve_device
from seggym.reward_models.reward_dataset import RewardDataset, join_reward_datasets
from seggym.reward_models.scan_pairs import scan_reward_pairs
from seggym.reward_models.slices import prepared_slices


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="train_error_net")
@one_sentence
def main(config: DictConfig) -> None:
    """Scan, train, save, and say how well the net finds errors in patients of its own that it did not learn from."""
    require_complete(config)
    types = {"role": str, "scans": int, "seed": int, "threads": int, "output": str}
    require_types({key: config[key] for key in types}, types)
    torch.set_num_threads(config.threads)
    values = plain(config)
    given = {"data_root": config.datadir, "split": config.split, "reward_model": config.reward_model_dir}
    kwargs = {**values["env"]["kwargs"], **{key: value for key, value in given.items() if value is not None}}
    settings = replace(settings_of(config.env.id, kwargs), role=config.role)
    recipe = build(ErrorNetSettings, {**values["training"], "seed": config.seed}, "training.")
    pairs, cohort, fingerprint = pairs_of(settings, config.scans, config.seed)
    net = train_error_net(pairs, recipe)
    folder = Path(config.output).expanduser()
    net.save(folder, settings.scan.crop, cohort, fingerprint)
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())
    print(
        f"{folder}: {len(pairs)} pairs of {len(net.patients)} patients; pixels of a structure, true or drawn, in those "
        f"held out: AUROC of errors {net.metrics['auroc']:.3f}, ECE {net.metrics['ece']:.3f}, T {net.temperature:.2f}"
    )


def pairs_of(settings: KSpaceSettings, scans: int, seed: int) -> tuple[RewardDataset, str, str]:
    """Reward pairs of ``scans`` scans of the patients in the role of ``settings``, the cohort's name and fingerprint.

    Each patient is segmented by a network that never saw him, whose errors are those that it makes on others.
    """
    if settings.reward_model is None:
        raise SeggymError("env.kwargs.reward_model is missing: it is whose errors the net learns to find")
    cohort, split = load_cohort(settings)
    require_labels(cohort, "env to one of a cohort with labels")
    chosen = choose_patients(cohort, split, settings)
    model = open_reward_model(settings.reward_model)
    device = resolve_device(settings.device)
    drawn_by: dict[str, list[str]] = defaultdict(list)
    for patient in chosen:
        drawn_by[model.network_for(patient, cohort.name)].append(patient)
    parts = []
    for place, (name, patients) in enumerate(sorted(drawn_by.items())):
        require_fit(model, name, cohort, settings)
        parts.append(
            scan_reward_pairs(
                load_frozen(model.path(name), device, "fp32", max_batch=settings.micro_batch),
                prepared_slices(cohort, patients, settings.scan),
                settings.scan,
                cohort.class_names,
                scans=max(1, round(scans * len(patients) / len(chosen))),
                seed=int(np.random.SeedSequence([seed, place]).generate_state(1)[0]),
                reconstruction=load_reconstruction(settings, device),
            )
        )
    return join_reward_datasets(parts), cohort.name, cohort.fingerprint


if __name__ == "__main__":
    main()
