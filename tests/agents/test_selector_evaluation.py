"""Selectors and strategies in the same episodes: what is recorded is what happened, and the command resumes."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_selector import SEEN, selector_run, small

from seggym.agents.eval_selector import run
from seggym.agents.selection_evaluation import (
    kept_result,
    mean_result,
    named_strategies,
    open_selection_bench,
    ranked_table,
    run_policy,
    selection_settings,
)
from seggym.agents.selection_replay import replay, replay_rows
from seggym.agents.selection_report import chosen_for_replay
from seggym.agents.selection_results import FILE, load_selection
from seggym.agents.selection_training import episode_keys
from seggym.agents.snapshots import load_policy
from seggym.agents.strategies.registry import STRATEGIES, make_strategy
from seggym.agents.training import train
from seggym.envs.selection.environment import SelectionEnv
from seggym.errors import SeggymError

PHANTOM = "ALSelect-Phantom-v0"


@pytest.fixture
def bench(tmp_path):
    return open_selection_bench(PHANTOM, small(tmp_path), "test", 3, 4)


@pytest.fixture
def snapshot(tmp_path):
    """The folder of a run that has hardly learned anything."""
    return train(selector_run(tmp_path, total_steps=16, eval_every=0))


def by_hand(bench, number, choose):
    """One episode in the single environment: Dice of each volume after every step, and who was chosen."""
    settings = {**vars(bench.settings)}
    env = SelectionEnv(**settings)
    key = int(episode_keys(4)[number])
    _, info = env.reset(options={"episodes": [{"budget": bench.budget, "key": key}]})
    dice, names = [env.engine.evaluate(0, "reward").nanmean(-1).numpy()], []
    for _ in range(bench.budget):
        action = choose(env, info)
        names.append(env.engine.pool.table.names[info["candidates"][action]])
        _, _, _, _, info = env.step(action)
        dice.append(env.engine.evaluate(0, "reward").nanmean(-1).numpy())
    return np.array(dice), names, info


def test_a_strategy_is_recorded_as_it_acts(bench):
    strategy = make_strategy("entropy")
    result = run_policy(bench, strategy)
    assert result.samples.tolist() == [5, 6, 7, 8]

    def choose(env, info):
        sample = strategy.query(env.view(), 1).indices[0]
        return int(np.flatnonzero(info["candidates"] == sample)[0])

    for number in (0, 3):
        dice, names, info = by_hand(bench, number, choose)
        assert np.allclose(result.dice[number], dice, atol=1e-5)
        assert [name for step in result.selected[number][1:] for name in step] == names
        assert len(result.selected[number][0]) == 5
        assert result.cost[number, -1] == pytest.approx(info["minutes"])
    assert set(result.patients) <= {"patient001", "patient002", "patient008", "patient012"}
    assert all(v.startswith(f"{p}_") for v, p in zip(result.volumes, result.patients, strict=True))
    assert ((result.foreground >= 0) & (result.foreground <= 1)).all()
    assert (np.diff(result.foreground) >= 0).all()


def test_a_selector_is_recorded_as_it_acts(bench, snapshot):
    policy = load_policy(snapshot)
    result = run_policy(bench, policy)

    def choose(env, info):
        seen = env.engine.observe()
        action, _ = policy.predict(
            {name: seen[name][0].numpy() for name in SEEN} | {"action_mask": info["action_mask"]},
            action_masks=info["action_mask"].astype(bool),
        )
        return int(action)

    dice, names, _ = by_hand(bench, 1, choose)
    assert np.allclose(result.dice[1], dice, atol=1e-5)
    assert [name for step in result.selected[1][1:] for name in step] == names


def test_several_picks_per_query(tmp_path):
    bench = open_selection_bench(PHANTOM, {**small(tmp_path), "samples_per_query": 2}, "test", 3, 2)
    result = run_policy(bench, make_strategy("random"))
    assert result.samples.tolist() == [5, 7, 8]
    assert [[len(step) for step in episode] for episode in result.selected] == [[5, 2, 1]] * 2


def test_the_whole_pool_is_the_end_of_an_episode_that_annotates_all(bench):
    engine = bench.engine.sibling(1, budget=len(bench.engine.pool) - 5, candidates=len(bench.engine.pool))
    engine.begin(torch.zeros(1, dtype=torch.int64), engine.draw(torch.tensor([3])))
    while bool((engine.remaining > 0).all()):
        engine.step(engine.action_mask().int().argmax(1))
    assert np.allclose(engine.evaluate(0, "reward").nanmean(-1).numpy(), bench.full, atol=1e-4)


def test_labels_of_other_samples_change_nothing_but_for_privileged(bench):
    """Every strategy but the privileged chooses the same where the oracle's masks are garbage."""
    before = {name: run_policy(bench, make_strategy(name)).selected for name in ("margin", "kcenter", "label_greedy")}
    oracle = bench.engine.oracle
    masks = oracle._masks
    oracle._masks = 3 - masks
    try:
        after = {name: run_policy(bench, make_strategy(name)).selected for name in before}
    finally:
        oracle._masks = masks
    assert [name for name in before if before[name] != after[name]] == ["label_greedy"]


