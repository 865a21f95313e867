"""The warm start: values are those of really going on, and the policy climbs them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_bench import SCAN, make_bench

from seggym.agents.algorithms.scores import best_legal
from seggym.agents.algorithms.warm_start import WarmStart, _loss, _States, _values, _visit, climb_values
from seggym.agents.blind import BlindEngine
from seggym.agents.training import make_model, train
from seggym.envs.kspace.engine import Episodes
from seggym.errors import SeggymError

SEEN = ("acquired", "budget", "energy", "corrupted")
BUDGET = 5


def engine_of(count=6, **options):
    bench = make_bench(observation=SEEN, **{"budget": BUDGET, **options})
    return bench.make_engine(bench.settings, count)


@pytest.fixture
def policy(tiny_run):
    kwargs = {**tiny_run.env_kwargs, "observation": ["acquired", "budget", "energy", "corrupted"]}
    network = {"extractor": "echo", "extractor_kwargs": {}, "net_arch": {"pi": [], "vf": [8]}, "activation": "tanh"}
    return make_model(replace(tiny_run, env_kwargs=kwargs, network=network, prior_strength=0.0)).policy


@pytest.mark.parametrize("objective", ["area", "final"])
@pytest.mark.parametrize("horizon", [0, 2, 9])
def test_values_are_those_of_really_going_on(policy, objective, horizon):
    options = {"acquisition": {**SCAN, "corruption": 0.3}, "remeasure": "any", "objective": objective}
    scans, branches, again = (engine_of(count, **options) for count in (6, 20, 6))
    every, keys = torch.arange(6), 50 + torch.arange(6)
    episodes = Episodes(every, torch.full((6,), BUDGET), keys)
    before = [20, 10, 17]
    for engine in (scans, again):
        engine.begin(every, episodes)
        engine.step(torch.full((6,), before[0]))
    lines = torch.stack([torch.full((6,), line) for line in (16, 20, 18)], 1)
    kept = {name: value.clone() for name, value in scans.state_dict().items()}
    values = _values(policy, scans, branches, lines, horizon)
    assert all(torch.equal(value, kept[name]) for name, value in scans.state_dict().items())
    for rank in range(3):
        again.begin(every, episodes)
        again.step(torch.full((6,), before[0]))
        again.step(lines[:, rank])
        curve = [again.quality.clone()]
        for _ in range(min(horizon, BUDGET - 2)):
            again.step(best_legal(policy, again.observe(), again.action_mask()))
            curve.append(again.quality.clone())
        # What is left of the budget is taken to stay at the last quality seen.
        curve += [curve[-1]] * (BUDGET - 1 - len(curve))
        expected = curve[-1] if objective == "final" else torch.stack(curve).mean(0)
        np.testing.assert_allclose(values[:, rank].numpy(), expected.numpy(), atol=1e-6)


def test_illegal_lines_have_no_value(policy):
    engine = engine_of()
    settings = WarmStart(scans=6, candidates=32, every=1, horizon=0)
    states = _visit(policy, engine, engine.sibling(6 * 32), settings, torch.Generator().manual_seed(1))
    assert len(states.lines) == 6 * BUDGET
    acquired = states.observation["acquired"].bool()
    assert torch.equal(states.values.isnan(), acquired.gather(1, states.lines))


def test_the_shortest_episode_has_a_state(policy):
    engine = engine_of(budget=1)
    settings = WarmStart(scans=6, candidates=3, every=3, horizon=2)
    for seed in range(4):
        states = _visit(policy, engine, engine.sibling(18), settings, torch.Generator().manual_seed(seed))
        assert len(states.lines) == 6


def test_a_sibling_goes_on_from_anywhere():
    engine = engine_of(acquisition={**SCAN, "corruption": 0.3}, remeasure="any")
    every = torch.arange(6)
    engine.begin(every, Episodes(every, torch.full((6,), BUDGET), 7 + every))
    engine.step(torch.tensor([10, 12, 14, 18, 20, 22]))
    slots = torch.tensor([5, 5, 2, 0])
    other = engine.sibling(4)
    other.take(engine, slots)
    results = engine.step(torch.full((6,), 19)), other.step(torch.full((4,), 19))
    for name, value in engine.observe().items():
        assert torch.equal(value[slots], other.observe()[name]), name
    assert torch.equal(results[0].parts["quality"][slots], results[1].parts["quality"])
    assert isinstance(BlindEngine(engine).sibling(4), BlindEngine)


class Uniform:
    """A policy that finds every action as good, and whose scores are the parameters that a test moves."""

    def __init__(self, actions):
        self.scores = torch.zeros(actions, requires_grad=True)

    def get_distribution(self, observation):
        count = len(observation["acquired"])
        self.distribution = torch.distributions.Categorical(logits=self.scores.expand(count, -1))
        return self


def test_the_policy_moves_towards_the_better_lines():
    policy = Uniform(5)
    lines = torch.tensor([[0, 1, 2], [2, 1, 4]])
    values = torch.tensor([[0.3, 0.1, torch.nan], [-0.1, 0.5, 0.2]])
    _loss(policy, _States({"acquired": torch.zeros(2, 5)}, lines, values)).backward()
    step = -policy.scores.grad
    # By hand: with equal chances the gradient is chance times (value - mean), over the spread of all known values.
    relative = torch.tensor([[0.1, -0.1, 0.0], [-0.3, 0.3, 0.0]])
    spread = (relative.square().sum() / 5).sqrt()
    expected = torch.zeros(5)
    expected[[0, 1]] += torch.tensor([0.1, -0.1]) / 2
    expected[[2, 1, 4]] += torch.tensor([-0.3, 0.3, 0.0]) / 3
    np.testing.assert_allclose(step.numpy(), (expected / 2 / spread).numpy(), atol=1e-6)


@pytest.fixture
def echo_run(tiny_run):
    kwargs = {**tiny_run.env_kwargs, "observation": ["acquired", "budget", "energy"], "budget": 4}
    network = {"extractor": "echo", "extractor_kwargs": {}, "net_arch": {"pi": [], "vf": [8]}, "activation": "tanh"}
    return replace(tiny_run, env_kwargs=kwargs, network=network, prior_strength=0.0, num_envs=8)


def test_climbing_raises_the_expected_value(echo_run):
    model = make_model(echo_run)
    engine = model.env.batch.engine
    settings = WarmStart(scans=12, candidates=6, every=1, horizon=0)

    def expected_value():
        pair = engine.sibling(12), engine.sibling(72)
        states = _visit(model.policy, *pair, settings, torch.Generator().manual_seed(9))
        with torch.no_grad():
            return -_loss(model.policy, states).item()

    before = expected_value()
    climb_values(model, engine, replace(settings, rounds=6, epochs=4, batch_size=16, learning_rate=3e-3), seed=0)
    assert expected_value() > before + 0.02


@pytest.mark.parametrize("blind", [False, True])
def test_a_run_with_a_warm_start_is_reproducible_and_keeps_the_best(echo_run, tmp_path, blind):
    settings = replace(echo_run, blind=blind, warm_start={"rounds": 1, "scans": 6, "candidates": 4, "horizon": 1})
    found = []
    for name in ("a", "b"):
        folder = train(replace(settings, run_dir=str(tmp_path / name)))
        found.append((folder / "metrics.csv").read_text())
    assert found[0] == found[1]
    # Before the warm start, after it, and on the way.
    assert [line.split(",")[0] for line in found[0].splitlines() if "validation" in line][:2] == ["0", "0"]


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"candidates": 1}, {"temperature": 0.0}, {"horizon": -1}])
def test_what_a_warm_start_cannot_be(wrong):
    with pytest.raises(SeggymError, match=f"warm_start.{next(iter(wrong))}"):
        WarmStart(**wrong)


def test_a_network_without_an_actor_cannot_be_warmed(tiny_run):
    model = make_model(replace(tiny_run, algorithm="dqn", hyperparameters={"buffer_size": 64}))
    with pytest.raises(SeggymError, match="needs an actor, DQN has none"):
        climb_values(model, model.env.batch.engine, WarmStart(), seed=0)
