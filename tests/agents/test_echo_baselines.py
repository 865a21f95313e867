"""Rules for hard scans: nearest to the echo, corrupted lines again, the axis first, and stopping."""

import numpy as np
import pytest
import torch
from synthetic_bench import SCAN, Threshold, make_bench, make_stack

from seggym.agents import echo_baselines, greedy
from seggym.agents.baselines import make_baselines
from seggym.agents.echo_baselines import AxisFirst, EchoFollowing, EntropyStop, OracleStop
from seggym.agents.echo_extractor import EchoExtractor
from seggym.agents.policies import FixedOrder
from seggym.agents.priors import low_frequency_prior, start_head
from seggym.agents.rollouts import Grader, RunPlan, grade_policy
from seggym.agents.scores import plan_cases
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.volumes.environment import space_of
from seggym.errors import SeggymError
from seggym.kspace import orders
from seggym.reward_models import metrics

BUDGET = 12


class Bar:
    def update(self) -> None:
        pass


def engine_of(count=8, **options):
    bench = make_bench(**options)
    engine = bench.make_engine(bench.settings, count)
    greedy.begin_training_episodes(engine, bench.settings.budget)
    return engine


def centre_out():
    return FixedOrder("centre_out", orders.centre_out(32))


def test_echo_following_measures_the_wanted_line_nearest_to_the_centre_of_amplitudes():
    engine = engine_of(acquisition={**SCAN, "corruption": 0.4}, remeasure="any", budget=BUDGET)
    policy, again = EchoFollowing(), 0
    for _ in range(BUDGET):
        # Independently, in numpy and scan by scan.
        expected = []
        for scan in range(8):
            acquired = engine.acquired[scan].numpy()
            amplitude = np.sqrt(engine.scanner.energy[scan].double().numpy()) * acquired
            echo = (amplitude * np.arange(32)).sum() / amplitude.sum()
            wanted = np.flatnonzero(~acquired | engine.flagged[scan].numpy())
            expected.append(wanted[np.abs(wanted - echo).argmin()])
        chosen = policy.act(engine, {}, engine.action_mask())
        assert chosen.tolist() == expected
        again += int(engine.acquired.gather(1, chosen[:, None]).sum())
        engine.step(chosen)
    assert again > 0


def test_echo_following_goes_where_the_echo_was_shifted_to():
    stack = make_stack()
    stack.echo_shift[:] = torch.tensor([6.0, -6.0]).repeat(4)
    bench = make_bench(budget=BUDGET)
    engine = KSpaceEngine(stack, bench.settings, 8, networks=[Threshold()])
    greedy.begin_training_episodes(engine, BUDGET)
    for _ in range(BUDGET):
        engine.step(EchoFollowing().act(engine, {}, engine.action_mask()))
    middle = (engine.acquired.double() * torch.arange(32)).sum(1) / engine.acquired.sum(1)
    # Both echoes are followed, in opposite directions and each by the same distance from DC.
    side = (middle - 16) * torch.tensor([1.0, -1.0]).repeat(4)
    assert (side > 1).all() or (side < -1).all()


def test_hidden_corruption_is_not_known():
    engine = engine_of(
        acquisition={**SCAN, "corruption": 0.4}, remeasure="any", corruption_flagged=False, budget=BUDGET
    )
    for _ in range(BUDGET):
        chosen = EchoFollowing().act(engine, {}, engine.action_mask())
        assert not engine.acquired.gather(1, chosen[:, None]).any()
        engine.step(chosen)


def test_the_axis_is_chosen_first_and_costs_nothing():
    engine = engine_of(choose_axis=True, budget=3)
    policy = AxisFirst(centre_out(), 1)
    policy.begin(engine)
    for _ in range(4):
        legal = engine.action_mask()
        chosen = policy.act(engine, {}, legal)
        assert legal.gather(1, chosen[:, None]).all()
        engine.step(chosen)
    assert engine.scanner.transposed.all()
    assert (engine.steps == 3).all()
    with pytest.raises(SeggymError, match="choose_axis=true"):
        policy.begin(engine_of())


def test_entropy_is_that_of_the_probabilities():
    engine = engine_of()
    seen = Threshold()(engine.magnitude).probabilities.double().numpy()
    expected = -(seen * np.log(np.clip(seen, 1e-300, None))).sum(1).mean((1, 2))
    np.testing.assert_allclose(echo_baselines.mean_entropy(engine).numpy(), expected, atol=1e-5)


