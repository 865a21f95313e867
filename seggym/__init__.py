"""seggym: Gymnasium environments for the sequential decisions behind a medical image segmentation.

Importing it registers the environments and nothing else: neither torch nor MONAI is loaded until one is made.
"""

from typing import Any

__version__ = "0.1.0"

from seggym.envs import register_envs
from seggym.errors import SeggymError

register_envs()

__all__ = ["SeggymError", "__version__", "evaluate", "load_policy"]


def __getattr__(name: str) -> Any:
    # `evaluate` and `load_policy` need torch and SB3, which cost seconds: they are imported when first asked for.
    if name == "evaluate":
        from seggym.agents.evaluation import evaluate

        return evaluate
    if name == "load_policy":
        from seggym.agents.snapshots import load_policy

        return load_policy
    raise AttributeError(f"module 'seggym' has no attribute {name!r}")
