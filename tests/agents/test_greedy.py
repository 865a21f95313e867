"""Greedy searches against exhaustive ones that really take the step."""

import json

import numpy as np
import pytest
import torch
from synthetic_bench import make_bench

from seggym.agents import greedy
from seggym.envs.kspace.lookahead import try_lines
from seggym.envs.kspace.segmentation import segment
from seggym.reward_models.frozen import Prediction


def begun(count=3, **options):
    bench = make_bench(**options)
    engine = bench.make_engine(bench.settings, count)
    greedy.begin_training_episodes(engine, 3)
    return engine


@pytest.mark.parametrize("options", [{}, {"lambda_recon": 0.5}, {"segment": False}])
def test_trying_a_line_equals_measuring_it_and_changes_nothing(options):
    engine = begun(**options)
    before = engine.state_dict()
    slots, lines = torch.tensor([0, 1, 2, 0]), torch.tensor([5, 12, 20, 25])
    tried = try_lines(engine, slots, lines)
    assert all(torch.equal(value, before[key]) for key, value in engine.state_dict().items())
    engine.step(lines[:3])
    torch.testing.assert_close(tried[:3], engine.quality)


def test_one_step_greedy_takes_the_best_of_all_lines_in_its_window():
    window = 5
    chosen = greedy.OneStepGreedy(window).act(engine := begun(), {}, engine.action_mask())
    qualities = np.full((3, 32), -np.inf)
    for line in range(16 - window, 16 + window + 1):
        if line not in (15, 16, 17):
            trial = begun()
            trial.step(torch.full((3,), line))
            qualities[:, line] = trial.quality
    best = qualities.max(1)
    np.testing.assert_allclose(qualities[np.arange(3), chosen], best, atol=1e-6)


def test_population_greedy_takes_the_best_mean():
    order = greedy.population_greedy(begun(), 2, window=4, progress=False)
    assert sorted(order.tolist()) == list(range(32))
    assert order[:3].tolist() == [15, 16, 17]
    means = {}
    for line in (12, 13, 14, 18, 19, 20):
        trial = begun()
        trial.step(torch.full((3,), line))
        means[line] = trial.quality.mean().item()
    assert means[order[3]] == pytest.approx(max(means.values()), abs=1e-6)


def test_images_are_segmented_by_the_network_of_their_slice():
    def network(value):
        return lambda x: Prediction(torch.full((len(x), 1, 1, 1), value), x[:, 0, :1] + value)

    magnitude = torch.arange(4.0).view(4, 1, 1)
    found = segment([network(10.0), network(20.0)], torch.tensor([1, 0, 1, 0]), magnitude)
    assert found.features[:, 0].tolist() == [20, 11, 22, 13]
    assert found.probabilities.flatten().tolist() == [20, 10, 20, 10]


def test_spread_and_keys():
    assert greedy.evenly_spread(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert greedy.evenly_spread(100, 4).tolist() == [0, 25, 50, 75]
    keys = {greedy.episode_key(purpose, name, repeat) for purpose in "ab" for name in "xy" for repeat in (0, 1)}
    assert len(keys) == 8
    assert min(keys) >= 0


def test_a_search_is_kept_and_a_foreign_file_is_not_believed(tmp_path):
    calls = []

    def search():
        calls.append(1)
        return {"order": [2, 1]}

    key = {"data": "x", "powers": (1, 2)}
    for _ in range(2):
        assert greedy.cached_search(key, search, tmp_path) == {"order": [2, 1]}
    assert len(calls) == 1
    greedy.cached_search({**key, "data": "y"}, search, tmp_path)
    assert len(calls) == 2
    (first, _) = sorted(tmp_path.glob("*.json"))
    first.write_text(json.dumps({"key": "other", "result": {"order": [0]}}))
    greedy.cached_search(key, search, tmp_path)
    greedy.cached_search({**key, "data": "y"}, search, tmp_path)
    assert len(calls) == 3


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="repeated"):
        assert greedy.cached_search({"a": 1}, lambda: {"b": 2}, tmp_path / "file") == {"b": 2}
