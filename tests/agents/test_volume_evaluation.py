"""Training and evaluation where an episode scans a volume."""

import csv

import numpy as np
import pytest
import torch
from synthetic_bench import SCAN, Threshold, make_stack

from seggym.agents.blind import BlindEngine
from seggym.agents.evaluation import Bench, evaluate, evaluate_policies, open_bench
from seggym.agents.extractors import LineExtractor
from seggym.agents.models import TrainSettings
from seggym.agents.policies import CallablePolicy
from seggym.agents.priors import low_frequency_prior
from seggym.agents.report import write_report
from seggym.agents.training import train
from seggym.agents.volume_baselines import volume_baselines
from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.envs.kspace.volumes.engine import VolumeEngine
from seggym.envs.kspace.volumes.environment import volume_observation_space
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.envs.kspace.volumes.table import single_volumes
from seggym.errors import SeggymError
from seggym.reward_models import metrics

CLASSES = ("background", "ring", "disc")
PHANTOMS = {"patients": 5, "test_patients": 2, "seed": 7}


def make_engine(settings, num_envs, stack=None):
    stack = make_stack(patients=3, depth=3) if stack is None else stack
    slices = KSpaceEngine(stack, settings.slice_settings, num_envs * settings.slots, networks=[Threshold()])
    return VolumeEngine(slices, settings, single_volumes(stack, settings.max_slices), num_envs)


def make_bench(slices):
    settings = VolumeSettings(
        cohort="phantom", reward_model="stub", role="test", acquisition=SCAN, budget=3, slices=slices, max_slices=4
    )
    weights = {"fingerprint": "x", "weights": {}, "split": {}}
    return Bench("KSpaceSeg3D-Phantom-v0", settings, make_stack(3, 2, 3), CLASSES, make_engine, Threshold(1.7), weights)


@pytest.mark.parametrize("slices", ["shared", "sequential", "allocate"])
def test_scores_are_those_of_the_images_of_that_many_lines(slices, tmp_path):
    """Centre-out at budget b has b lines in every slice, whatever an action is; its Dice is that of those images."""
    bench = make_bench(slices)
    names = [policy.name for policy in volume_baselines(None, bench.settings)]
    assert names == ["random", "centre_out"] + (["proportional"] if slices == "allocate" else [])
    result = evaluate_policies(bench, volume_baselines(None, bench.settings), [1, 3], progress=False)
    run = next(policy for policy in result.policies if policy.name == "centre_out").runs[0]
    # The scans of the 2-D engine, with the keys of the cases and the first three lines of the order.
    scans = KSpaceEngine(bench.stack, bench.settings.slice_settings, len(bench.stack), networks=[Threshold()])
    cases = result.cases
    every = torch.arange(len(cases))
    scans.begin(every, Episodes(cases.samples, torch.full_like(cases.samples, 9), cases.keys))
    truth = metrics.encode_truth(cases.labels, 3)
    for budget, line in enumerate([18, 14, 19], start=1):
        scans.step(torch.full_like(cases.samples, line))
        expected = metrics.dice_per_class(scans.segmentation.labels, truth)
        np.testing.assert_allclose(run["A/slice/dice"][budget], expected, rtol=1e-5)
        for number, rows in enumerate(cases.volumes.values()):
            whole = metrics.volume_dice(scans.segmentation.labels[rows], cases.labels[rows], 3)
            np.testing.assert_allclose(run["A/volume/dice"][budget, number], whole, rtol=1e-5)
    assert run["lines"][:, :4].tolist() == [[18, 14, 19, -1]] * len(cases)
    assert run["illegal"] == 0
    assert "B/volume/dice" in run
    assert {path.name for path in write_report(result, tmp_path)} >= {"evaluation.json", "report.html"}
    assert "centre_out" in result.table()


def test_proportional_follows_the_predicted_area():
    """Lines per slice are in proportion to what is predicted in the first image, as far as whole lines go."""
    settings = VolumeSettings(
        cohort="phantom", reward_model="stub", acquisition=SCAN, budget=27, slices="allocate", max_slices=4
    )
    engine = make_engine(settings, 2)
    engine.begin(torch.arange(2), Episodes(torch.tensor([0, 3]), torch.tensor([27, 27]), torch.tensor([1, 2])))
    areas = (engine.segmentation.labels > 0).sum((1, 2)).view(2, 4)[:, :3].double()
    policy = volume_baselines(["proportional"], settings)[0]
    policy.begin(engine)
    for _ in range(27):
        engine.step(policy.act(engine, {}, engine.action_mask()))
    weights = areas + 0.1 * areas.mean(1, keepdim=True)
    lines = engine.lines_per_slice()[:, :3]
    assert lines.sum(1).tolist() == [36, 36]
    assert (lines - 36 * weights / weights.sum(1, keepdim=True)).abs().max() <= 1.5
    assert weights.std() > 0
    assert not engine.lines_per_slice()[:, 3].any()


