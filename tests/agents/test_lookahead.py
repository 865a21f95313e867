"""A selector's policy fitted to gains looked ahead at: the gains are real, the fit finds what decides them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seggym.agents.algorithms.lookahead import (
    Lookahead,
    Queries,
    captured,
    collect,
    fit,
    fit_gains,
    look_ahead,
)
from seggym.agents.candidate_extractor import CandidateExtractor
from seggym.agents.models import TrainSettings, make_model
from seggym.agents.snapshots import load_policy
from seggym.agents.training import train
from seggym.envs.selection.environment import SelectionVectorEnv
from seggym.envs.selection.observation import CANDIDATE_FEATURES
from seggym.errors import SeggymError
from seggym.files import write_json

SEEN = ["candidates", "learner", "budget", "progress"]
NETWORK = {
    "extractor": "candidates",
    "extractor_kwargs": {"width": 8, "strength": 2.0},
    "net_arch": {"pi": [], "vf": [8]},
    "activation": "tanh",
}
# Six training patients: several deals of pool and reward among them.
ROLES = {
    "train": ["patient002", "patient003", "patient004", "patient005", "patient006", "patient007"],
    "val": ["patient009", "patient010", "patient011"],
    "test": ["patient001", "patient008", "patient012"],
}
FEW = {"pools": 4, "rounds": 1, "episodes": 1, "every": 2, "epochs": 2, "batch_size": 2}


@pytest.fixture
def run(tmp_path) -> TrainSettings:
    """A few steps in a pool of small phantoms, after a fit to few gains."""
    kwargs = {
        "cohort_options": {"patients": 12, "test_patients": 3},
        "observation": [*SEEN, "action_mask"],
        "budget": [2, 3],
        "candidates": 6,
        "size": 48,
        "spacing": 4.0,
        "state_slices": 4,
        "split": str(write_json(tmp_path / "split.json", ROLES)),
    }
    return TrainSettings(
        run_dir=str(tmp_path / "run"),
        env_id="ALSelect-Phantom-v0",
        env_kwargs=kwargs,
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 4, "batch_size": 16, "n_epochs": 1},
        network=NETWORK,
        total_steps=16,
        num_envs=2,
        eval_every=0,
        checkpoint_every=0,
        log_every=16,
        device="cpu",
        lookahead=FEW,
    )


@pytest.fixture
def engine(run):
    kwargs = {"cohort": "phantom", "encoder": "phantom-encoder", **run.env_kwargs, "observation": SEEN}
    return SelectionVectorEnv(3, **kwargs).engine


def drawn_queries(decides, count=160, rows=6, seed=0, empty=0):
    """Queries in which one column of the candidates, and noise, makes the gain; the last ``empty`` rows are padding."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.rand(count, rows, len(CANDIDATE_FEATURES) + 9, generator=generator)
    gains = 1e-3 * (candidates[..., decides] + 0.1 * torch.randn(count, rows, generator=generator)) - 5e-3
    if empty:
        candidates[:, -empty:], gains[:, -empty:] = 0, torch.nan
    seen = {"candidates": candidates, "learner": torch.rand(count, 16, generator=generator)}
    return Queries({**seen, "budget": torch.rand(count, 1), "progress": torch.rand(count, 2)}, gains)


def extractor_for(queries, **options):
    parts = {name: spaces.Box(0, 1, tuple(value.shape[1:]), np.float32) for name, value in queries.observation.items()}
    torch.manual_seed(0)
    return CandidateExtractor(spaces.Dict(parts), strength=2.0, width=8, **options)


@pytest.mark.parametrize(
    ("column", "corrections"),
    [
        (CANDIDATE_FEATURES.index("minutes"), False),  # the rule has a weight for it, which is 0 at the start
        (len(CANDIDATE_FEATURES) + 4, True),  # share of a class, which only the network sees
    ],
)
@pytest.mark.parametrize("empty", [0, 2])
def test_the_fitted_policy_picks_what_decides_the_gain(column, corrections, empty):
    learned, held, new = (drawn_queries(column, seed=seed, empty=empty) for seed in range(3))
    extractor = extractor_for(learned, corrections=corrections)
    assert captured(extractor, new) < 0.3
    fit(extractor, learned, held, Lookahead(learning_rate=1e-2), torch.Generator().manual_seed(0))
    assert captured(extractor, new) > 0.85
    scores = extractor(new.observation)[:, : extractor.num_scores].detach()
    # As decided as the rule at the start, strength included.
    legal = ~new.gains.isnan()
    spread = torch.stack([row[there].std(correction=0) for row, there in zip(scores, legal, strict=True)])
    assert float(spread.square().mean().sqrt()) == pytest.approx(2 * 2**0.5, rel=0.1)
    order = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(1))
    moved = {**new.observation, "candidates": new.observation["candidates"][:, order]}
    assert torch.allclose(extractor(moved)[:, : extractor.num_scores], scores[:, order], atol=1e-4)


