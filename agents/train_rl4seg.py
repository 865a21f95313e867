"""RL4Seg, whole or by stage: ``python agents/train_rl4seg.py experiment=phantom seed=0 [stage=pretrain|...]``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from seggym.configs.checking import plain, require_types
from seggym.errors import one_sentence
from seggym.files import write_atomic

_TYPES = {"out": str, "name": str, "stage": str, "iteration": int | None, "seed": int, "threads": int, "device": str}
# Groups whose keys are checked by us: a preset names only those that differ from the defaults.
_CHECKED = ("domains.", "prior.", "pairs.", "reward.", "ppo.", "augmentation.", "pretrain.", "loop.", "choice.")


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs.adaptation", config_name="train_rl4seg")
@one_sentence
def run(config: DictConfig) -> None:
    """Run, or go on with, what ``config`` describes."""
    values = plain(config)
    require_types({name: values[name] for name in _TYPES}, _TYPES)
    # Imported here so that neither --help nor a mistyped name waits for torch.
    from seggym.agents.rl4seg import loop
    from seggym.agents.rl4seg.report import write_report
    from seggym.agents.rl4seg.results import EVALUATION
    from seggym.agents.rl4seg.settings import run_settings, stage_of
    from seggym.agents.rl4seg.severity import find_severity

    settings, stage = run_settings(values), stage_of(values["stage"])
    folder = Path(settings.out)
    try:
        if stage == "severity":
            find_severity(settings, say=_say)
            return
        loop.run(settings, stage, values["iteration"], say=_say)
    except KeyboardInterrupt:
        print(f"Interrupted; the same command goes on with what {folder} holds.")
        sys.exit(130)
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())
    evaluated = stage in ("all", "evaluate") and (folder / EVALUATION).is_file()
    print(f"Run folder: {folder}" + (f"; report: {write_report([folder], folder)}" if evaluated else ""))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.argv[1:] = [f"++{argument}" if argument.startswith(_CHECKED) else argument for argument in sys.argv[1:]]
    run()
