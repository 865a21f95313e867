"""Networks that all spokes or all points share: what they see, what they say untrained, and how they refuse."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seggym.agents.algorithms.networks import EXTRACTORS
from seggym.agents.algorithms.scores import action_scores
from seggym.agents.models import TrainSettings, make_model
from seggym.agents.priors import start_head
from seggym.agents.view_extractors import PointExtractor, SpokeExtractor
from seggym.errors import SeggymError
from seggym.kspace import view_orders
from seggym.kspace.acquisition import Acquisition
from seggym.kspace.radial import spoke_angles


def space_of(views):
    return spaces.Dict(
        {
            "energy": spaces.Box(0, 1, (views,), np.float32),
            "acquired": spaces.MultiBinary(views),
            "budget": spaces.Box(0, 1, (1,), np.float32),
        }
    )


def observe(acquired):
    acquired = torch.as_tensor(acquired).float()
    return {"acquired": acquired, "energy": 0.5 * acquired, "budget": torch.ones(len(acquired), 1)}


def scores_of(extractor, acquired):
    """The learned corrections alone: no rule, and nothing through the context."""
    extractor.strength = 0.0
    with torch.no_grad():
        extractor.shared.weight.zero_()
        return extractor(observe(acquired))[:, : extractor.num_scores]


def awake(extractor):
    torch.nn.init.normal_(extractor.weight)
    return extractor


def test_spokes_form_a_circle():
    """Turning all that is measured by one spoke turns the scores, where no direction is preferred."""
    torch.manual_seed(0)
    extractor = awake(SpokeExtractor(space_of(16), neighbours=2))
    extractor.direction.zero_()
    acquired = torch.zeros(16)
    acquired[[0, 3, 9]] = 1
    rows = torch.stack([acquired.roll(turn) for turn in range(16)])
    scores = scores_of(extractor, rows)
    for turn in range(16):
        torch.testing.assert_close(scores[turn], scores[0].roll(turn), atol=1e-5, rtol=1e-5)
    assert scores[0].std() > 1e-3


@pytest.mark.parametrize("angles", ["uniform", "golden"])
def test_untrained_the_widest_gap_is_filled(angles):
    extractor = SpokeExtractor(space_of(24), angles=angles)
    angle = spoke_angles(Acquisition(trajectory="radial", spokes=24, angles=angles))
    acquired = torch.zeros(24)
    acquired[[0, 5, 11]] = 1
    for _ in range(12):
        scores = extractor(observe(acquired[None]))[0, :24].detach()
        turn = np.abs(angle[:, None] - angle[acquired.bool().numpy()])
        gap = np.minimum(turn, math.pi - turn).min(1)
        assert scores.numpy() == pytest.approx(96 * gap / (2 * math.pi), abs=1e-4)
        assert gap[int(scores.argmax())] == pytest.approx(gap.max())
        acquired[int(scores.argmax())] = 1


def test_a_spoke_is_seen_by_its_neighbours_in_angle_whatever_their_numbers():
    torch.manual_seed(0)
    extractor = awake(SpokeExtractor(space_of(21), angles="golden", neighbours=2))
    order = np.argsort(spoke_angles(Acquisition(trajectory="radial", spokes=21, angles="golden")))
    acquired = torch.ones(2, 21)  # all but one, so that gaps are zero elsewhere
    acquired[1, order[7]] = 0
    extractor.distance.zero_()
    scores = scores_of(extractor, acquired)
    changed = set((scores[0] - scores[1]).abs().gt(1e-6).nonzero()[:, 0].tolist())
    assert changed == set(order[5:10].tolist())


@pytest.mark.parametrize(("side", "block"), [(8, 1), (9, 1), (8, 4)])
def test_points_see_their_neighbourhood_and_their_mirror_image(side, block):
    torch.manual_seed(0)
    extractor = awake(PointExtractor(space_of(side**2), block=block, neighbours=1))
    acquired = torch.zeros(2, side, side)
    acquired[1, 2, 6] = 1
    scores = scores_of(extractor, acquired.flatten(1)).unflatten(1, (side, side))
    changed = (scores[0] - scores[1]).abs().gt(1e-6).numpy()
    expected = np.zeros((side, side), bool)
    # Blocks of several samples lie about DC as mirror images of one another; a point -k lies at 2 * (side // 2) - k.
    mirror = (side - 1 - 2, side - 1 - 6) if block > 1 or side % 2 else (side - 2, side - 6)
    for row, column in ((2, 6), mirror):
        expected[row - 1 : row + 2, max(column - 1, 0) : column + 2] = True
    assert np.array_equal(changed, expected)


def test_untrained_points_are_measured_from_the_centre():
    scan = Acquisition(32, 32, trajectory="points", block=4)
    extractor = PointExtractor(space_of(64), block=4)
    scores = extractor(observe(torch.zeros(1, 64)))[0, :64].detach().numpy()
    rest = [view for view in view_orders.points_centre_out(scan) if view not in scan.initial_views]
    assert (np.diff(scores[rest]) <= 1e-5).all()


@pytest.mark.parametrize(("name", "views"), [("spokes", 20), ("points", 25)])
def test_the_head_passes_scores_on(name, views):
    extractor = EXTRACTORS[name](space_of(views))
    head = torch.nn.Linear(extractor.features_dim, views)
    start_head(head, torch.zeros(views), extractor.num_scores)
    acquired = torch.zeros(3, views)
    acquired[:, :4] = 1
    with torch.no_grad():
        features = extractor(observe(acquired))
        torch.testing.assert_close(head(features), features[:, :views])


def test_what_is_missing_is_named():
    with pytest.raises(SeggymError, match="'spokes' needs acquired and budget"):
        SpokeExtractor(spaces.Dict({"acquired": spaces.MultiBinary(8)}))
    with pytest.raises(SeggymError, match="a square of points, found 20"):
        PointExtractor(space_of(20))


def test_a_prior_for_lines_is_refused_elsewhere():
    settings = TrainSettings(
        run_dir="unused",
        env_id="KSpaceRecon-Phantom-v0",
        env_kwargs={
            "cohort_options": {"patients": 4, "test_patients": 1},
            "acquisition": {"matrix": 32, "crop": 32, "trajectory": "radial", "spokes": 12},
            "budget": 3,
            "observation": ["acquired", "energy", "budget"],
            "device": "cpu",
        },
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 8, "batch_size": 8},
        network={"extractor": "spokes", "extractor_kwargs": {}, "net_arch": [], "activation": "tanh"},
        num_envs=2,
        prior_strength=48.0,
    )
    with pytest.raises(SeggymError, match="agent=spoke_ppo"):
        make_model(settings)
    model = make_model(replace(settings, prior_strength=0.0))
    # What stable-baselines3 initialises leaves the rule alone: the widest gap has the largest score.
    acquired = torch.zeros(1, 12)
    acquired[:, [0, 1, 2, 7]] = 1
    logits = action_scores(model.policy, observe(acquired))[0]
    rule = model.policy.pi_features_extractor.rule(acquired)[0]
    torch.testing.assert_close(logits - logits[0], 96 * (rule - rule[0]), atol=1e-4, rtol=1e-4)
