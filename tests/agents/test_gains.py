"""The warm start: gains are those of really measuring, and the policy climbs them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_bench import SCAN, make_bench

from seggym.agents.algorithms.gains import WarmStart, _loss, _States, _visit, climb_gains
from seggym.agents.training import make_model, train
from seggym.envs.kspace.engine import Episodes
from seggym.errors import SeggymError

SEEN = ("acquired", "budget", "energy", "corrupted")


class Uniform:
    """A policy that finds every action as good, and whose scores are the parameters that a test moves."""

    device = torch.device("cpu")

    def __init__(self, actions):
        self.scores = torch.zeros(actions, requires_grad=True)

    def get_distribution(self, observation):
        count = len(observation["acquired"])
        self.distribution = torch.distributions.Categorical(logits=self.scores.expand(count, -1))
        return self


def engine_of(count=6, **options):
    bench = make_bench(observation=SEEN, **{"budget": 4, **options})
    return bench.make_engine(bench.settings, count)


@pytest.mark.parametrize("remeasure", ["never", "any"])
def test_gains_are_those_of_measuring_the_line(remeasure):
    engine = engine_of(acquisition={**SCAN, "corruption": 0.3}, remeasure=remeasure)
    settings = WarmStart(rounds=1, candidates=30)
    generator = torch.Generator().manual_seed(3)
    states = _visit(Uniform(32), engine, settings, generator)
    keys = torch.randint(2**62, (6,), generator=torch.Generator().manual_seed(3))
    drawn = engine.draw(keys)
    every = torch.arange(6)
    checked = 0
    for rank in range(30):
        engine.begin(every, Episodes(drawn.samples, torch.full((6,), 4), keys))
        good = engine.acquired & ~engine.scanner.flagged
        # The first six states are those before the first line.
        lines, gains = states.lines[:6, rank], states.gains[:6, rank]
        pointless, legal = good[every, lines], engine.action_mask()[every, lines]
        before = engine.quality.clone()
        engine.step(torch.where(legal, lines, 31))
        found = (engine.quality - before).float()
        kept = legal & ~pointless
        np.testing.assert_allclose(gains[kept].numpy(), found[kept].numpy(), atol=1e-6)
        assert bool(gains[~legal].isnan().all())
        others = torch.where(
            good[every[:, None], states.lines[:6]] | states.gains[:6].isnan(), torch.inf, states.gains[:6]
        )
        assert bool((gains[pointless & legal] <= others.amin(1)[pointless & legal] + 1e-7).all())
        checked += int((pointless & legal).sum())
    assert (checked > 0) == (remeasure == "any")


def test_the_policy_moves_towards_the_better_lines():
    policy = Uniform(5)
    lines = torch.tensor([[0, 1, 2], [2, 1, 4]])
    gains = torch.tensor([[0.3, 0.1, torch.nan], [-0.1, 0.5, 0.2]])
    _loss(policy, _States({"acquired": torch.zeros(2, 5)}, lines, gains)).backward()
    step = -policy.scores.grad
    # By hand: with equal chances the gradient is chance times (gain - mean), over the spread of all known gains.
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


def test_climbing_raises_the_expected_gain(echo_run):
    model = make_model(echo_run)
    engine = model.env.batch.engine

    def expected_gain():
        states = _visit(model.policy, engine, WarmStart(candidates=6), torch.Generator().manual_seed(9))
        with torch.no_grad():
            return -_loss(model.policy, states).item()

    before = expected_gain()
    climb_gains(model, engine, WarmStart(rounds=6, candidates=6, epochs=4, batch_size=16, learning_rate=3e-3), seed=0)
    assert expected_gain() > before + 0.02


def test_a_run_with_a_warm_start_is_reproducible_and_keeps_the_best(echo_run, tmp_path):
    settings = replace(echo_run, warm_start={"rounds": 1, "candidates": 4})
    found = []
    for name in ("a", "b"):
        folder = train(replace(settings, run_dir=str(tmp_path / name)))
        found.append((folder / "metrics.csv").read_text())
    assert found[0] == found[1]
    # Before the warm start, after it, and on the way.
    assert [line.split(",")[0] for line in found[0].splitlines() if "validation" in line][:2] == ["0", "0"]


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"candidates": 1}, {"temperature": 0.0}])
def test_what_a_warm_start_cannot_be(wrong):
    with pytest.raises(SeggymError, match=f"warm_start.{next(iter(wrong))}"):
        WarmStart(**wrong)


def test_a_network_without_an_actor_cannot_be_warmed(tiny_run):
    model = make_model(replace(tiny_run, algorithm="dqn", hyperparameters={"buffer_size": 64}))
    with pytest.raises(SeggymError, match="needs an actor, DQN has none"):
        climb_gains(model, model.env.batch.engine, WarmStart(), seed=0)