def test_the_fit_ends_where_the_held_out_pools_were_best():
    """Pools held out that say the opposite are never predicted better than by nothing: the policy stays as it was."""
    column = CANDIDATE_FEATURES.index("margin")
    learned, held = drawn_queries(column, seed=0), drawn_queries(column, seed=1)
    extractor = extractor_for(learned, corrections=False)
    start = extractor.weights.detach().clone()
    fit(extractor, learned, replace(held, gains=-held.gains), Lookahead(), torch.Generator().manual_seed(0))
    assert torch.equal(extractor.weights, start)


def test_targets_by_hand():
    gains = torch.tensor([[0.01, 0.03, torch.nan], [0.5, 0.5, 0.5]])
    expected = torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(Queries({}, gains).targets, expected, atol=1e-4)


def test_gains_are_those_of_really_annotating(engine):
    engine.begin(torch.arange(3), engine.draw(torch.arange(3) + 7))
    engine.step(engine.action_mask().int().argmax(1))
    legal = engine.action_mask()
    legal[1], legal[2, 3] = False, False
    before = engine.state_dict()
    found = look_ahead(engine, legal)
    assert torch.equal(found.isnan(), ~legal)
    assert all(torch.equal(value, engine.state_dict()[name]) for name, value in before.items() if name != "learner")
    for row in range(6):
        other = engine.sibling(3)
        other.take(engine, torch.arange(3))
        gain = other.step(torch.full((3,), row)).parts["quality"]
        assert torch.allclose(found[:, row][legal[:, row]], gain[legal[:, row]], atol=1e-6)


def test_what_is_learned_from_is_the_observation_and_no_label(run, engine):
    """With other labels in the reward set the gains differ, and what was observed of the first query does not."""
    policy = make_model(replace(run, lookahead=None)).policy
    one = collect(policy, engine, 1, torch.Generator().manual_seed(3))
    other = engine.sibling(3)
    scored = other.learner._scored["reward"]
    scored.counts = scored.counts.flip(0)
    two = collect(policy, other, 1, torch.Generator().manual_seed(3))
    assert set(one.observation) == set(SEEN)
    for name, value in one.observation.items():
        assert torch.equal(value[:3], two.observation[name][:3]), name
    assert not torch.allclose(one.gains[:3], two.gains[:3])


def test_a_run_begins_with_the_fit_and_leaves_the_environments_alone(run, tmp_path):
    model = make_model(run)
    engine = model.env.batch.engine
    model.env.reset()
    before = engine.state_dict()
    shares = fit_gains(model, engine, Lookahead(**{**FEW, "pools": 8, "rounds": 2}), seed=0)
    assert len(shares) == 2
    assert all(share <= 1 for share in shares)
    after = engine.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if isinstance(value, torch.Tensor))
    card = load_policy(train(replace(run, eval_every=16, eval_episodes=2))).card
    assert card["patients"] == ROLES["train"]
    rows = [line for line in (tmp_path / "run/metrics.csv").read_text().splitlines() if ",validation," in line]
    # The untrained policy, the fitted one after its first steps.
    assert len(rows) >= 2


@pytest.mark.parametrize(
    ("lookahead", "word"),
    [
        ({**FEW, "pools": 3}, "lookahead.pools=3"),
        ({**FEW, "pools": 6, "rounds": 2}, "cannot be shared"),
        ({**FEW, "learning_rate": 0.0}, "lookahead.learning_rate=0.0"),
        ({**FEW, "pool": 3}, "agent.lookahead.pool"),
    ],
)
def test_settings_are_checked(run, lookahead, word):
    with pytest.raises(SeggymError, match=word):
        train(replace(run, lookahead=lookahead))


def test_who_cannot_look_ahead_says_so(run):
    with pytest.raises(SeggymError, match=r"agent\.evolution and agent\.lookahead"):
        train(replace(run, evolution={}))
    dqn = {"buffer_size": 8, "learning_starts": 4, "batch_size": 4}
    with pytest.raises(SeggymError, match="needs an actor"):
        train(
            replace(run, algorithm="masked_dqn", hyperparameters=dqn, network={**NETWORK, "net_arch": []}),
        )
