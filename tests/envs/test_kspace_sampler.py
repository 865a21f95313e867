"""Sampling weights: hand-computed, capped, bound to the data, and used by the draw."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seggym.envs.kspace.sampler import combination_weights, load_weights, save_weights
from seggym.errors import SeggymError
from seggym.kspace.acquisition import Acquisition


@pytest.fixture
def stack(make_stack):
    """Six slices: four with class 1, one with classes 1 and 2, one empty."""
    stack = make_stack(Acquisition(matrix=24, crop=16))
    labels = torch.zeros_like(stack.labels[:6])
    labels[:5, 3:6, 3:6] = 1
    labels[4, 6:9, 6:9] = 2
    rows = {key: value[:6] for key, value in vars(stack).items() if isinstance(value, (torch.Tensor, tuple))}
    del rows["labels"]
    return replace(stack, labels=labels, **rows)


COHORT = SimpleNamespace(name="phantom", fingerprint="abc", root="somewhere")


def test_every_combination_has_the_same_share_up_to_the_cap(stack):
    weights = combination_weights(stack, cap=100)
    assert weights[:4].sum() == pytest.approx(weights[4]) == pytest.approx(weights[5])
    assert weights.mean() == pytest.approx(1)
    capped = combination_weights(stack, cap=2)
    assert capped.max() / capped.min() == pytest.approx(2)
    assert combination_weights(stack, cap=1) == pytest.approx(np.ones(6))
    with pytest.raises(SeggymError, match="cap"):
        combination_weights(stack, cap=0.5)


def test_round_trip_follows_the_names(stack, tmp_path):
    weights = combination_weights(stack, cap=3)
    path = save_weights(tmp_path / "sampler.npz", weights, COHORT, stack)
    assert load_weights(path, COHORT, stack).numpy() == pytest.approx(weights)
    turned = replace(stack, **{key: getattr(stack, key)[::-1] for key in ("patients", "volumes", "positions")})
    assert load_weights(path, COHORT, turned).numpy() == pytest.approx(weights[::-1])


@pytest.mark.parametrize("damage", ["fingerprint", "slices", "truncated", "missing", "text"])
def test_foreign_and_damaged_files_are_refused(stack, tmp_path, damage):
    path = save_weights(tmp_path / "sampler.npz", np.ones(6), COHORT, stack)
    cohort = COHORT
    if damage == "fingerprint":
        cohort = SimpleNamespace(**{**vars(COHORT), "fingerprint": "other"})
    elif damage == "slices":
        stack = replace(stack, positions=tuple(position + 100 for position in stack.positions))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text("weights")
    with pytest.raises(SeggymError, match=r"generate_sampler\.sh"):
        load_weights(path, cohort, stack)


def test_the_draw_follows_the_weights(make_engine):
    engine = make_engine()
    count = len(engine.stack)
    weights = torch.zeros(count)
    weights[2], weights[4] = 3.0, 1.0
    weighted = type(engine)(engine.stack, engine.settings, 2, networks=engine.networks, weights=weights)
    keys = torch.from_numpy(np.random.default_rng(0).integers(2**63, size=4000))
    drawn = torch.bincount(weighted.draw(keys).samples, minlength=count) / 4000
    assert drawn[2] == pytest.approx(0.75, abs=0.03)
    assert drawn[4] == pytest.approx(0.25, abs=0.03)
    assert drawn.sum() == pytest.approx(1)
