"""Stage 3: train a sampling policy. ``bash train_asmr.sh env=kspace_phantom agent=maskable_ppo seed=0``."""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from seggym.configs.checking import build, plain
from seggym.errors import one_sentence
from seggym.files import write_atomic

# Keys of the command line and the arguments of the environment that they set.
_ENV_ARGUMENTS = {
    "datadir": "data_root",
    "reward_model_dir": "reward_model",
    "train_sampler_filename": "train_sampler_filename",
    "split": "split",
    "precision": "precision",
}


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="train_asmr")
@one_sentence
def main(config: DictConfig) -> None:
    """Train, or resume, the run that ``config`` describes."""
    values = plain(config)
    # Imported here so that neither --help nor a wrong configuration waits for torch.
    from seggym.agents.training import TrainSettings, check_run_folder, train

    run_dir = Path(values["run_dir"])
    agent = {
        key: values["agent"][key]
        for key in ("algorithm", "hyperparameters", "network", "prior_strength", "group_size", "evolution", "augment")
        if key in values["agent"]
    }
    own = {key: values[key] for key in TrainSettings.__dataclass_fields__ if key in values}
    settings = build(TrainSettings, {"env_id": values["env"]["id"], "env_kwargs": env_kwargs(values), **agent, **own})
    check_run_folder(settings)
    if not settings.resume:
        write_atomic(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())
    try:
        train(settings)
    except KeyboardInterrupt:
        print(f"Interrupted; a checkpoint in {run_dir / 'last'}, if there is one yet, can be resumed with resume=true.")
        sys.exit(130)
    print(f"Run folder: {run_dir}")


def env_kwargs(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the training environment: those of ``env``, then the keys of the command line that are set."""
    from seggym.agents.algorithms.masked_dqn import MASK
    from seggym.agents.algorithms.networks import find_algorithm

    kwargs = dict(values["env"]["kwargs"] or {})
    kwargs |= {name: values[key] for key, name in _ENV_ARGUMENTS.items() if values[key] is not None}
    if find_algorithm(values["agent"]["algorithm"]).observes_mask and MASK not in kwargs["observation"]:
        kwargs["observation"] = [*kwargs["observation"], MASK]
    return kwargs


if __name__ == "__main__":
    main()
