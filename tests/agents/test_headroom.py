"""The tables of docs/headroom.md: areas, gains, choices per slice, and lines saved by stopping, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_bench import SCAN, make_bench

from benchmarks import stopping
from benchmarks.headroom import measuring, scans, tables
from benchmarks.headroom.measuring import ChosenPerSlice, Ground
from benchmarks.headroom.scans import FEATURES, Options
from benchmarks.headroom.training import trained_policies, training_settings
from seggym.agents.bench import open_bench, settings_of
from seggym.agents.echo_baselines import EchoFollowing, EntropyStop
from seggym.agents.models import TrainSettings
from seggym.agents.policies import FixedOrder
from seggym.agents.snapshots import load_policy
from seggym.agents.training import train
from seggym.errors import SeggymError
from seggym.kspace import orders
from seggym.kspace.acquisition import Acquisition

OPTIONS = Options(cohort="phantom", reward_model="phantom-hard", budget=6, every=3)


def ground(options=OPTIONS, **kwargs):
    bench = make_bench(**{"budget": options.budget, **kwargs})
    return Ground(bench, options, "test", sorted(set(bench.stack.volumes)))


def test_area_weights_are_those_of_the_mean_over_all_budgets():
    np.testing.assert_allclose(measuring.area_weights([0, 1, 2, 3, 4]), [0, 0.25, 0.25, 0.25, 0.25])
    # Linear between 0, 2 and 4: budgets 1..4 are (q0 + q2) / 2, q2, (q2 + q4) / 2, q4.
    np.testing.assert_allclose(measuring.area_weights([0, 2, 4]), [0.125, 0.5, 0.375])


def test_budgets_end_with_the_last_one():
    assert Options("phantom", "x", budget=24, every=8).budgets == (8, 16, 24)
    assert Options("phantom", "x", budget=10, every=4).budgets == (4, 8, 10)
    with pytest.raises(SeggymError, match="features="):
        _ = Options("phantom", "x", features="nonsense").chosen


def test_orders_hold_every_line_and_go_around_the_echo():
    bench = make_bench()
    found = {order.name: order.order for order in measuring.fixed_orders(bench)}
    assert found["around +1"][:4].tolist() == [17, 18, 16, 19]
    np.testing.assert_array_equal(measuring._around(32, 0), orders.centre_out(32))
    assert found["one-sided -"][1:4].tolist() == [15, 14, 13]


def test_every_feature_is_a_scan():
    for name, (scan, _) in FEATURES.items():
        Acquisition(matrix=128, crop=96, **{**scans._PLAIN, **scan}), name
        _, kwargs = scans.environment(OPTIONS, name, ("acquired",))
        assert kwargs["acquisition"]["matrix"] == 128


def test_a_choice_per_slice_follows_each_slices_way():
    here = ground()
    ways = [FixedOrder("up", np.arange(32)), FixedOrder("down", np.arange(32)[::-1])]
    choice = torch.arange(8) % 2
    result = here.run(ChosenPerSlice(ways, choice)).runs[0]["lines"]
    up, down = (here.run(way).runs[0]["lines"] for way in ways)
    np.testing.assert_array_equal(result[::2], up[::2])
    np.testing.assert_array_equal(result[1::2], down[1::2])


def test_the_privileged_choice_has_the_larger_area_by_network_a():
    here = ground()
    ways = measuring.fixed_orders(here.bench)[:3]
    choice = measuring._best_per_slice(here, ways)
    areas = np.stack([here.slice_areas(way) for way in ways])
    np.testing.assert_allclose(here.slice_areas(ChosenPerSlice(ways, choice)), areas.max(0), atol=1e-6)


def test_gains_are_paired_by_patient():
    patients = ["a", "a", "b"]
    base = np.array([[0.5, 0.7, 0.2]])
    # Patient a gains .1 on average, b loses .3.
    assert tables._gain(base + np.array([[0.0, 0.2, -0.3]]), base, patients).startswith("-0.100 [-0.300, +0.100]")
    assert tables._gain(None, base, patients) == ""


def test_the_fixed_budget_of_equal_quality():
    points = np.array([0.0, 4.0, 8.0])
    curve = np.array([[0.2, 0.6, 0.5]] * 4)
    found = stopping.fixed_budget(points, curve, np.array([0.1, 0.4, 0.6, 0.9]))
    # Below the first point; half way to the second; at it; never.
    np.testing.assert_allclose(found, [0, 2, 4, 8])


def test_what_is_saved_is_what_the_fixed_budget_has_more():
    curves = np.array([[0.0, 0.0], [0.4, 0.4], [0.8, 0.8]])
    found = stopping.saving([0, 10, 20], curves, np.array([0.4, 0.4]), np.array([4.0, 6.0]), ["a", "b"])
    assert (found.used.mean, found.budget.mean, found.saved.mean) == pytest.approx((5, 10, 5))
    assert (found.saved.low, found.saved.high) == pytest.approx((4, 6))
    # A policy that stops where a fixed budget would end saves nothing.
    same = stopping.saving([0, 10, 20], curves, np.array([0.4, 0.4]), np.array([10.0, 10.0]), ["a", "b"])
    assert same.saved[:3] == pytest.approx((0, 0, 0))


def test_lines_used_are_counted_by_volume_and_never_stopping_uses_all():
    options = Options(cohort="phantom", reward_model="phantom-hard", budget=6, every=1)
    here = ground(options, stop_action=True, acquisition=SCAN)
    order = EchoFollowing()
    none = stopping.measure(here, EntropyStop(order, 0.0), stopping.NeverStopping(order))
    assert none["used"] == [6.0] * 4
    for net in ("A", "B"):
        np.testing.assert_allclose(none["dice"][net], none["curves"][net][-1])
    at_once = stopping.measure(here, EntropyStop(order, 10.0), order)
    assert at_once["used"] == [0.0] * 4
    np.testing.assert_allclose(at_once["dice"]["B"], none["curves"]["B"][0])


def test_a_result_is_read_again_only_under_its_own_key(tmp_path):
    key = scans.key_of(OPTIONS, "echo shift 12")
    assert key != scans.key_of(OPTIONS, "echo shift 4")
    other = Options(**{**vars(OPTIONS), "out": "elsewhere", "features": "plain"})
    assert key == scans.key_of(other, "echo shift 12")
    path, found = tmp_path / "result.json", []

    def find():
        found.append(1)
        return {"value": len(found)}

    assert scans.kept(path, key, find)["value"] == 1
    assert scans.kept(path, key, find)["value"] == 1
    assert scans.kept(path, {**key, "budget": 5}, find)["value"] == 2


def test_a_policy_that_was_trained_to_stop_is_compared_with_itself(tmp_path):
    kwargs = {
        "reward_model": "phantom-hard",
        "cohort_options": {"patients": 6, "test_patients": 1},
        "budget": 4,
        "observation": ["energy", "corrupted", "acquired", "axis", "budget"],
        "stop_action": True,
        "line_time": 1000.0,
        "time_cost": 0.01,
        "device": "cpu",
    }
    settings = TrainSettings(
        run_dir=str(tmp_path),
        env_id="KSpaceSeg-Phantom-Hard-v0",
        env_kwargs=kwargs,
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 8, "batch_size": 16},
        network={"extractor": "echo", "extractor_kwargs": {}, "net_arch": {"pi": [], "vf": [16]}, "activation": "tanh"},
        prior_strength=6.0,
        total_steps=32,
        num_envs=4,
        eval_every=0,
        device="cpu",
    )
    policy = load_policy(train(settings) / "last")
    bench = open_bench(settings.env_id, kwargs)
    options = Options(cohort="phantom", reward_model="phantom-hard", budget=4, every=2)
    here = Ground(bench, options, "test", sorted(set(bench.stack.volumes))[:1])
    found = stopping.measure(here, policy, stopping.NeverStopping(policy))
    assert 0 <= found["used"][0] <= 4
    assert np.asarray(found["curves"]["B"]).shape == (3, 1)
    free = here.run(stopping.NeverStopping(policy)).runs[0]
    assert (free["lines"] >= 0).all()
    assert free["illegal"] == 0


@pytest.mark.parametrize("name", FEATURES)
def test_a_policy_observes_what_its_scan_has_and_nothing_that_is_hidden(name):
    settings = training_settings(replace(OPTIONS, steps=64), name, seed=3)
    observed = settings.env_kwargs["observation"]
    assert ("corrupted" in observed) == (name == "all together" or "flagged" in name)
    assert ("axis" in observed) == (name == "all together" or "axis" in name)
    assert (settings.evolution is None) == ("chosen" in name)
    assert settings.env_kwargs["acquisition"] == scans.environment(OPTIONS, name, ())[1]["acquisition"]
    moves = name in ("echo shift 12", "all together")
    assert settings.network["extractor_kwargs"]["start"] == ({} if moves else {"off_dc": -2.0})
    # The environment takes them.
    settings_of(settings.env_id, settings.env_kwargs)


def test_without_steps_nothing_is_trained():
    assert trained_policies(OPTIONS, "plain") == []


def test_training_slices_are_spread_over_patients():
    bench = make_bench(budget=6)
    options = Options(cohort="phantom", reward_model="phantom-hard", budget=6, every=3, slices=2)
    train = Ground(bench, options, "train")
    assert train.cases.samples.tolist() == [0, 4]
    assert train.cases.patients == ["patient0", "patient1"]
    every = Ground(bench, OPTIONS, "test")
    order = measuring.fixed_orders(bench)[0]
    np.testing.assert_allclose(train.slice_areas(order), every.slice_areas(order)[[0, 4]], atol=1e-6)
