"""Every strategy on a real episode: an engine with the probe, seen through its view."""

import numpy as np
import pytest
import torch
from synthetic_state import table

from seggym.agents.strategies import STRATEGIES, make_strategy
from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.pool import Oracle, Pool
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.view import EpisodeView
from seggym.errors import SeggymError
from seggym.reward_models.learners import ScoredSet
from seggym.reward_models.probe import ProbeLearner, position_features

QUICK = {
    "coreclr": {"steps": 2, "size": 16},
    "vaal": {"steps": 2, "size": 8},
    "coregcn": {"epochs": 5},
    "error_net": {"iterations": 2},
}
POOL, SIZE = 40, 32


@pytest.fixture
def engine():
    """Two episodes on 40 slices that show a disc of class 1 or 2; 8 more of them are scored."""
    generator = torch.Generator().manual_seed(0)
    count = POOL + 8
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centre = torch.randint(10, 22, (2, count, 1, 1), generator=generator)
    disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 50
    labels = (disc * (1 + torch.arange(count) % 2)[:, None, None]).to(torch.uint8)
    images = labels[:, None] / 3 + 0.2 * torch.rand(count, 1, SIZE, SIZE, generator=generator)
    features = position_features(torch.nn.functional.avg_pool2d(images, 4), torch.arange(count))
    scored = ScoredSet(torch.arange(POOL, count), labels[POOL:], torch.arange(8) // 4, ("a", "b"))
    learner = ProbeLearner(features, {"reward": scored}, 3, 2)
    slices = torch.arange(POOL)[:, None]
    pool = Pool(
        table=table(patients=4, volumes=2, slices=5),
        images=images,
        slices=slices,
        shown=slices,
        state=torch.arange(4),
        embeddings=features[:POOL].mean((2, 3)),
        class_names=("background", "one", "two"),
        initial=torch.zeros(0, dtype=torch.int64),
        opened=torch.ones(POOL, dtype=torch.int64),
    )
    masks = labels[:POOL, None]
    oracle = Oracle(masks, masks, 3, lambda targets: learner.digest(slices, targets))
    settings = SelectionSettings("phantom", budget=6, initial=3, candidates=12, samples_per_query=3)
    engine = SelectionEngine(pool, oracle, learner, settings, num_envs=2)
    engine.begin(torch.arange(2), engine.draw(torch.tensor([5, 6])))
    return engine


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_an_episode_is_played_by_every_strategy(engine, name):
    if name == "skactiveml":
        pytest.importorskip("skactiveml", reason="scikit-activeml is not installed")
    strategy = make_strategy(name, **QUICK.get(name, {}))
    view = EpisodeView(engine, slot=1, privileged=strategy.privileged)
    for retrainings in range(2):
        assert view.round == retrainings
        query = strategy.query(view, 3)
        np.testing.assert_array_equal(query.indices, strategy.query(view, 3).indices)
        assert np.isin(query.indices, view.candidates).all()
        for index in query.indices:
            row = int((engine.candidates[1] == index).nonzero())
            result = engine.step(torch.tensor([0, row]), active=torch.tensor([False, True]))
        assert view.labelled[-3:].tolist() == query.indices.tolist()
    assert bool(result.terminated[1])


@pytest.mark.parametrize("name", [name for name in sorted(STRATEGIES) if STRATEGIES[name].privileged])
def test_privileged_strategies_need_the_privilege(engine, name):
    with pytest.raises(SeggymError, match="privileged"):
        make_strategy(name).query(EpisodeView(engine), 3)


def test_greedy_takes_the_candidate_whose_annotation_gains_most(engine):
    view = EpisodeView(engine, privileged=True)
    query = make_strategy("greedy").query(view, 1)
    tried = engine.sibling(len(view.candidates))
    tried.take(engine, torch.zeros(len(view.candidates), dtype=torch.int64))
    tried.settings = SelectionSettings("phantom", budget=6, initial=3, candidates=12, samples_per_query=1)
    rows = torch.searchsorted(engine.candidates[0].contiguous(), torch.from_numpy(view.candidates))
    tried.step(rows)
    np.testing.assert_allclose(query.utilities, tried.quality.numpy(), atol=1e-6)
    assert query.indices[0] == view.candidates[tried.quality.argmax()]
