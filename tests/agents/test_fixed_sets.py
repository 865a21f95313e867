"""Fixed sets, static orders and the best order, against exhaustive search and direct runs."""

from itertools import combinations

import numpy as np
import pytest
import torch
from synthetic_bench import SCAN, make_bench

from seggym.agents import greedy
from seggym.agents.baselines import make_baselines
from seggym.agents.controls import RemeasureFirst, choose_best_order, control_policies
from seggym.agents.evaluation import evaluate_policies
from seggym.agents.fixed_sets import FixedSets, find_fixed_sets, fixed_order_areas, static_order
from seggym.agents.policies import CallablePolicy, FixedOrder
from seggym.agents.rollouts import RunPlan
from seggym.errors import SeggymError
from seggym.kspace import orders


def quality_of(bench, lines, slices=8):
    """Mean quality of the training slices with ``lines``, measured one after the other in a new engine."""
    engine = bench.tuning_engine("train", slices, max(len(lines), 1))
    greedy.begin_training_episodes(engine, max(len(lines), 1))
    for line in lines:
        engine.step(torch.full((engine.num_envs,), line))
    return float(engine.quality.double().mean())


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return make_bench().ground(4, cache=tmp_path_factory.mktemp("tuned"), progress=False, max_slices=8, window=5)


@pytest.fixture(scope="module")
def order(ground):
    return make_baselines(["population_greedy"], ground)[0].order


def test_sets_are_never_worse_than_greedy_on_the_tuning_slices(ground, order):
    bench = make_bench()
    sets = find_fixed_sets(ground, order, [1, 2, 3, 4])
    block = set(orders.initial_block(32, 3).tolist())
    first = [line for line in order.tolist() if line not in block]
    for budget in (1, 2, 3, 4):
        chosen = sets.sets[budget]
        assert len(set(chosen) - block) == budget
        assert quality_of(bench, chosen) >= quality_of(bench, first[:budget]) - 1e-6


def test_pairs_are_those_of_an_exhaustive_search_or_no_exchange_helps(ground, order):
    bench = make_bench()
    chosen = find_fixed_sets(ground, order, [2]).sets[2]
    found = quality_of(bench, chosen)
    candidates = [line for line in range(11, 22) if line not in orders.initial_block(32, 3)]
    every = {pair: quality_of(bench, pair) for pair in combinations(candidates, 2)}
    assert found <= max(every.values()) + 1e-6
    # A local optimum: no pair that shares a line with it is better.
    for pair, quality in every.items():
        if set(pair) & set(chosen):
            assert quality <= found + 1e-5


def test_a_cap_ends_the_search(ground, order):
    block = orders.initial_block(32, 3)
    greedy_pair = [line for line in order.tolist() if line not in block][:3]
    assert sorted(find_fixed_sets(ground, order, [3], evaluations=0).sets[3]) == sorted(greedy_pair)


def test_sets_are_run_for_every_budget_in_any_protocol():
    bench = make_bench()
    sets = FixedSets("fixed_sets", {1: [20], 2: [9, 22]})
    result = evaluate_policies(bench, [sets], [1, 2], protocol="anytime", progress=False, surface_budgets=[])
    assert sorted(result.policies[0].runs[0]["lines"][0].tolist()) == [9, 22]
    single = evaluate_policies(
        bench, [FixedOrder("one", np.r_[20, np.setdiff1d(np.arange(32), 20)])], [1, 1], progress=False
    )
    np.testing.assert_array_equal(
        result.policies[0].values("A", "volume", "dice")[:, 1], single.policies[0].values("A", "volume", "dice")[:, 1]
    )
    plan = RunPlan(result.cases, range(1, 3), 4, once=True)
    assert plan.runs(sets) == [(1, (1,)), (2, (2,))]


def test_a_set_of_the_wrong_size_or_budget_is_refused():
    with pytest.raises(SeggymError, match="2 different"):
        FixedSets("mine", {2: [4, 4]})
    with pytest.raises(SeggymError, match="no set for budget 2"):
        evaluate_policies(make_bench(), [FixedSets("mine", {1: [4]})], [1, 2], progress=False)


def test_a_static_order_follows_the_majority():
    """Scans of even slices want line 5, odd ones 6, and slice 0 too: 6 wins the first vote, then all want 5."""

    class Votes:
        name, privileged, anytime = "votes", False, True

        def begin(self, engine):
            raise AssertionError("it is not evaluated, so patients that it was trained on are no reason to refuse")

        def act(self, engine, observation, legal):
            wanted = torch.where((engine.samples % 2 == 1) | (engine.samples == 0), 6, 5)
            taken = ~legal.gather(1, wanted[:, None])[:, 0]
            return torch.where(taken, 11 - wanted, wanted)

    engine = make_bench().tuning_engine("train", 8, 2)
    order = static_order(Votes(), engine, 2)
    assert order[3:5].tolist() == [6, 5]
    assert sorted(order.tolist()) == list(range(32))


def test_the_best_order_has_the_largest_area_of_direct_runs(tmp_path):
    bench = make_bench()
    near = orders.centre_out(32)
    candidates = [FixedOrder("outside_in", np.r_[near[:3], near[:2:-1]]), FixedOrder("centre_out", near)]
    best = choose_best_order(bench, candidates, 3, cache=tmp_path, progress=False)
    assert best.name == "best_fixed_order"
    expected = {}
    for candidate in candidates:
        curve = [quality_of(bench, candidate.order[3 : 3 + count]) for count in (1, 2, 3)]
        expected[candidate.name] = np.mean(curve)
    found = fixed_order_areas([bench.tuning_engine("train", 99, 3)], candidates, 3, progress=False)
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(best.order, next(c.order for c in candidates if c.name == max(expected, key=expected.get)))


def test_controls_are_the_swapped_observation_and_the_best_order(ground):
    def first(observation, action_mask):
        return action_mask.argmax(1)

    controls = control_policies(make_bench(), CallablePolicy(first), ground)
    assert [policy.name for policy in controls] == ["first (swapped observation)", "best_fixed_order"]
    assert [p.name for p in control_policies(make_bench(), FixedOrder("mine", orders.centre_out(32)), ground)] == [
        "best_fixed_order"
    ]


def test_orders_measure_no_line_twice_and_remeasuring_ones_start_with_the_flagged():
    acquisition = {**SCAN, "corruption": 0.4}
    bench = make_bench(acquisition=acquisition, remeasure="flagged")
    order = FixedOrder("centre_out", orders.centre_out(32))
    result = evaluate_policies(bench, [order, RemeasureFirst(order)], [1, 8], progress=False, surface_budgets=[])
    plain, again = (policy.runs[0]["lines"] for policy in result.policies if policy.kind != "ceiling")
    if result.policies[0].name != "centre_out":
        plain, again = again, plain
    assert all(len(set(row)) == 8 for row in plain.tolist())
    # Corrupted initial lines, or those just measured, come before anything new.
    assert any(len(set(row)) < 8 or set(row) & {15, 16, 17} for row in again.tolist())
    assert (again >= 0).all()
