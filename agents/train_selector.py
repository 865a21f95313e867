"""Train a selector of samples to annotate: ``python agents/train_selector.py env=alselect_phantom seed=0``."""

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from seggym.agents.train_asmr import run, with_mask
from seggym.configs.checking import plain
from seggym.errors import one_sentence

# Keys of the command line and the arguments of the environment that they set.
_ENV_ARGUMENTS = {"datadir": "data_root", "split": "split"}


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="train_selector")
@one_sentence
def main(config: DictConfig) -> None:
    """Train, or resume, the run that ``config`` describes."""
    values = plain(config)
    run(values, env_kwargs(values), OmegaConf.to_yaml(config, resolve=True))


def env_kwargs(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the training environment: those of ``env``, then the keys of the command line that are set."""
    kwargs = dict(values["env"]["kwargs"] or {})
    kwargs |= {name: values[key] for key, name in _ENV_ARGUMENTS.items() if values[key] is not None}
    kwargs |= {"split_seed": values["split_seeds"]} if values["split_seeds"] is not None else {}
    return with_mask(kwargs, values["agent"]["algorithm"])


if __name__ == "__main__":
    main()
