"""Settings and fixtures that all tests share."""

import os
from collections.abc import Iterator
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


@pytest.fixture(scope="session", autouse=True)
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this test session keeps its phantoms, so that each set is generated once; child processes inherit it."""
    root = tmp_path_factory.mktemp("phantoms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGGYM_PHANTOM_ROOT", str(root))
        yield root


@pytest.fixture(scope="session", autouse=True)
def seggym_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this test session publishes and caches; child processes inherit it, and the user's own stays as it is."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGGYM_HOME", str(home))
        yield home
