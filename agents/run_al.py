"""Active learning, in rounds: ``python agents/run_al.py experiment=acdc_weak strategy=coreclr seed=0``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from seggym.agents.al.translation import translated
from seggym.configs.checking import plain, require_types
from seggym.errors import SeggymError, one_sentence
from seggym.files import write_atomic

_TYPES = {"run_dir": str, "name": str, "seed": int, "threads": int, "device": str}
_PRESETS = Path(__file__).parent.parent / "configs" / "selection"
_GROUPS = ("experiment", "strategy", "model")
# Groups whose keys are checked by us rather than by Hydra, which knows no nearest names.
_CHECKED = ("data_geometry.", "model_uncertainty.", "model.", "policy.", "data.")


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs.selection", config_name="run_al")
@one_sentence
def run(config: DictConfig) -> None:
    """Run, or go on with, what ``config`` describes."""
    values = plain(config)
    require_types({name: values[name] for name in _TYPES}, _TYPES)
    # Imported here so that neither --help nor a mistyped name waits for torch.
    from seggym.agents.al import loop
    from seggym.agents.al.report import write_report
    from seggym.agents.al.settings import loop_settings

    settings = loop_settings(values)
    folder = Path(settings.run_dir)
    try:
        loop.run(settings, say=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(f"Interrupted; the same command goes on with what {folder} holds.")
        sys.exit(130)
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())
    print(f"Run folder: {folder}; report: {write_report([folder], folder)}")


@one_sentence
def arguments(given: Sequence[str]) -> list[str]:
    """The command line with files of other programs translated; a mistyped preset is told with the nearest ones."""
    found, notes = translated(given)
    for group in _GROUPS:
        known = [path.stem for path in (_PRESETS / group).glob("*.yaml")]
        for argument in found:
            key, _, value = argument.partition("=")
            for name in value.split(",") if key == group else []:
                if name not in known:
                    from seggym.agents.strategies.naming import nearest  # loads torch

                    raise SeggymError(f"{group}={name} is unknown; {nearest(name, known)}")
    for note in notes:
        print(note, flush=True)
    return [f"++{argument}" if argument.startswith(_CHECKED) else argument for argument in found]


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:])
    run()
