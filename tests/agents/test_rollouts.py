"""At which measurement an image is read: steps of several lines, measuring again, stopping early."""

import numpy as np
import torch
from synthetic_bench import make_bench

from seggym.agents.evaluation import evaluate_policies
from seggym.agents.policies import CallablePolicy, FixedOrder
from seggym.agents.rollouts import RunPlan
from seggym.agents.scores import plan_cases
from seggym.kspace import orders

CENTRE = FixedOrder("centre_out", orders.centre_out(32))


def run(policy, budgets, **options):
    bench = make_bench(**options)
    result = evaluate_policies(bench, [policy], budgets, protocol="anytime", progress=False, surface_budgets=[])
    return result.policies[0]


def test_batches_mix_patients():
    bench = make_bench()
    plan = RunPlan(plan_cases(bench.stack, bench.class_names), range(1, 3), 3)
    chunks = list(plan.chunks())
    assert sorted(torch.cat(chunks).tolist()) == list(range(8))
    assert len(chunks[0]) == 3 == max(map(len, chunks))
    assert all(len({plan.cases.patients[row] for row in chunk.tolist()}) == 2 for chunk in chunks)


def test_between_the_decisions_of_a_segment_the_image_before_counts():
    single = run(CENTRE, [1, 6])
    double = run(CENTRE, [1, 6], lines_per_step=2)
    mine, theirs = (policy.values("A", "volume", "dice")[0] for policy in (double, single))
    # Pairs of neighbours: after an even number of measurements the lines are those of centre-out, in between not yet.
    np.testing.assert_array_equal(mine[[1, 3, 5]], mine[[0, 2, 4]])
    assert double.points == (0, 1, 2, 3, 4, 5, 6)
    assert not np.array_equal(mine[6], mine[4])
    np.testing.assert_array_equal(mine[0], theirs[0])


def test_budgets_that_begin_later_fall_back_on_the_image_before_as_well():
    every = run(CENTRE, [1, 6], lines_per_step=4).values("A", "volume", "dice")[0]
    late = run(CENTRE, [5, 6], lines_per_step=4).values("A", "volume", "dice")[0]
    np.testing.assert_array_equal(late[1:], every[5:])
    np.testing.assert_array_equal(every[5], every[4])


def test_a_line_that_is_measured_again_is_a_measurement():
    def again(observation, action_mask):
        return np.full(len(action_mask), 20)

    policy = CallablePolicy(again)
    repeated = run(policy, [1, 3], remeasure="any")
    assert (repeated.runs[0]["lines"] == 20).all()
    assert int(repeated.runs[0]["illegal"]) == 0
    illegal = run(policy, [1, 3])
    assert illegal.runs[0]["lines"].tolist() == [[20, -1, -1]] * 8
    assert int(illegal.runs[0]["illegal"]) == 16


def test_who_stops_keeps_his_last_image():
    def stopping(observation, action_mask):
        measured = observation["acquired"].sum(1)
        return np.where(measured >= 5, 32, np.where(action_mask[:, 18], 18, 14))

    def going(observation, action_mask):
        return np.where(action_mask[:, 18], 18, np.where(action_mask[:, 14], 14, 10))

    options = {"observation": ("acquired", "budget"), "stop_action": True}
    stopped, gone = (run(CallablePolicy(function), [1, 4], **options) for function in (stopping, going))
    assert stopped.runs[0]["lines"].tolist() == [[18, 14, -1, -1]] * 8
    for net in ("A", "B"):
        mine, theirs = (policy.values(net, "volume", "dice")[0] for policy in (stopped, gone))
        np.testing.assert_array_equal(mine[:3], theirs[:3])
        np.testing.assert_array_equal(mine[3:], theirs[[2, 2]])
    ssim = stopped.values("image", "slice", "ssim")[0]
    np.testing.assert_array_equal(ssim[4], ssim[2])
