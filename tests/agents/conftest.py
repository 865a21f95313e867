"""A small environment for the tests of agents."""

from typing import Any

import pytest

LINES = 32


@pytest.fixture
def tiny_env() -> dict[str, Any]:
    """Id and keyword arguments of scans of 32 lines on six phantoms; the reward needs no network."""
    return {
        "id": "KSpaceRecon-Phantom-v0",
        "kwargs": {
            "cohort_options": {"patients": 6, "test_patients": 1},
            "acquisition": {"matrix": LINES, "crop": 32},
            "budget": [2, 5],
            "observation": ["image", "acquired", "budget", "action_mask"],
        },
    }
