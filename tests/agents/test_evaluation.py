"""Evaluation on a synthetic bench: the numbers against direct computation, protocols, caching and refusals."""

import json

import numpy as np
import pytest
import torch
from synthetic_bench import make_bench

import seggym
from seggym.agents import bench as benches
from seggym.agents import evaluation, rollouts
from seggym.agents.baselines import make_baselines, offered
from seggym.agents.evaluation import evaluate_policies
from seggym.agents.policies import CallablePolicy, FixedOrder, load_callable
from seggym.errors import SeggymError
from seggym.kspace import orders, simulation
from seggym.reward_models import metrics


def nearest_line(observation, action_mask):
    """The legal line nearest to DC: what a user would write."""
    distance = np.abs(np.arange(action_mask.shape[1]) - 16 - 0.1)
    return np.where(action_mask, distance, np.inf).argmin(1)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    bench = make_bench()
    ground = bench.ground(3, cache=tmp_path_factory.mktemp("tuned"), progress=False, max_slices=4, window=4)
    policies = [CallablePolicy(nearest_line), *make_baselines(None, ground)]
    return evaluate_policies(bench, policies, [1, 3], progress=False, surface_budgets=[3])


def test_scores_are_those_of_a_direct_computation(result):
    bench = make_bench()
    order = orders.centre_out(32)
    cases = result.cases
    row, budget = 3, 2
    acquired = torch.zeros(1, 32, dtype=torch.bool)
    acquired[0, order[: 3 + budget]] = True
    index, key = cases.samples[row : row + 1], cases.keys[row : row + 1]
    scan = bench.settings.scan
    measured = simulation.encode(bench.stack, index, key, scan, torch.float32)
    measured = measured + simulation.thermal_noise(bench.stack, index, key, scan)
    magnitude = simulation.zero_filled(measured, acquired, scan)
    for net, network in (("A", bench.make_engine(bench.settings, 1).networks[0]), ("B", bench.independent)):
        labels = network(magnitude).probabilities.argmax(1)
        expected = metrics.dice_per_class(labels, metrics.encode_truth(bench.stack.labels[index], 3))[0].numpy()
        run = next(policy for policy in result.policies if policy.name == "centre_out").runs[0]
        np.testing.assert_allclose(run[f"{net}/slice/dice"][budget, row], expected, atol=0.02)


def test_the_objective_of_training_changes_no_score(result):
    """An area under the curve has no terminal reward, which is what an evaluation runs with."""
    policy = CallablePolicy(nearest_line)
    area = evaluate_policies(make_bench(objective="area"), [policy], [1, 3], progress=False, surface_budgets=[])
    mine = next(p for p in result.policies if p.name == policy.name)
    np.testing.assert_array_equal(area.policies[0].values("A", "slice", "dice"), mine.values("A", "slice", "dice"))


def test_an_external_function_equals_the_baseline_that_it_imitates(result):
    mine, centre = (next(p for p in result.policies if p.name == name) for name in ("nearest_line", "centre_out"))
    assert np.array_equal(mine.runs[0]["lines"], centre.runs[0]["lines"])
    np.testing.assert_array_equal(mine.values("B", "slice", "dice"), centre.values("B", "slice", "dice"))
    contrast = next(c for c in result.contrasts if c["other"] == "centre_out")
    assert contrast["mean"] == 0


def test_every_policy_starts_from_the_same_images(result):
    first = [p.runs[0]["image/slice/ssim"][0] for p in result.policies if p.kind != "ceiling"]
    assert len(first) == len(offered("lines")) + 1
    assert all(np.array_equal(first[0], other) for other in first)


def test_image_scores_of_volumes_are_those_of_their_slices_together(result):
    policy = result.policies[0]
    for number, rows in enumerate(result.cases.volumes.values()):
        ssim, psnr = (policy.values("image", "slice", metric)[0][:, rows] for metric in ("ssim", "psnr"))
        assert policy.values("image", "volume", "ssim")[0][:, number] == pytest.approx(ssim.mean(1), abs=1e-6)
        expected = -10 * np.log10((10 ** (-psnr / 10)).mean(1))
        assert policy.values("image", "volume", "psnr")[0][:, number] == pytest.approx(expected, abs=1e-4)


