"""Baselines: honest ones see measured samples only, and tuning picks what is best on the ground it is given."""

import numpy as np
import pytest
import torch
from synthetic_bench import make_bench

from seggym.agents import baselines, greedy
from seggym.agents.policies import FixedOrder
from seggym.errors import SeggymError
from seggym.kspace import orders


@pytest.fixture
def ground(tmp_path):
    return make_bench().ground(3, cache=tmp_path, progress=False, max_slices=4, window=3)


def play(policy, engine, length):
    """Lines (N, length) that ``policy`` measures, and whether each was legal."""
    greedy.begin_training_episodes(engine, length)
    policy.begin(engine)
    lines = []
    for _ in range(length):
        legal = engine.action_mask()
        lines.append(policy.act(engine, {}, legal))
        assert legal.gather(1, lines[-1][:, None]).all()
        engine.step(lines[-1])
    return torch.stack(lines, 1)


@pytest.mark.parametrize("name", baselines.offered("lines"))
def test_every_baseline_plays_legally_to_the_last_line(name, ground):
    (policy,) = baselines.make_baselines([name], ground)
    assert policy.name == name
    assert policy.privileged == (name == "one_step_greedy")
    bench = make_bench()
    engine = bench.make_engine(bench.settings, 2)
    lines = play(policy, engine, 29)
    assert engine.acquired.all()
    assert lines.shape == (2, 29)


@pytest.mark.parametrize("name", baselines.offered("lines"))
def test_candidates_are_respected(name, tmp_path):
    bench = make_bench(candidates=[10, 20])
    ground = bench.ground(3, cache=tmp_path, progress=False, max_slices=2, window=3)
    (policy,) = baselines.make_baselines([name], ground)
    lines = play(policy, bench.make_engine(bench.settings, 2), 6)
    assert ((lines >= 10) & (lines <= 20)).all()


@pytest.mark.parametrize("name", ["random", "equispaced", "variable_density"])
def test_drawn_orders_belong_to_the_episode_and_not_to_the_batch(name, ground):
    (policy,) = baselines.make_baselines([name], ground)
    bench = make_bench()
    together = play(policy, bench.make_engine(bench.settings, 8), 4)
    again = play(policy, bench.make_engine(bench.settings, 8), 4)
    assert torch.equal(together, again)
    assert len({tuple(row) for row in together.tolist()}) > 1
    some = play(policy, bench.make_engine(bench.settings, 4), 4)
    assert torch.equal(some, together[::2])


def test_equispaced_depends_on_the_budget(ground):
    (policy,) = baselines.make_baselines(["equispaced"], ground)
    assert policy.anytime is False
    bench = make_bench()
    lines = np.sort(play(policy, bench.make_engine(bench.settings, 2), 9).numpy(), 1)
    free = np.setdiff1d(np.arange(32), orders.initial_block(32, 3))
    gaps = np.diff(np.searchsorted(free, lines), axis=1)
    assert set(gaps.ravel().tolist()) <= {3, 4}


def test_energy_following_grows_towards_the_stronger_side_and_sees_measured_lines_only():
    bench = make_bench()
    engine = bench.make_engine(bench.settings, 8)
    policy = baselines.EnergyFollowing()
    greedy.begin_training_episodes(engine, 6)
    for _ in range(6):
        actions = policy.act(engine, {}, engine.action_mask())
        unmeasured = ~engine.acquired
        kept = engine.scanner.signal.clone(), engine.scanner.energy.clone()
        engine.scanner.signal[unmeasured] = 1e6 * torch.randn_like(engine.scanner.signal[unmeasured])
        engine.scanner.energy[unmeasured] = 1e12 * torch.rand_like(engine.scanner.energy[unmeasured])
        assert torch.equal(policy.act(engine, {}, engine.action_mask()), actions)
        engine.scanner.signal.copy_(kept[0])
        engine.scanner.energy.copy_(kept[1])
        for scan, line in enumerate(actions.tolist()):
            measured = engine.acquired[scan].nonzero()[:, 0]
            low, high = int(measured.min()), int(measured.max())
            assert len(measured) == high - low + 1
            outermost = engine.scanner.signal[scan, [high, low]].abs().square().sum((1, 2))
            stronger = outermost[0] >= outermost[1]
            assert line == (high + 1 if stronger else low - 1)
        engine.step(actions)


def test_tuning_takes_the_best_of_the_grid_and_is_kept(ground, monkeypatch):
    (policy,) = baselines.make_baselines(["partial_fourier"], ground)
    areas = {}
    for ratio in baselines.RATIOS:
        for side in (1, -1):
            order = orders.partial_fourier(32, side, ratio)
            areas[side, ratio] = greedy.training_area(ground.engine(), FixedOrder("x", order), 3)
    best = orders.partial_fourier(32, *max(areas, key=areas.get))
    assert policy.order.tolist() == best.tolist()

    def no_search(*args, **kwargs):
        raise AssertionError("searched again")

    monkeypatch.setattr(greedy, "tune", no_search)
    (again,) = baselines.make_baselines(["partial_fourier"], ground)
    assert again.order.tolist() == policy.order.tolist()
    ground.length = 4
    with pytest.raises(AssertionError, match="searched again"):
        baselines.make_baselines(["partial_fourier"], ground)


def test_unknown_names_are_refused(ground):
    with pytest.raises(SeggymError, match="unknown"):
        baselines.make_baselines(["centre-out"], ground)
    with pytest.raises(SeggymError, match="exactly once"):
        FixedOrder("mine", np.zeros(32))
