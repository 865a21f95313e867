"""Blind twins see other patients' measurements at the same step, and keep what they need to act legally."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_bench import make_bench

from seggym.agents.blind import OWN, BlindEngine, BlindTwin, partners, patient_numbers, swap
from seggym.agents.evaluation import evaluate_policies
from seggym.agents.models import make_batch
from seggym.agents.policies import CallablePolicy, FixedOrder
from seggym.agents.training import train
from seggym.envs.kspace.engine import Episodes
from seggym.errors import SeggymError
from seggym.kspace import orders

SEEN = ("image", "energy", "acquired", "budget", "action_mask", "probability_grid")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=20))
def test_a_partner_is_another_patient_at_the_nearest_step(scans):
    patients, steps = (torch.tensor(column) for column in zip(*scans, strict=True))
    partner, found = partners(patients, steps)
    for scan, (patient, step) in enumerate(scans):
        others = [(abs(s - step), (j - scan) % len(scans), j) for j, (p, s) in enumerate(scans) if p != patient]
        assert bool(found[scan]) == bool(others)
        if others:
            assert int(partner[scan]) == min(others)[2]


def begun(observation=SEEN, count=8):
    engine = make_bench(observation=observation).tuning_engine("test", count, 3, observation)
    every = torch.arange(count)
    engine.begin(every, Episodes(every, torch.full((count,), 3), 11 + every))
    return engine


def test_own_parts_stay_and_all_others_are_somebody_elses():
    engine = begun()
    engine.step(torch.tensor([10, 11, 12, 13, 18, 19, 20, 21]))
    own, seen = engine.observe(), BlindEngine(engine).observe()
    numbers = patient_numbers(engine.stack)[engine.samples]
    assert set(seen) == set(SEEN)
    for part, value in seen.items():
        if part in OWN:
            assert torch.equal(value, own[part])
            continue
        for scan in range(8):
            givers = [j for j in range(8) if torch.equal(value[scan], own[part][j])]
            assert givers
            assert all(numbers[j] != numbers[scan] for j in givers), part


def test_a_twin_learns_nothing_of_its_own_patient():
    """Whatever patient 0 looks like, its twin sees the same."""
    seen = []
    for scale in (1.0, 3.0):
        engine = begun()
        mine = patient_numbers(engine.stack) == 0
        engine.stack.images[mine] = engine.stack.images[mine].roll(5, 1) * scale
        every = torch.arange(8)
        engine.begin(every, Episodes(every, torch.full((8,), 3), 11 + every))
        seen.append(
            ({part: v[mine] for part, v in BlindEngine(engine).observe().items()}, engine.observe()["energy"][mine])
        )
    for part in SEEN:
        assert torch.equal(seen[0][0][part], seen[1][0][part]), part
    assert not torch.equal(seen[0][1], seen[1][1])


def test_alone_a_twin_sees_zeros():
    seen = swap(
        {"image": torch.ones(2, 1, 2, 2), "acquired": torch.ones(2, 4)}, torch.tensor([4, 4]), torch.tensor([1, 1])
    )
    assert not seen["image"].any()
    assert seen["acquired"].all()


def brightest(observation, action_mask):
    """Follows what is seen: a line that depends on the image."""
    wanted = observation["image"].reshape(len(action_mask), -1).astype(int).sum(1) % action_mask.shape[1]
    distance = np.abs(np.arange(action_mask.shape[1]) - wanted[:, None])
    return np.where(action_mask, distance, 10**6).argmin(1)


def test_in_an_evaluation_a_twin_acts_legally_and_otherwise():
    bench = make_bench(observation=("image", "acquired", "budget"))
    policy = CallablePolicy(brightest)
    result = evaluate_policies(bench, [policy, BlindTwin(policy)], [1, 3], protocol="anytime", progress=False)
    seeing, blind = (p.runs[0] for p in result.policies if p.kind == "policy")
    assert int(blind["illegal"]) == 0
    assert not np.array_equal(seeing["lines"], blind["lines"])


def test_what_observes_nothing_has_no_twin():
    with pytest.raises(SeggymError, match="centre_out observes nothing"):
        BlindTwin(FixedOrder("centre_out", orders.centre_out(32)))


def test_one_patient_is_not_enough_for_an_evaluation():
    engine = begun(("image", "acquired", "budget"), 4)  # the first four slices are those of one patient
    with pytest.raises(SeggymError, match="two patients"):
        BlindTwin(CallablePolicy(brightest)).begin(engine)


def test_the_vector_environment_of_a_blind_run_shows_swapped_observations(tiny_env):
    batch = make_batch(tiny_env["id"], {**tiny_env["kwargs"], "budget": 3}, 6)
    inner = batch.engine
    batch.engine = BlindEngine(inner)
    observation, _ = batch.reset(seed=1)
    for _ in range(3):
        own = inner.observe()
        expected = swap(own, patient_numbers(inner.stack)[inner.samples], inner.steps)
        np.testing.assert_array_equal(observation["image"], expected["image"].numpy())
        np.testing.assert_array_equal(observation["acquired"], own["acquired"].numpy())
        masks = batch.action_masks()
        observation, *_ = batch.step(masks.argmax(1))


def test_a_blind_run_trains_otherwise_and_resumes(tiny_run):
    blind = replace(tiny_run, blind=True)
    folder = train(blind)
    assert (folder / "best" / "policy.safetensors").is_file()
    with pytest.raises(SeggymError, match="blind=False"):
        train(replace(tiny_run, resume=True))
    train(replace(blind, resume=True, total_steps=96))