def test_anybodys_function_may_allocate():
    bench = make_bench("allocate")

    def choose(observation, mask):
        assert observation["acquired"].shape == (len(mask), 4, 32)
        return mask.argmax(1)

    result = evaluate_policies(bench, [CallablePolicy(choose)], [1, 2], surface_budgets=(), progress=False)
    assert result.policies[0].kind == "policy"
    lines = result.policies[0].runs[0]["lines"]
    # All of them went to the first slice of each volume: 2 for each of its 3 slices.
    first = [rows[0] for rows in result.cases.volumes.values()]
    assert ((lines >= 0).sum(1)[first] == 6).all()
    assert (lines >= 0).sum() == 6 * len(first)


def test_a_blind_twin_sees_a_volume_of_another_patient():
    """Volumes 0 and 1 are of patient0, 2 of patient1; what was measured stays the twin's own."""
    settings = VolumeSettings(cohort="phantom", reward_model="stub", acquisition=SCAN, max_slices=4, budget=5)
    engine = make_engine(settings, 3)
    engine.begin(torch.arange(3), Episodes(torch.tensor([0, 1, 2]), torch.full((3,), 5), torch.tensor([1, 2, 3])))
    engine.step(torch.tensor([3, 9, 20]))
    own, seen = engine.observe(), BlindEngine(engine).observe()
    for part in ("acquired", "budget", "slices"):
        assert torch.equal(seen[part], own[part])
    for part in ("energy", "probability_grid", "slice_probabilities"):
        assert torch.equal(seen[part], own[part][[2, 2, 0]])


def test_a_line_is_scored_by_its_own_slice():
    """Exchanging two slices exchanges their scores; the head starts from the same prior for every slice."""
    settings = VolumeSettings(
        cohort="phantom", reward_model="stub", acquisition=SCAN, slices="allocate", max_slices=4, budget=5
    )
    engine = make_engine(settings, 2)
    space = volume_observation_space(engine)
    extractor = LineExtractor(space)
    torch.nn.init.normal_(extractor.score[-1].weight)
    engine.begin(torch.arange(2), Episodes(torch.tensor([0, 1]), torch.tensor([5, 5]), torch.tensor([1, 2])))
    engine.step(torch.tensor([3, 32 + 9]))
    seen = engine.observe()
    # The context is the same for both orders of slices: only what belongs to a slice moves.
    extractor.context.forward = lambda observations: torch.zeros(2, extractor.context.features_dim)
    scores = extractor(seen)[:, : 4 * 32].view(2, 4, 32)
    order = torch.tensor([1, 0, 2, 3])
    moved = {
        name: value.view(2, 4, -1)[:, order].reshape(value.shape)
        if name not in ("budget", "probability_grid")
        else value
        for name, value in seen.items()
    }
    again = extractor(moved)[:, : 4 * 32].view(2, 4, 32)
    torch.testing.assert_close(again, scores[:, order])
    assert not torch.allclose(scores[:, 0], scores[:, 1])
    prior = low_frequency_prior(32, 10.0, 4 * 32)
    assert torch.equal(prior.view(4, 32), low_frequency_prior(32, 10.0).expand(4, 32))


@pytest.mark.parametrize("slices", ["shared", "allocate"])
def test_a_policy_is_trained_saved_and_evaluated(slices, tmp_path):
    """Two rollouts on phantoms: files, metrics, a snapshot that evaluation takes, with both networks."""
    kwargs = {
        "cohort_options": PHANTOMS,
        "slices": slices,
        "budget": 2,
        "observation": ["acquired", "energy", "budget", "slices", "slice_probabilities"],
        "objective": "area",
    }
    settings = TrainSettings(
        run_dir=str(tmp_path / "run"),
        env_id="KSpaceSeg3D-Phantom-v0",
        env_kwargs=kwargs,
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 4, "batch_size": 8},
        network={
            "extractor": "lines",
            "extractor_kwargs": {},
            "net_arch": {"pi": [], "vf": [16]},
            "activation": "tanh",
        },
        prior_strength=48.0,
        group_size=2,
        total_steps=16,
        num_envs=2,
        eval_every=8,
        eval_episodes=1,
        log_every=8,
        device="cpu",
    )
    folder = train(settings)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert {row["phase"] for row in rows} == {"train", "validation"}
    assert all(float(row["lines"]) == (5 if slices == "shared" else float(row["lines"])) for row in rows)
    result = evaluate(str(folder), eval_range=(1, 1), baselines=["centre_out"], progress=False)
    assert result.nets == ["A", "B"]
    learned = result.policies[0].runs[0]["lines"]
    # An untrained head is the prior: the next line from the centre (in some slice).
    assert set(learned[learned >= 0].tolist()) <= set(range(58, 71))


def test_a_snapshot_of_slices_is_refused_on_volumes(tmp_path):
    bench = open_bench("KSpaceSeg3D-Phantom-v0", {"cohort_options": PHANTOMS})
    with pytest.raises(SeggymError, match="volumes= is for environments that scan single slices"):
        evaluate_policies(bench, [], [1, 2], volumes=["a"])
    with pytest.raises(SeggymError, match="are unknown where slices=shared"):
        volume_baselines(["proportional"], bench.settings)
