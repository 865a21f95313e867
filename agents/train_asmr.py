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
    run(values, env_kwargs(values), OmegaConf.to_yaml(config, resolve=True))


def run(values: dict[str, Any], kwargs: dict[str, Any], text: str) -> None:
    """Train in the environment of ``values`` with ``kwargs``; ``text`` is what the run folder keeps of both."""
    # Imported here so that neither --help nor a wrong configuration waits for torch.
    from seggym.agents.models import TrainSettings
    from seggym.agents.training import check_run_folder, train

    run_dir = Path(values["run_dir"])
    agent = {
        key: values["agent"][key]
        for key in (
            *("algorithm", "hyperparameters", "network", "prior_strength", "group_size"),
            *("evolution", "lookahead", "augment"),
        )
        if key in values["agent"]
    }
    own = {key: values[key] for key in TrainSettings.__dataclass_fields__ if key in values}
    settings = build(TrainSettings, {"env_id": values["env"]["id"], "env_kwargs": kwargs, **agent, **own})
    check_run_folder(settings)
    if not settings.resume:
        write_atomic(run_dir / "config.yaml", text.encode())
    try:
        train(settings)
    except KeyboardInterrupt:
        print(f"Interrupted; a checkpoint in {run_dir / 'last'}, if there is one yet, can be resumed with resume=true.")
        sys.exit(130)
    print(f"Run folder: {run_dir}")


def env_kwargs(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the training environment: those of ``env``, then the keys of the command line that are set."""
    kwargs = dict(values["env"]["kwargs"] or {})
    kwargs |= {name: values[key] for key, name in _ENV_ARGUMENTS.items() if values[key] is not None}
    return with_mask(kwargs, values["agent"]["algorithm"])


def with_mask(kwargs: dict[str, Any], algorithm: Any) -> dict[str, Any]:
    """``kwargs`` of an environment, whose observation holds the mask where ``algorithm`` reads it there."""
    from seggym.agents.algorithms.masked_dqn import MASK
    from seggym.agents.algorithms.networks import find_algorithm

    if find_algorithm(algorithm).observes_mask and MASK not in kwargs["observation"]:
        return {**kwargs, "observation": [*kwargs["observation"], MASK]}
    return kwargs


if __name__ == "__main__":
    main()
