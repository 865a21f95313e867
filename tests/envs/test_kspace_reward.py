"""Rewards add up to what they claim, for every objective and kind of reward."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from seggym.envs.kspace.environment import KSpaceVectorEnv
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.kspace import simulation

COUNT = 6


def episodes(engine, seed=3, **stop):
    """Play every environment to its end; per environment the list of (rewards, parts, qualities, info at the end)."""
    env = KSpaceVectorEnv(COUNT, engine=engine, autoreset_mode="SameStep")
    _, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    first = [float(value) for value in info["quality"]]
    budgets = info["budget"].tolist()
    rewards, qualities = [[] for _ in range(COUNT)], [[value] for value in first]
    parts = [{} for _ in range(COUNT)]
    ended = np.zeros(COUNT, bool)
    while not ended.all():
        actions = [rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()]
        for slot, when in stop.get("stop_at", {}).items():
            if len(rewards[slot]) == when:
                actions[slot] = engine.num_lines
        _, reward, terminated, truncated, info = env.step(np.array(actions))
        assert not truncated.any()
        for slot in np.flatnonzero(~ended):
            rewards[slot].append(reward[slot])
            for name, values in info["reward_parts"].items():
                parts[slot].setdefault(name, []).append(float(values[slot]))
            last = info["final_info"] if terminated[slot] else info
            qualities[slot].append(float(last["quality"][slot]))
        ended |= terminated
    return rewards, parts, qualities, budgets


SETTINGS = [
    {},
    {"lambda_recon": 1.0},
    {"lambda_seg": 0.0, "lambda_recon": 1.0, "recon_metric": "psnr"},
    {"lambda_seg": 0.0, "lambda_recon": 1.0, "recon_metric": "nmse"},
    {"seg_metric": "dice"},
    {"seg_metric": "iou", "absent_weight": 0.0},
]


@pytest.mark.parametrize("reward", ["dense", "terminal"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_rewards_sum_to_the_final_minus_the_initial_quality(make_engine, settings, reward):
    rewards, parts, qualities, budgets = episodes(make_engine(COUNT, reward=reward, **settings))
    for slot in range(COUNT):
        assert len(rewards[slot]) == budgets[slot]
        assert sum(parts[slot]["quality"]) == pytest.approx(qualities[slot][-1] - qualities[slot][0], abs=1e-9)
        assert rewards[slot] == pytest.approx(parts[slot]["quality"])
        if reward == "terminal":
            assert not any(rewards[slot][:-1])
        else:
            np.testing.assert_allclose(parts[slot]["quality"], np.diff(qualities[slot]), atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
def test_area_rewards_sum_to_the_area_minus_the_initial_quality(make_engine, settings):
    rewards, _, qualities, budgets = episodes(make_engine(COUNT, objective="area", **settings))
    for slot in range(COUNT):
        assert len(qualities[slot]) == budgets[slot] + 1
        area = np.mean(qualities[slot][1:])
        assert sum(rewards[slot]) == pytest.approx(area - qualities[slot][0], abs=1e-9)


def test_a_terminal_reward_has_no_area():
    with pytest.raises(SeggymError, match="reward=terminal and objective=area exclude each other"):
        KSpaceSettings("phantom", reward_model="phantom", reward="terminal", objective="area")


def test_an_area_of_an_early_stop_holds_the_last_quality(make_engine):
    engine = make_engine(COUNT, objective="area", stop_action=True, budget=8, role="all")
    rewards, _, qualities, budgets = episodes(engine, stop_at={0: 0, 1: 3, 2: 5})
    for slot, lines in ((0, 0), (1, 3), (2, 5)):
        assert len(rewards[slot]) == lines + 1
        held = qualities[slot][1:] + [qualities[slot][-1]] * (budgets[slot] - len(rewards[slot]))
        assert sum(rewards[slot]) == pytest.approx(np.mean(held) - qualities[slot][0], abs=1e-9)


def test_stopping_gains_nothing_and_ends_the_scan(make_engine):
    engine = make_engine(COUNT, stop_action=True, budget=8)
    rewards, _, qualities, _ = episodes(engine, stop_at={0: 2})
    assert len(rewards[0]) == 3
    assert rewards[0][-1] == 0
    assert sum(rewards[0]) == pytest.approx(qualities[0][-1] - qualities[0][0], abs=1e-9)


def test_level_reward_is_that_of_asmr(make_engine):
    """f(Q) = sign(Q) (sqrt(|Q| + 1) - 1) + 0.001 Q from the step after the delay on, 0 before."""
    engine = make_engine(COUNT, reward="level", level_delay=4, budget=9, lambda_recon=0.5)
    rewards, parts, qualities, _ = episodes(engine)
    assert all(set(own) == {"level"} for own in parts), "a level is no gain in quality, and is not called one"
    for slot in range(COUNT):
        for step, (reward, quality) in enumerate(zip(rewards[slot], qualities[slot][1:], strict=True), start=1):
            expected = np.sign(quality) * (np.sqrt(abs(quality) + 1) - 1) + 0.001 * quality if step > 4 else 0.0
            assert reward == pytest.approx(expected, abs=1e-12)


def test_quality_is_the_weighted_sum_of_its_parts(make_engine):
    key = torch.tensor([4])
    values = {}
    for name, seg, recon in (("seg", 1.0, 0.0), ("recon", 0.0, 1.0), ("both", 0.7, 0.2)):
        engine = make_engine(1, lambda_seg=seg, lambda_recon=recon)
        engine.begin(torch.tensor([0]), engine.draw(key))
        values[name] = float(engine.quality[0])
    assert values["both"] == pytest.approx(0.7 * values["seg"] + 0.2 * values["recon"], abs=1e-12)


def test_soft_dice_quality_by_hand(make_engine, make_stack):
    """Mean smoothed Dice of the classes present, minus ten times the mean probability of the absent ones."""
    engine = make_engine(1, acquisition={"matrix": 48, "crop": 32})
    for sample in range(len(engine.stack)):
        episode = engine.draw(torch.tensor([sample]))
        episode.samples[:] = sample
        engine.begin(torch.tensor([0]), episode)
        probabilities = engine.networks[0](engine.magnitude).probabilities[0].numpy()
        labels = engine.stack.labels[sample].numpy()
        scores, penalty = [], 0.0
        for label in (1, 2, 3):
            truth, mass = labels == label, probabilities[label]
            if truth.any():
                scores.append((2 * mass[truth].sum() + 1) / (mass.sum() + truth.sum() + 1))
            else:
                penalty += 10 * mass.mean()
        expected = (np.mean(scores) if scores else 0.0) - penalty
        assert float(engine.quality[0]) == pytest.approx(expected, abs=1e-9)


def test_ssim_in_single_precision_is_that_of_scikit_image(make_engine, play):
    engine = make_engine(4, dtype=torch.float32, lambda_seg=0.0, lambda_recon=1.0, budget=20)
    play(engine, [1, 2, 3, 4], 15)
    clean = simulation.encode(engine.stack, engine.samples, engine.keys, engine.acquisition, torch.float32)
    references = simulation.zero_filled(clean, None, engine.acquisition).double().numpy()
    for slot in range(4):
        extent = float(engine.stack.data_range[engine.samples[slot]])
        image = engine.magnitude[slot].double().numpy()
        expected = structural_similarity(references[slot], image, data_range=extent)
        assert float(engine.quality[slot]) == pytest.approx(expected, abs=1e-6)
