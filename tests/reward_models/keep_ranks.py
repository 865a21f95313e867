"""Run by torchrun in test_fitting.py: ``keep_ranks.py FOLDER arguments of train_reward_model.py``.

Trains as the command does, and leaves in FOLDER what every process ended with, which the command itself does not keep.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from seggym.reward_models import training

folder = Path(sys.argv.pop(1))
result = training._Trainer.result


def keep(trainer: Any) -> Any:
    """Write the network and its running average before the best weights replace them."""
    state = {"network": trainer.network.state_dict(), "averaged": trainer.averaged.module.state_dict()}
    torch.save(state, folder / f"rank{trainer.rank}.pt")
    return result(trainer)


training._Trainer.result = keep  # type: ignore[method-assign]
runpy.run_path("agents/train_reward_model.py", run_name="__main__")
