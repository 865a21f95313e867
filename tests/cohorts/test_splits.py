"""Splits and folds: sizes, stratification, determinism and the checks of a user's file."""

import json
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seggym.cohorts.splits import (
    Split,
    cross_validation,
    largest_remainder,
    load_split,
    make_folds,
    make_split,
    save_split,
)
from seggym.errors import SeggymError

GROUPS = {f"patient{index:03d}": group for index, group in enumerate(6 * ["DCM", "HCM", "MINF", "NOR", "RV"])}

cohorts = st.lists(st.sampled_from("abcde"), min_size=3, max_size=60).map(
    lambda groups: {f"p{index}": group for index, group in enumerate(groups)}
)
seeds = st.integers(0, 2**32 - 1)


def assert_proportional(groups, sets):
    """Every group has in every set its exact share, rounded up or down."""
    total = Counter(groups.values())
    for chosen in sets:
        counts = Counter(groups[patient] for patient in chosen)
        for group, size in total.items():
            share = size * len(chosen) / len(groups)
            assert math.floor(share) <= counts[group] <= math.ceil(share)


def test_thirty_patients_give_the_stated_sizes():
    split = make_split(GROUPS)
    assert (len(split.train), len(split.val), len(split.test)) == (20, 4, 6)
    assert Counter(GROUPS[patient] for patient in split.train) == dict.fromkeys(("DCM", "HCM", "MINF", "NOR", "RV"), 4)


@given(cohorts, seeds)
@settings(max_examples=60, deadline=None)
def test_a_split_partitions_in_proportion_and_leaves_no_role_empty(groups, seed):
    split = make_split(groups, seed=seed)
    roles = (split.train, split.val, split.test)
    assert sorted(patient for role in roles for patient in role) == sorted(groups)
    assert all(roles)
    assert_proportional(groups, roles)
    assert split == make_split(dict(reversed(groups.items())), seed=seed)


@given(cohorts, seeds, st.data())
@settings(max_examples=60, deadline=None)
def test_folds_partition_in_proportion(groups, seed, data):
    k = data.draw(st.integers(2, len(groups)))
    folds = make_folds(groups, groups, k, seed)
    assert sorted(patient for fold in folds for patient in fold) == sorted(groups)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert_proportional(groups, folds)
    assert folds == make_folds(sorted(groups, reverse=True), groups, k, seed)


@given(st.integers(0, 500), st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_largest_remainder_keeps_the_total_and_the_quota(total, weights):
    fractions = [weight / sum(weights) for weight in weights]
    sizes = largest_remainder(total, fractions)
    assert sum(sizes) == total
    assert all(abs(size - total * fraction) < 1 for size, fraction in zip(sizes, fractions, strict=True))


def test_cross_validation_tests_every_patient_once():
    splits = [cross_validation(GROUPS, 5, fold, seed=3) for fold in range(5)]
    assert sorted(patient for split in splits for patient in split.test) == sorted(GROUPS)
    for fold, split in enumerate(splits):
        assert (split.fold, split.seed) == (fold, 3)
        assert sorted(split.train + split.val + split.test) == sorted(GROUPS)
        assert len(split.val) == 4


def test_seeds_differ_and_a_fresh_process_agrees():
    assert make_split(GROUPS, seed=0) != make_split(GROUPS, seed=1)
    assert make_split({f"p{i}": str(i) for i in range(9)}, seed=0) != make_split(
        {f"p{i}": str(i) for i in range(9)}, seed=1
    )
    code = f"from seggym.cohorts.splits import make_split; print(make_split({GROUPS!r}, seed=5).test)"
    fresh = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert fresh.stdout.strip() == str(make_split(GROUPS, seed=5).test)


def test_few_patients_and_a_role_that_is_not_wanted():
    assert make_split({"p": "a"}).train == ("p",)
    assert [len(getattr(make_split(dict.fromkeys("pqr", "a")), role)) for role in ("train", "val", "test")] == [1, 1, 1]
    assert make_split(GROUPS, (0.8, 0.2, 0.0)).test == ()


def test_a_saved_split_reads_back(tmp_path):
    split = cross_validation(GROUPS, 3, 1, seed=2)
    assert load_split(save_split(split, tmp_path / "split.json"), GROUPS) == split


def test_a_split_made_by_hand_may_leave_patients_out(tmp_path):
    path = tmp_path / "split.json"
    path.write_text('{"train": ["patient001"], "val": [], "test": ["patient000"], "comment": "mine"}')
    assert load_split(path, GROUPS) == Split(("patient001",), (), ("patient000",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"train": ["patient001"], "val": ["patient001"], "test": []}, "patient001 in train and again in val"),
        ({"train": ["patient001", "patient001"], "val": [], "test": []}, "patient001 in train and again in train"),
        ({"train": ["patient777"], "val": [], "test": []}, "names patient777, which the cohort does not have"),
        ({"train": ["patient001"], "test": []}, "is not of the form"),
        ({"train": [1], "val": [], "test": []}, "is not of the form"),
        (["patient001"], "is not of the form"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, content, sentence):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SeggymError, match=sentence):
        load_split(path, GROUPS)


@pytest.mark.parametrize(
    "call",
    [
        lambda: make_split(GROUPS, (0.5, 0.2, 0.2)),
        lambda: make_split(GROUPS, (1.2, -0.1, -0.1)),
        lambda: make_folds(GROUPS, GROUPS, 31),
        lambda: make_folds(GROUPS, GROUPS, 1),
        lambda: cross_validation(GROUPS, 5, 5),
        lambda: cross_validation(GROUPS, 5, 0, val_fraction=1.0),
    ],
)
def test_impossible_requests_are_refused(call):
    with pytest.raises(SeggymError, match="expected"):
        call()