def test_surfaces_are_told_per_class(result):
    names = {row["metric"] for row in result.rows}
    assert {f"hd95_{name}" for name in result.cases.class_names[1:]} <= names
    for policy in result.policies:
        classes = [policy.values("A", "slice", f"hd95_{index}") for index in range(1, len(result.cases.class_names))]
        stacked = np.stack(classes, -1)
        known = ~np.isnan(stacked).all(-1)
        mean = np.nanmean(stacked[known], -1)
        assert policy.values("A", "slice", "hd95")[known] == pytest.approx(mean)


def test_no_policy_measures_a_line_twice(result):
    for policy in result.policies:
        if policy.kind != "ceiling":
            lines = policy.runs[0]["lines"]
            assert (lines >= 0).all()
            assert all(len(set(row)) == len(row) for row in lines.tolist())
            assert not np.isin(lines, orders.initial_block(32, 3)).any()


def test_greedy_reference_is_apart_and_not_in_the_family(result):
    assert [p.name for p in result.policies if p.privileged] == ["one_step_greedy"]
    for contrast in result.contrasts:
        assert (contrast["p_holm"] is None) == (contrast["other"] == "one_step_greedy")
    ranked = [policy.name for policy in result.ranked()]
    assert ranked[-2:] == ["one_step_greedy", "full_kspace"]


def test_area_and_lines_to_the_target(result):
    policy = next(p for p in result.policies if p.name == "random")
    curves = policy.values("A", "volume", "dice")[0]
    np.testing.assert_allclose(result.area_values(policy, "A", "volume")[0], curves[1:].mean(0))
    full = result.ceiling.values("A", "volume", "dice")[0, 0]
    lines, reached = result.lines_values(policy, "A")
    for volume in range(curves.shape[1]):
        hits = [point for point in range(4) if curves[point, volume] >= 0.95 * full[volume]]
        assert lines[0, volume] == (hits[0] if hits else 4)
        assert reached[0, volume] == bool(hits)


def test_presentations(result):
    content = json.loads(json.dumps(result.to_json()))
    assert content["simulated_kspace"] is True
    assert {row["net"] for row in content["results"]} == {"A", "B", "image"}
    assert result.to_csv().splitlines()[0] == "policy,net,budget,metric,level,mean,low,high,n"
    table = result.table()
    assert all(name in table for name in (*offered("lines"), "nearest_line", "full_kspace", "simulated"))
    for net in ("A", "B"):
        assert result.find("random", net, 3, "hd95", "volume") is not None
        assert result.find("random", net, 0, "dice_b", "slice") is not None


def test_budgets_that_a_policy_knows_are_run_again():
    bench = make_bench()
    seen = set()

    def watch(observation, action_mask):
        seen.add(round(float(observation["budget"][0, 0]) * 32))
        return action_mask.argmax(1)

    watched = CallablePolicy(watch)
    result = evaluate_policies(bench, [watched], [2, 4], progress=False, surface_budgets=[])
    assert seen == {1, 2, 3, 4}
    assert result.policies[0].points == (0, 2, 3, 4)
    plan = rollouts.RunPlan(result.cases, range(2, 5), 4)
    assert plan.runs(watched) == [(2, (2,)), (3, (3,)), (4, (4,))]
    once = rollouts.RunPlan(result.cases, range(2, 5), 4, once=True)
    assert once.runs(watched) == [(4, (2, 3, 4))]


def test_a_batch_that_is_not_full_changes_nothing(monkeypatch):
    bench = make_bench()
    policy = FixedOrder("mine", orders.centre_out(32)[::-1])
    together = evaluate_policies(bench, [policy], [1, 2], progress=False, surface_budgets=[])
    monkeypatch.setattr(evaluation, "BATCH", 5)
    apart = evaluate_policies(bench, [policy], [1, 2], progress=False, surface_budgets=[])
    for key, values in together.policies[0].runs[0].items():
        np.testing.assert_allclose(apart.policies[0].runs[0][key], values, atol=1e-4)


