"""Stage 3 on many machines: ``python agents/train_rllib.py env=kspace_phantom num_workers=2`` (docs/scaling.md)."""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from seggym.agents.train_asmr import env_kwargs
from seggym.configs.checking import build, plain, require_types
from seggym.errors import SeggymError, one_sentence
from seggym.files import write_atomic

_MASK = "action_mask"


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="train_rllib")
@one_sentence
def main(config: DictConfig) -> None:
    """Train the run that ``config`` describes."""
    values = plain(config)
    types = {"num_workers": int, "ray_address": str | None}
    require_types({key: values[key] for key in types}, types)
    # Imported here so that neither --help nor a wrong configuration waits for torch and Ray.
    from seggym.agents.models import TrainSettings
    from seggym.agents.training import check_run_folder

    try:
        from seggym.agents.rllib.training import train_rllib
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "seggym":
            raise
        raise SeggymError(
            f"Ray RLlib cannot be imported ({error}): `bash tests/run.sh --ray` makes .venv-ray with it, then run "
            ".venv-ray/bin/python agents/train_rllib.py; train_asmr.sh needs no Ray"
        ) from None

    run_dir = Path(values["run_dir"])
    agent = {
        key: values["agent"][key] for key in ("algorithm", "hyperparameters", "network", "prior_strength", "group_size")
    }
    own = {key: values[key] for key in TrainSettings.__dataclass_fields__ if key in values}
    kwargs = env_kwargs(values)
    kwargs["observation"] = [*dict.fromkeys([*kwargs["observation"], _MASK])]
    settings = build(TrainSettings, {"env_id": values["env"]["id"], "env_kwargs": kwargs, **agent, **own})
    check_run_folder(settings)
    write_atomic(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())
    train_rllib(settings, values["num_workers"], values["ray_address"])
    print(f"Run folder: {run_dir}")


if __name__ == "__main__":
    main()
