"""An observation is a function of measured samples only."""

import dataclasses

import pytest
import torch

from seggym.envs.kspace.settings import OBSERVATIONS
from seggym.kspace import simulation

OBSERVATION = list(OBSERVATIONS)  # all there are
KEYS = [21, 22, 23, 24]


def assert_bitwise(one, other):
    assert one.keys() == other.keys() == set(OBSERVATION)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def observations(engine, actions):
    """The observation after the reset to KEYS and after each step."""
    engine.begin(torch.arange(len(KEYS)), engine.draw(torch.tensor(KEYS)))
    seen = [engine.observe()]
    for action in actions:
        engine.step(action)
        seen.append(engine.observe())
    return seen


@pytest.fixture
def settings():
    return {"observation": OBSERVATION, "budget": [10, 20], "lambda_recon": 0.5}


@pytest.mark.parametrize("change", ["permuted", "shuffled pixels", "relabelled"])
def test_labels_do_not_show(make_engine, make_stack, play, settings, change):
    engine = make_engine(4, **settings)
    actions = play(engine, KEYS, 8)
    labels = engine.stack.labels
    changed = {
        "permuted": labels.roll(1, 0),
        "shuffled pixels": labels.flatten(1)[:, torch.randperm(labels[0].numel())].view_as(labels),
        "relabelled": (labels + 1) % 4,
    }[change]
    other = make_engine(4, stack=dataclasses.replace(engine.stack, labels=changed), **settings)
    for one, two in zip(observations(engine, actions), observations(other, actions), strict=True):
        assert_bitwise(one, two)
    assert not torch.equal(engine.quality, other.quality)


def test_unmeasured_lines_do_not_show(make_engine, play, settings):
    """Before the first line, and at every later step, the lines not yet measured are replaced by noise."""
    engine = make_engine(4, **settings)
    actions = play(engine, KEYS, 8)
    expected = observations(engine, actions)
    ever = engine.acquired.clone()
    engine.begin(torch.arange(4), engine.draw(torch.tensor(KEYS)))
    replaced = torch.where(ever[:, :, None, None], engine.scanner.signal, 100 * torch.randn_like(engine.scanner.signal))
    engine.scanner.signal.copy_(replaced)
    assert_bitwise(engine.observe(), expected[0])
    for action, before in zip(actions, expected[1:], strict=True):
        engine.step(action)
        kept = engine.scanner.signal.clone()
        hidden = ~engine.acquired[:, :, None, None]
        engine.scanner.signal.copy_(torch.where(hidden, 100 * torch.randn_like(kept), kept))
        assert_bitwise(engine.observe(), before)
        engine.scanner.signal.copy_(kept)


def test_unmeasured_lines_do_not_show_at_the_reset(make_engine, play, settings, monkeypatch):
    """The noise is there before the reset scores and scales anything."""
    engine = make_engine(4, **settings)
    expected = observations(engine, [])
    measured = engine.acquired[0]
    honest = simulation.thermal_noise

    def corrupted(*arguments):
        noise = honest(*arguments)
        return torch.where(measured, noise, 100 * torch.randn_like(noise))

    monkeypatch.setattr(simulation, "thermal_noise", corrupted)
    seen = observations(engine, [])
    assert not torch.equal(engine.scanner.signal[:, ~measured], torch.zeros_like(engine.scanner.signal[:, ~measured]))
    assert_bitwise(seen[0], expected[0])


def test_the_test_can_fail(make_engine, play, settings):
    """Changing a measured line does change what is seen."""
    engine = make_engine(4, **settings)
    before = observations(engine, [])
    engine.scanner.signal[:, engine.num_lines // 2] *= 2
    assert not torch.equal(engine.observe()["kspace"], before[0]["kspace"])
