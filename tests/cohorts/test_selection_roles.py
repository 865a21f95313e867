"""Who is state, pool, reward, val and test in active learning."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seggym.cohorts.splits import make_split, selection_roles
from seggym.errors import SeggymError

GROUPS = {f"patient{index:03d}": "NOR" if index % 2 else "DCM" for index in range(40)}


@settings(deadline=None)  # the first draw imports SciPy
@given(role=st.sampled_from(["train", "val", "test", "all"]), seed=st.integers(0, 99), split=st.integers(0, 99))
def test_nobody_is_in_two_roles(role, seed, split):
    drawn = make_split(GROUPS, seed=split)
    roles = selection_roles(drawn, GROUPS, role, seed=seed)
    dealt = [*roles.state, *roles.pool, *roles.reward]
    everyone = [*dealt, *roles.val, *roles.test]
    assert len(everyone) == len(set(everyone))
    assert sorted(dealt) == sorted(GROUPS if role == "all" else getattr(drawn, role))
    assert roles.state
    assert roles.pool
    assert roles.reward
    if role == "train":
        assert (roles.val, roles.test) == (drawn.val, drawn.test)


def test_shares_are_kept():
    split = make_split(GROUPS, (0.75, 0.125, 0.125))
    roles = selection_roles(split, GROUPS, shares=(0.1, 0.6, 0.3))
    assert [len(part) for part in (roles.state, roles.pool, roles.reward)] == [3, 18, 9]
    assert selection_roles(split, GROUPS, shares=(0.1, 0.6, 0.3), seed=1).pool != roles.pool


def test_without_a_share_the_reward_patients_are_those_of_val():
    split = make_split(GROUPS)
    roles = selection_roles(split, GROUPS, shares=(0.0, 1.0, 0.0))
    assert (roles.state, roles.pool) == ((), split.train)
    assert (roles.reward, roles.val) == (split.val, ())


def test_too_few_patients_are_a_sentence():
    groups = {"a": "x", "b": "x", "c": "x", "d": "x"}
    with pytest.raises(SeggymError, match=r"role=test has 1 patients.*expected at least 3"):
        selection_roles(make_split(groups), groups, "test")
