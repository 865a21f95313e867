"""Stopping by regression: the rule on constructed scans, and the policy on an engine."""

import numpy as np
import torch
from synthetic_bench import make_bench

from seggym.agents.baselines import make_baselines
from seggym.agents.greedy import begin_training_episodes
from seggym.agents.learned_stop import LearnedStop, dearest_rule, follow, stopping_rule, stops
from seggym.agents.policies import FixedOrder
from seggym.kspace import orders

BUDGET = 8


def centre_out():
    return FixedOrder("centre_out", orders.centre_out(32))


def two_kinds(count=400, steps=5):
    """Scans that gain .1 with every line (feature 1) and scans that gain nothing (feature 0), as features, quality."""
    gains = np.arange(count) % 2
    quality = 0.3 + 0.1 * gains * np.arange(steps + 1)[:, None]
    return np.broadcast_to(gains[:, None].astype(float), (steps + 1, count, 1)), quality


def test_a_scan_goes_on_where_lines_are_worth_their_price():
    seen, quality = two_kinds()
    used = stops(seen, stopping_rule(seen, quality, price=0.02))
    assert used[::2].tolist() == [0] * 200
    assert used[1::2].tolist() == [5] * 200
    # Dearer than what a line brings: nobody measures anything.
    assert not stops(seen, stopping_rule(seen, quality, price=0.2)).any()


def test_going_on_may_pay_later_than_the_next_line():
    # The first line brings nothing, the second one .5: worth two lines at .2, by what follows and not by the next step.
    quality = np.array([[0.2, 0.2], [0.2, 0.2], [0.7, 0.2]]).repeat(100, 1)
    seen = np.broadcast_to(np.array([[1.0], [0.0]]).repeat(100, 0), (3, 200, 1))
    used = stops(seen, stopping_rule(seen, quality, price=0.2))
    assert used.tolist() == [2] * 100 + [0] * 100


def test_the_dearest_rule_keeps_its_share_of_quality():
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.1, 2, 500)
    quality = 0.2 + 0.6 * (1 - np.exp(-rate * np.arange(9)[:, None]))
    seen = np.stack([np.broadcast_to(rate, quality.shape), quality + rng.normal(0, 0.02, quality.shape)], 2)
    used, means = [], []
    for fraction in (0.8, 0.9, 0.97):
        steps = stops(seen, dearest_rule(seen, quality, fraction))
        used.append(steps.mean())
        means.append(np.take_along_axis(quality, steps[None], 0).mean())
        assert means[-1] >= fraction * quality[-1].mean()
    assert used == sorted(used)
    # The same lines for all reach less than those that go where they are needed.
    assert means[1] > np.interp(used[1], np.arange(9), quality.mean(1)) + 0.01


def test_the_policy_stops_where_the_rule_says(tmp_path):
    bench = make_bench(stop_action=True, budget=BUDGET)
    ground = bench.ground(BUDGET, cache=tmp_path, progress=False, max_slices=8)
    seen, quality = follow(ground.engine(), centre_out(), BUDGET)
    weights = stopping_rule(seen, quality, float(np.diff(quality, axis=0).mean()))
    expected = stops(seen, weights)
    assert len(set(expected.tolist())) > 1

    # The first scans of ``follow`` again.
    engine = ground.engine()
    begin_training_episodes(engine, BUDGET)
    policy, active = LearnedStop(centre_out(), weights), torch.ones(8, dtype=torch.bool)
    policy.begin(engine)
    while active.any():
        active &= ~engine.step(policy.act(engine, {}, engine.action_mask()), active).terminated
    assert engine.steps.tolist() == expected[:8].tolist()


def test_learned_stop_is_tuned_where_it_is_asked_for(tmp_path):
    bench = make_bench(stop_action=True, budget=BUDGET)
    ground = bench.ground(BUDGET, cache=tmp_path, progress=False, max_slices=8)
    (policy,), (again,) = make_baselines(["learned_stop"], ground), make_baselines(["learned_stop"], ground)
    assert isinstance(policy, LearnedStop)
    assert policy.weights.shape[0] == BUDGET
    np.testing.assert_array_equal(policy.weights, again.weights)