def test_results_are_kept_and_made_again_for_other_episodes(bench, tmp_path, monkeypatch):
    folder = tmp_path / "margin"
    first = kept_result(bench, make_strategy("margin"), folder)
    content = (folder / FILE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("seggym.agents.selection_evaluation.run_policy", None)
        assert np.array_equal(kept_result(bench, make_strategy("margin"), folder).dice, first.dice)
    longer = open_selection_bench(PHANTOM, small(tmp_path), "test", 3, 5)
    assert kept_result(longer, make_strategy("margin"), folder).dice.shape[0] == 5
    other = open_selection_bench(PHANTOM, {**small(tmp_path), "initial": 4}, "test", 3, 4)
    assert kept_result(other, make_strategy("margin"), folder).samples[0] == 4
    kept_result(bench, make_strategy("margin"), folder)
    assert (folder / FILE).read_bytes() == content


def test_the_table_puts_the_subject_first_and_privileged_last(bench):
    results = {name: run_policy(bench, make_strategy(name)) for name in ("random", "greedy", "margin", "entropy")}
    table = ranked_table(results["random"], [results[name] for name in ("greedy", "entropy", "margin")])
    area = {name: results[name].curves.mean(0) for name in results}
    better = sorted(("entropy", "margin"), key=lambda name: -np.trapezoid(area[name]))
    assert table.names == ("random", *better, "greedy")
    by_name = {(entry["other"], entry["endpoint"]): entry for entry in table.contrasts}
    expected = results["random"].curves[:, -1].mean() - results["greedy"].curves[:, -1].mean()
    assert by_name["greedy", "final"]["mean"] == pytest.approx(expected)
    assert by_name["greedy", "final"]["p_holm"] is None
    assert chosen_for_replay(table, None) == ["random", *better]
    assert chosen_for_replay(table, ["greedy"]) == ["greedy"]
    with pytest.raises(SeggymError, match="margin more than once"):
        ranked_table(results["random"], [results["margin"], results["margin"]])


def test_runs_of_one_method_are_averaged(bench):
    results = [run_policy(bench, make_strategy(name)) for name in ("random", "margin")]
    mean = mean_result(results)
    assert np.allclose(mean.dice, (results[0].dice + results[1].dice) / 2)
    assert mean.selected == results[0].selected


def test_replay_teaches_the_final_sets_and_goes_on(bench, tmp_path):
    """The same as asking the engine; a second call trains nothing; equal sets are one network."""
    options = {"iterations": 2, "widths": [4, 8]}
    results = [run_policy(bench, make_strategy(name)) for name in ("random", "margin")]
    said = []
    found = replay(bench, results, 2, options, tmp_path, say=said.append)
    assert len(said) == 4
    assert all(0 <= value <= 1 for values in found["dice"].values() for value in values)
    assert replay(bench, [*results, results[0]], 2, options, tmp_path, say=said.append)["dice"] == found["dice"]
    assert len(said) == 4
    replay(bench, results, 2, {**options, "iterations": 3}, tmp_path, say=said.append)
    assert len(said) == 8
    with pytest.raises(SeggymError, match="replay_episodes=9, expected 1 to 4"):
        replay(bench, results, 9, options, tmp_path)


def test_rows_of_a_replay():
    rows = replay_rows({"mine": [0.5, 0.7], "other": [0.4, 0.5]})
    assert rows[0]["mean"] == 0
    assert rows[1]["dice"] == pytest.approx(0.45)
    assert rows[1]["mean"] == pytest.approx(0.15)


def values_of(tmp_path, **changes):
    config = OmegaConf.load("configs/eval_selector.yaml")
    del config["defaults"], config["hydra"]
    return {**OmegaConf.to_container(config), "env": None, "episodes": 3, "budget": 2, **changes}


def test_the_command(snapshot, tmp_path):
    values = values_of(
        tmp_path,
        load_from_snapshot_base_dir=str(snapshot),
        strategies=["random", {"name": "kcenter", "features": "pixels"}, "label_greedy"],
        replay="unet",
        replay_episodes=1,
        replay_options={"iterations": 1, "widths": [4, 8]},
    )
    text = run(values)
    folder = snapshot / f"evaluation_{PHANTOM}"
    assert "selector_maskable_ppo" in text
    assert "label_greedy *" in text
    assert "taught to a U-Net, 1 episodes" in text
    assert (folder / "figures" / "learning_curves.png").is_file()
    assert "selector_maskable_ppo" in (folder / "report.html").read_text()
    content = json.loads((folder / "evaluation.json").read_text())
    assert content["role"] == "test"
    assert content["results"][0]["strategy"] == "selector_maskable_ppo"
    assert load_selection(folder / "policies" / "kcenter" / FILE).options["features"] == "pixels"
    # Again, from what is kept.
    assert run(values) == text


def test_another_environment_keeps_what_the_selector_looks_at(snapshot, tmp_path):
    """Twice the training patients, as another cohort would be: the seed makes other phantoms."""
    values = values_of(
        tmp_path,
        load_from_snapshot_base_dir=[str(snapshot)],
        env={
            "id": PHANTOM,
            "kwargs": {"size": 48, "spacing": 4.0, "cohort_options": {"patients": 8, "test_patients": 4, "seed": 3}},
        },
        strategies=["random"],
        output=str(tmp_path / "there"),
    )
    assert "5 to 7 of" in run(values)
    key = json.loads((tmp_path / "there" / "evaluation.json").read_text())["key"]
    assert key["candidates"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "the environment is missing"),
        ({"env": {"id": "KSpaceSeg-Phantom-v0"}, "strategies": ["random", "margin"]}, "selects no samples"),
        ({"env": {"id": PHANTOM}, "strategies": ["random"]}, "nothing to compare"),
        ({"env": {"id": PHANTOM}, "strategies": ["randm"]}, "randm"),
        ({"env": {"id": PHANTOM}, "replay": "vnet"}, "replay='vnet' is unknown"),
        ({"env": {"id": PHANTOM}, "episodes": 1}, "expected at least 2 episodes"),
        ({"env": {"id": "ALSelect-Classification-v0"}}, r"has single images, .*run_al\.py"),
        ({"env": {"id": "ALSelect-Instances-v0"}}, r"has single images, .*run_maskal\.py"),
    ],
)
def test_what_cannot_be_evaluated(tmp_path, changes, message):
    with pytest.raises(SeggymError, match=message):
        run(values_of(tmp_path, **changes))


def test_every_strategy_is_compared_unless_some_are_named():
    assert {strategy.name for strategy in named_strategies(None)} == set(STRATEGIES) - {"skactiveml"}
    assert selection_settings(PHANTOM, {"split_seed": [4, 5]}).split_seed == 4
