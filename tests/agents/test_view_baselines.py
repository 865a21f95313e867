"""Baselines of spokes and points: legal to the end, honest, and what their names say."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from synthetic_bench import SCAN, make_bench

from seggym.agents import baselines, greedy
from seggym.agents.evaluation import evaluate_policies
from seggym.errors import SeggymError
from seggym.kspace import view_orders
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.masks import random_acquired
from seggym.kspace.points import block_centres
from seggym.kspace.radial import GOLDEN_ANGLE, spoke_angles

SCANS = {
    "radial": {**SCAN, "trajectory": "radial", "spokes": 18},
    "golden": {**SCAN, "trajectory": "radial", "spokes": 17, "angles": "golden"},
    "points": {**SCAN, "trajectory": "points", "block": 4},
}
CASES = [(scan, name) for scan, options in SCANS.items() for name in baselines.offered(options["trajectory"])]


def bench_of(scan):
    bench = make_bench()
    return dataclasses.replace(bench, settings=dataclasses.replace(bench.settings, acquisition=SCANS[scan]))


def ground_of(scan, folder):
    return bench_of(scan).ground(3, cache=folder, progress=False, max_slices=4, window=4)


def play(policy, engine, length):
    greedy.begin_training_episodes(engine, length)
    policy.begin(engine)
    views = []
    for _ in range(length):
        legal = engine.action_mask()
        views.append(policy.act(engine, {}, legal))
        assert legal.gather(1, views[-1][:, None]).all()
        engine.step(views[-1])
    return torch.stack(views, 1)


def test_each_trajectory_has_its_own():
    assert "golden_angle" not in baselines.offered("lines")
    assert set(baselines.offered("radial")) == {
        *("random", "equispaced", "sequential", "golden_angle", "population_greedy", "one_step_greedy")
    }
    assert set(baselines.offered("points")) == {
        *("random", "variable_density", "centre_out", "energy_following", "population_greedy", "one_step_greedy")
    }


@pytest.mark.parametrize(("scan", "name"), CASES)
def test_every_baseline_plays_legally_to_the_last_view(scan, name, tmp_path):
    (policy,) = baselines.make_baselines([name], ground_of(scan, tmp_path))
    bench = bench_of(scan)
    engine = bench.make_engine(bench.settings, 2)
    left = engine.num_lines - len(engine.acquisition.initial_views)
    play(policy, engine, left)
    assert engine.acquired.all()


def test_others_are_refused(tmp_path):
    with pytest.raises(SeggymError, match="trajectory='radial'"):
        baselines.make_baselines(["partial_fourier"], ground_of("radial", tmp_path))


@pytest.mark.parametrize("scan", SCANS)
def test_orders_are_permutations_that_begin_with_the_initial_views(scan):
    acquisition, rng = Acquisition(**SCANS[scan]), np.random.default_rng(0)
    views, initial = acquisition.num_views, acquisition.initial_views
    plain = view_orders.plain_order(acquisition)
    assert sorted(plain) == list(range(views))
    assert sorted(plain[: len(initial)]) == sorted(initial)
    assert sorted(view_orders.random_order(acquisition, 3.0, rng)) == list(range(views))
    if acquisition.trajectory == "radial":
        for budget in (0, 4, views):
            order = view_orders.equispaced_spokes(acquisition, budget, rng)
            assert sorted(order) == list(range(views))
            assert np.array_equal(order[: len(initial)], initial)
        assert (np.diff(spoke_angles(acquisition)[view_orders.spokes_by_angle(acquisition)]) > 0).all()


def test_golden_angle_takes_the_nearest_free_candidate():
    acquisition = Acquisition(trajectory="radial", spokes=360)
    order = view_orders.golden_angle(acquisition)
    angles = spoke_angles(acquisition)[order]
    for number in range(1, 9):
        turn = abs(angles[2 + number] - number * GOLDEN_ANGLE % math.pi)
        assert min(turn, math.pi - turn) <= math.pi / 360
    golden = dataclasses.replace(acquisition, angles="golden", spokes=9)
    assert view_orders.golden_angle(golden).tolist() == list(range(9))


def test_points_are_measured_from_the_centre():
    acquisition = Acquisition(**SCANS["points"])
    distance = np.hypot(*block_centres(acquisition)[view_orders.points_centre_out(acquisition)].T)
    assert (np.diff(distance[4:]) >= 0).all()
    rng = np.random.default_rng(0)
    first = [view_orders.variable_density_points(acquisition, 6.0, rng)[:8] for _ in range(50)]
    spread = np.hypot(*block_centres(acquisition)[np.concatenate(first)].T).mean()
    assert spread < 0.6 * np.hypot(*block_centres(acquisition).T).mean()


def test_energy_following_extends_the_strongest_neighbour_and_sees_measured_points_only():
    bench = bench_of("points")
    engine = bench.make_engine(bench.settings, 8)
    policy = baselines.RegionGrowing()
    greedy.begin_training_episodes(engine, 6)
    side = 8
    for _ in range(6):
        actions = policy.act(engine, {}, engine.action_mask())
        kept, unmeasured = engine.scanner.energy.clone(), ~engine.acquired
        engine.scanner.energy[unmeasured] = 1e12 * torch.rand_like(kept[unmeasured])
        assert torch.equal(policy.act(engine, {}, engine.action_mask()), actions)
        engine.scanner.energy.copy_(kept)
        for scan, view in enumerate(actions.tolist()):
            scores = {}
            for candidate in (~engine.acquired[scan]).nonzero()[:, 0].tolist():
                row, column = divmod(candidate, side)
                beside = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
                known = [r * side + c for r, c in beside if 0 <= r < side and 0 <= c < side]
                known = [other for other in known if engine.acquired[scan, other]]
                if known:
                    scores[candidate] = max(float(kept[scan, other]) for other in known)
            assert scores[view] == max(scores.values())
        engine.step(actions)


@pytest.mark.parametrize("scan", SCANS)
def test_training_masks_hold_the_initial_views_and_all_kinds(scan):
    acquisition = Acquisition(**SCANS[scan])
    masks = random_acquired(acquisition, 400, np.random.default_rng(0))
    assert masks.shape == (400, acquisition.num_views)
    assert masks[:, acquisition.initial_views].all()
    measured = masks.sum(1) - len(acquisition.initial_views)
    assert 0.08 < (masks.all(1)).mean() < 0.22
    assert 0.5 < (measured <= acquisition.num_views // 4).mean() < 0.9
    # Where not all are measured, no view is always there and none never.
    some = np.delete(masks[~masks.all(1)], acquisition.initial_views, 1).mean(0)
    assert 0.02 < some.min() < some.max() < 0.9


@pytest.mark.parametrize(("scan", "name"), [("radial", "golden_angle"), ("points", "centre_out")])
def test_policies_are_evaluated_in_views(scan, name, tmp_path):
    bench = bench_of(scan)
    policies = baselines.make_baselines([name, "random"], ground_of(scan, tmp_path))
    most = bench.settings.scan.num_views - len(bench.settings.scan.initial_views)
    with pytest.raises(SeggymError, match=f"b <= {most}"):
        evaluate_policies(bench, policies, [1, most + 1], progress=False)
    result = evaluate_policies(bench, policies, [1, 3], progress=False, surface_budgets=[])
    table = result.table()
    assert name in table
    assert "full_kspace" in table
    measured = next(policy for policy in result.policies if policy.name == name).runs[0]["lines"]
    order = view_orders.plain_order(bench.settings.scan)
    assert (measured == order[len(bench.settings.scan.initial_views) :][:3]).all()
