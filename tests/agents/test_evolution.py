"""The evolution strategy: its values are those of really measuring, and it finds a policy that measures better."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_bench import SCAN, make_bench

from seggym.agents import training
from seggym.agents.algorithms.evolution import Evolution, _budgets, _values, evolve
from seggym.agents.algorithms.scores import best_legal
from seggym.agents.blind import BlindEngine
from seggym.agents.echo_extractor import FEATURES
from seggym.agents.models import make_model
from seggym.agents.training import train
from seggym.envs.kspace.engine import Episodes
from seggym.errors import SeggymError

SEEN = ("acquired", "budget", "energy", "corrupted")
NETWORK = {"extractor": "echo", "extractor_kwargs": {}, "net_arch": {"pi": [], "vf": [8]}, "activation": "tanh"}
BUDGET = 5


def engine_of(count=6, **options):
    bench = make_bench(observation=SEEN, **{"budget": BUDGET, **options})
    return bench.make_engine(bench.settings, count)


@pytest.fixture
def echo_run(tiny_run):
    kwargs = {**tiny_run.env_kwargs, "observation": ["acquired", "budget", "energy"], "budget": 4}
    return replace(tiny_run, env_kwargs=kwargs, network=NETWORK, prior_strength=0.0, num_envs=8)


def test_values_are_those_of_really_measuring(tiny_run):
    """Each candidate in an engine of its own, by the actor itself, scored at its budget."""
    kwargs = {**tiny_run.env_kwargs, "observation": list(SEEN)}
    policy = make_model(replace(tiny_run, env_kwargs=kwargs, network=NETWORK, prior_strength=0.0)).policy
    policy.set_training_mode(False)
    extractor = policy.pi_features_extractor
    engine = engine_of(acquisition={**SCAN, "corruption": 0.3}, remeasure="any", objective="area")
    scans = engine.sibling(6, reward="terminal", objective="final", budget=(1, BUDGET))
    keys, budgets = 50 + torch.arange(6), _budgets(engine, 6)
    weights = np.random.default_rng(1).normal(size=(3, len(FEATURES)))
    values = _values(extractor, scans, scans.sibling(18), keys, budgets, weights)
    for candidate, value in zip(weights, values, strict=True):
        with torch.no_grad():
            extractor.weights.copy_(torch.from_numpy(candidate))
        episodes = engine.draw(keys)
        engine.begin(torch.arange(6), Episodes(episodes.samples, torch.full((6,), BUDGET), keys))
        curve = []
        for _ in range(BUDGET):
            engine.step(best_legal(policy, engine.observe(), engine.action_mask()))
            curve.append(engine.quality.clone())
        expected = torch.stack(curve)[budgets - 1, torch.arange(6)].mean()
        assert value == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(("objective", "expected"), [("area", [1, 1, 2, 2, 3, 4, 4, 5]), ("final", [5] * 8)])
def test_budgets_stand_for_the_objective(objective, expected):
    assert _budgets(engine_of(objective=objective), 8).tolist() == expected


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


def test_it_finds_better_weights_and_leaves_the_training_environment_alone(echo_run):
    """From weights that prefer the edge of k-space, where nothing is to be had."""
    model = make_model(echo_run)
    extractor = model.policy.pi_features_extractor
    with torch.no_grad():
        extractor.weights[FEATURES.index("inner")] = -60.0
    engine = model.env.batch.engine
    model.env.reset()
    before = {name: value.clone() for name, value in engine.state_dict().items()}
    start = extractor.weights.detach().double().numpy().copy()
    gains = evolve(model, engine, Evolution(generations=8, population=10, scans=16, sigma=15.0), seed=0)
    assert len(gains) == 8
    assert all(torch.equal(value, before[name]) for name, value in engine.state_dict().items())
    found = extractor.weights.detach().double().numpy()
    scans = engine.sibling(64, reward="terminal", objective="final", budget=(1, 4))
    keys = 10**6 + torch.arange(64)
    values = _values(extractor, scans, scans.sibling(128), keys, _budgets(engine, 64), np.stack([start, found]))
    assert values[1] > values[0] + 0.02


@pytest.mark.parametrize("blind", [False, True])
def test_a_run_with_evolution_is_reproducible_and_keeps_the_best(echo_run, tmp_path, blind):
    settings = replace(echo_run, blind=blind, evolution={"generations": 2, "population": 4, "scans": 6})
    found = []
    for name in ("a", "b"):
        folder = train(replace(settings, run_dir=str(tmp_path / name)))
        found.append((folder / "metrics.csv").read_text())
    assert found[0] == found[1]
    # Before it, after it, and on the way.
    assert [line.split(",")[0] for line in found[0].splitlines() if "validation" in line][:2] == ["0", "0"]


def test_augmentation_is_for_training_alone(echo_run, monkeypatch):
    settings = replace(echo_run, augment=True)
    model = make_model(settings)
    assert model.env.batch.engine.settings.augment
    made, original = [], training.make_batch

    def make_batch(*arguments):
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(training, "make_batch", make_batch)
    training.validation_measure(settings, model)
    assert [batch.engine.settings.augment for batch in made] == [False]


@pytest.mark.parametrize("wrong", [{"generations": 0}, {"population": 3}, {"scans": 0}, {"sigma": 0.0}])
def test_what_an_evolution_cannot_be(wrong):
    with pytest.raises(SeggymError, match=f"evolution.{next(iter(wrong))}"):
        Evolution(**wrong)


@pytest.mark.parametrize("changes", [{"algorithm": "dqn", "hyperparameters": {"buffer_size": 64}}, {}])
def test_only_the_weights_of_a_rule_can_be_looked_for(tiny_run, changes):
    model = make_model(replace(tiny_run, **changes))
    with pytest.raises(SeggymError, match=r"needs an actor with network\.extractor=echo"):
        evolve(model, model.env.batch.engine, Evolution(), seed=0)