def test_finished_policies_are_not_run_again(tmp_path, monkeypatch):
    bench = make_bench()
    policy = FixedOrder("mine", orders.centre_out(32))
    options = {"progress": False, "cache": tmp_path, "surface_budgets": []}
    first = evaluate_policies(bench, [policy], [1, 2], **options)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    monkeypatch.setattr(evaluation, "grade_policy", None)
    monkeypatch.setattr(evaluation, "grade_full_kspace", None)
    second = evaluate_policies(bench, [policy], [1, 2], **options)
    assert first.to_csv() == second.to_csv()
    with pytest.raises(TypeError):
        evaluate_policies(bench, [policy], [1, 3], **options)


def test_training_runs_are_aggregated():
    bench = make_bench()
    pair = [FixedOrder("mine", orders.centre_out(32)), FixedOrder("mine", orders.centre_out(32)[::-1])]
    result = evaluate_policies(
        bench, [pair, FixedOrder("centre_out", orders.centre_out(32))], [1, 2], progress=False, surface_budgets=[]
    )
    values = result.area_values(result.policies[0], "A", "volume")
    assert values.shape == (2, 4)
    other = result.area_values(result.policies[1], "A", "volume")
    contrast = next(c for c in result.contrasts if (c["net"], c["level"]) == ("A", "volume"))
    assert contrast["mean"] == pytest.approx((values - other).mean(), abs=1e-6)


def test_without_networks_the_image_is_scored():
    bench = make_bench(segment=False)
    result = evaluate_policies(bench, [FixedOrder("mine", orders.centre_out(32))], [1, 2], progress=False)
    assert result.nets == []
    assert "area of SSIM" in result.table()


@pytest.mark.parametrize("wrong", [[0, 3], [3, 1], [1, 30], [1], [1, 2.5]])
def test_wrong_ranges_are_refused(wrong):
    with pytest.raises(SeggymError, match="eval_range"):
        evaluate_policies(make_bench(), [FixedOrder("mine", orders.centre_out(32))], wrong, progress=False)


@pytest.mark.parametrize("spec", ["nothing", "no_such_module_here:f", "math:nothing", ":f", "math:pi"])
def test_wrong_functions_are_refused(spec):
    with pytest.raises(SeggymError, match="policy="):
        load_callable(spec)


def test_a_function_must_return_one_line_per_scan():
    policy = CallablePolicy(lambda observation, mask: np.zeros(3), name="bad")
    with pytest.raises(SeggymError, match="expected 8 integers"):
        evaluate_policies(make_bench(), [policy], [1, 1], progress=False)


def test_two_policies_of_one_name_are_refused():
    pair = [FixedOrder("mine", orders.centre_out(32)), CallablePolicy(nearest_line, name="mine")]
    with pytest.raises(SeggymError, match="different names"):
        evaluate_policies(make_bench(), pair, [1, 1], progress=False)


def test_observing_the_network_changes_no_score():
    order = FixedOrder("mine", orders.centre_out(32))
    plain = evaluate_policies(make_bench(), [order], [1, 3], progress=False, surface_budgets=[])
    bench = make_bench(observation=["features", "acquired"])
    seen = evaluate_policies(bench, [CallablePolicy(nearest_line, "mine")], [1, 3], progress=False, surface_budgets=[])
    for key, values in plain.policies[0].runs[0].items():
        np.testing.assert_array_equal(seen.policies[0].runs[0][key], values)


def test_unknown_environments_are_refused():
    with pytest.raises(SeggymError, match="not registered"):
        benches.settings_of("NoSuchEnv-v0")
    with pytest.raises(SeggymError, match="no k-space environment"):
        benches.settings_of("CartPole-v1")
    with pytest.raises(SeggymError, match="env_id is missing"):
        seggym.evaluate(nearest_line)