def test_soonest_threshold_by_hand():
    entropy = np.array([[0.9, 0.8], [0.5, 0.6], [0.2, 0.3]])
    quality = np.array([[0.0, 0.0], [0.5, 0.9], [1.0, 1.0]])
    # Half of the final quality is kept by stopping both after one line (mean .7), not by stopping at once (0).
    assert echo_baselines.soonest_threshold(entropy, quality, 0.5) == 0.8
    # The first scan after one line and the second one after two keep .75; for more, both need two.
    assert echo_baselines.soonest_threshold(entropy, quality, 0.75) == 0.6
    assert echo_baselines.soonest_threshold(entropy, quality, 0.9) == 0.5
    assert echo_baselines.soonest_threshold(entropy, quality, 1.1) == 0.0


def test_a_threshold_stops_each_scan_at_its_own_line():
    free = engine_of(stop_action=True, budget=BUDGET)
    order, entropies = centre_out(), []
    for _ in range(BUDGET):
        entropies.append(echo_baselines.mean_entropy(free))
        free.step(order.act(free, {}, free.action_mask()))
    entropy = torch.stack(entropies)
    threshold = float(entropy.median())
    below = entropy < threshold
    expected = torch.where(below.any(0), below.byte().argmax(0), BUDGET)

    engine = engine_of(stop_action=True, budget=BUDGET)
    policy, active = EntropyStop(order, threshold), torch.ones(8, dtype=torch.bool)
    policy.begin(engine)
    while active.any():
        active &= ~engine.step(policy.act(engine, {}, engine.action_mask()), active).terminated
    assert engine.steps.tolist() == expected.tolist()
    assert len(expected.unique()) > 1


def test_entropy_stop_is_tuned_where_it_is_asked_for(tmp_path):
    bench = make_bench(stop_action=True, budget=BUDGET)
    (policy,) = make_baselines(["entropy_stop"], bench.ground(BUDGET, cache=tmp_path, progress=False, max_slices=8))
    assert isinstance(policy, EntropyStop)
    assert policy.threshold > 0
    names = [made.name for made in make_baselines(None, make_bench().ground(3, cache=tmp_path, progress=False))]
    assert "entropy_stop" not in names
    with pytest.raises(SeggymError, match="stop_action=true"):
        policy.begin(engine_of())


def test_oracle_stops_at_its_share_of_full_dice_and_keeps_the_image():
    bench = make_bench(stop_action=True, budget=BUDGET)
    cases = plan_cases(bench.stack, bench.class_names)
    plan = RunPlan(cases, range(1, BUDGET + 1), len(cases), once=True)

    def scores(policy):
        return grade_policy(policy, bench.make_engine(bench.settings, len(cases)), Grader(plan, None, []), False, Bar())

    free, stopped = scores(centre_out()), scores(OracleStop(centre_out(), 0.9))
    engine = engine_of(budget=BUDGET)
    engine.begin(torch.arange(8), type(engine.draw(cases.keys))(cases.samples, torch.full((8,), BUDGET), cases.keys))
    labels = metrics.most_probable(Threshold()(engine.scanner.full(torch.arange(8))).probabilities)
    full = metrics.dice_per_class(labels, metrics.encode_truth(engine.stack.labels, 3)).nanmean(1).numpy()
    curves = free["A/slice/dice"].mean(-1)
    reached = curves >= 0.9 * full
    expected = np.where(reached.any(0), reached.argmax(0), BUDGET)
    used = (stopped["lines"] >= 0).sum(1)
    assert used.tolist() == expected.tolist()
    assert 0 < used.mean() < BUDGET
    last = stopped["A/slice/dice"][-1].mean(-1)
    np.testing.assert_array_equal(last, curves[expected, np.arange(8)])
    assert OracleStop.privileged


def test_an_untrained_echo_policy_follows_the_echo_and_stops_as_readily_early_as_late():
    bench = make_bench(
        acquisition={**SCAN, "corruption": 0.4},
        remeasure="flagged",
        budget=BUDGET,
        stop_action=True,
        observation=["acquired", "energy", "corrupted", "budget"],
    )
    engine = bench.make_engine(bench.settings, 8)
    greedy.begin_training_episodes(engine, BUDGET)
    extractor = EchoExtractor(space_of(engine))
    head = torch.nn.Linear(extractor.features_dim, engine.num_actions)
    start_head(head, low_frequency_prior(32, 0.0, 33), extractor.num_scores)
    for _ in range(BUDGET):
        with torch.no_grad():
            logits = head(extractor(engine.observe()))
        lines = logits[:, :32].masked_fill(~engine.action_mask()[:, :32], -torch.inf)
        # The line that the rule prefers is as likely as stopping at every step.
        torch.testing.assert_close(lines.amax(1), logits[:, 32])
        expected = EchoFollowing().act(engine, {}, engine.action_mask())
        # Lines at the same distance have the same score.
        torch.testing.assert_close(lines.gather(1, expected[:, None])[:, 0], lines.amax(1), atol=1e-3, rtol=0)
        engine.step(expected)
