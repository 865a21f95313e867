"""Settings and fixtures that all tests share."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def acdc_root() -> Path:
    """The real ACDC data; tests that need them are skipped where they are absent."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data" / "acdc"
    root = Path(os.environ.get("SEGGYM_ACDC_ROOT") or default)
    if not root.is_dir():
        pytest.skip(f"no ACDC data at {root}: set SEGGYM_ACDC_ROOT")
    return root
