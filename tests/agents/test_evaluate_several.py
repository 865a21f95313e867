"""``seggym.evaluate`` in one environment and in several, with its controls."""

import gymnasium
import numpy as np
import pytest

import seggym
from seggym.agents.evaluation import ResultTables
from seggym.agents.results import EvaluationResult
from seggym.errors import SeggymError

ENVIRONMENT = {
    "cohort_options": {"patients": 7, "test_patients": 2},
    "acquisition": {"matrix": 32, "crop": 32},
    "observation": ["image", "acquired", "budget"],
}


@pytest.fixture
def twice():
    """A second id of the same environment."""
    spec = gymnasium.spec("KSpaceRecon-Phantom-v0")
    name = "KSpaceRecon-PhantomAgain-v0"
    gymnasium.register(name, spec.entry_point, vector_entry_point=spec.vector_entry_point, kwargs=spec.kwargs)
    yield ["KSpaceRecon-Phantom-v0", name]
    del gymnasium.registry[name]


def image_reader(observation, action_mask):
    """Depends on what is seen, so that somebody else's image changes it."""
    wanted = observation["image"].reshape(len(action_mask), -1).astype(int).sum(1) % action_mask.shape[1]
    return np.where(action_mask, np.abs(np.arange(action_mask.shape[1]) - wanted[:, None]), 10**6).argmin(1)


def test_several_ids_give_tables_with_the_gains_over_both_controls(twice):
    results = seggym.evaluate(image_reader, twice, eval_range=[1, 3], progress=False, **ENVIRONMENT)
    assert isinstance(results, ResultTables)
    assert list(results) == twice
    for result in results.values():
        others = [contrast["other"] for contrast in result.contrasts]
        assert others == ["image_reader (swapped observation)", "best_fixed_order"]
        assert all(contrast["policy"] == "image_reader" for contrast in result.contrasts)
    text = results.table()
    assert text.count("gain in area") == 2
    assert all(name in text for name in (*twice, "swapped observation", "best_fixed_order"))
    first, second = (result.policies[0].values("image", "slice", "ssim") for result in results.values())
    np.testing.assert_array_equal(first, second)


def test_a_single_id_gives_one_result_and_controls_when_asked():
    plain = seggym.evaluate(image_reader, "KSpaceRecon-Phantom-v0", eval_range=[1, 2], progress=False, **ENVIRONMENT)
    assert isinstance(plain, EvaluationResult)
    assert [policy.name for policy in plain.policies] == ["image_reader", "full_kspace"]
    more = seggym.evaluate(
        image_reader, "KSpaceRecon-Phantom-v0", eval_range=[1, 2], controls=True, progress=False, **ENVIRONMENT
    )
    assert {"best_fixed_order", "image_reader (swapped observation)"} < {policy.name for policy in more.policies}
    np.testing.assert_array_equal(
        plain.policies[0].values("image", "slice", "ssim"), more.policies[0].values("image", "slice", "ssim")
    )


def test_a_function_needs_an_environment():
    with pytest.raises(SeggymError, match="env_id is missing"):
        seggym.evaluate(image_reader)
