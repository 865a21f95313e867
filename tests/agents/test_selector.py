"""The learned selector: candidates are alike but for what is seen of them; training, snapshots and resuming work."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from seggym.agents import resuming
from seggym.agents.algorithms.evolution import Evolution, _episodes, evolve
from seggym.agents.algorithms.networks import policy_kwargs
from seggym.agents.algorithms.scores import action_scores, best_legal, policy_heads
from seggym.agents.callbacks import EpisodeLog
from seggym.agents.candidate_extractor import FEATURES, CandidateExtractor, candidate_features
from seggym.agents.models import TrainSettings, make_model
from seggym.agents.selection_training import episode_keys, validate_selection
from seggym.agents.snapshots import load_policy
from seggym.agents.train_selector import env_kwargs
from seggym.agents.training import train
from seggym.configs.checking import plain
from seggym.envs.selection.engine import Episodes
from seggym.envs.selection.environment import SelectionVectorEnv, observation_space
from seggym.envs.selection.observation import CANDIDATE_FEATURES, Summary
from seggym.envs.selection.pools import PooledEngine
from seggym.errors import SeggymError
from seggym.files import write_json

SEEN = ["candidates", "learner", "budget", "progress"]
PPO = {"extractor": "candidates", "extractor_kwargs": {"width": 8}, "net_arch": {"pi": [], "vf": [8]}}
DQN = {"extractor": "candidates", "extractor_kwargs": {"width": 8, "strength": 0.01}, "net_arch": []}


SMALL = {
    "cohort_options": {"patients": 12, "test_patients": 4},
    "observation": [*SEEN, "action_mask"],
    "objective": "area",
    "budget": [2, 3],
    "candidates": 6,
    "size": 48,
    "spacing": 4.0,
    "state_slices": 4,
}


ROLES = {
    "train": ["patient003", "patient004", "patient005", "patient006", "patient007"],
    "val": ["patient009", "patient010", "patient011"],
    "test": ["patient001", "patient002", "patient008", "patient012"],
}


def small(tmp_path):
    """Keyword arguments of an environment of 12 small phantoms."""
    return {**SMALL, "split": str(write_json(tmp_path / "split.json", ROLES))}


@pytest.fixture
def make_selection(tmp_path):
    """``make_selection(num_envs, **settings)``: an engine on the training patients."""

    def make(num_envs=1, **settings):
        kwargs = {"cohort": "phantom", "encoder": "phantom-encoder", **small(tmp_path), **settings}
        return SelectionVectorEnv(num_envs, **kwargs).engine

    return make


def selector_run(tmp_path, **changes) -> TrainSettings:
    """A few steps in a pool of small phantoms."""
    run = TrainSettings(
        run_dir=str(tmp_path / "run"),
        env_id="ALSelect-Phantom-v0",
        env_kwargs=small(tmp_path),
        algorithm="maskable_ppo",
        hyperparameters={"n_steps": 4, "batch_size": 16, "n_epochs": 1, "gamma": 1.0},
        network={**PPO, "activation": "tanh"},
        total_steps=32,
        num_envs=4,
        eval_every=16,
        eval_episodes=2,
        checkpoint_every=16,
        log_every=16,
        device="cpu",
    )
    return replace(run, **changes)


def observe(engine, steps=2):
    engine.begin(torch.arange(engine.num_envs), engine.draw(torch.arange(engine.num_envs) + 5))
    for _ in range(steps):
        engine.step(engine.action_mask().int().argmax(1))
    return {name: value.float() for name, value in engine.observe().items()}


def stirred(extractor):
    """Every parameter at random, so that nothing is zero by construction."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return extractor


@pytest.mark.parametrize("embeddings", [False, True])
def test_permuting_candidates_permutes_scores_and_padding_changes_nothing(make_selection, embeddings):
    parts = [*SEEN, "embeddings"] if embeddings else SEEN
    engine = make_selection(3, observation=parts, budget=6, candidates=8)
    seen = observe(engine)
    extractor = stirred(CandidateExtractor(observation_space(engine), strength=1.5, width=8))
    rows = extractor.num_scores
    before = extractor(seen)
    assert before.shape == (3, extractor.features_dim)
    assert before[:, :rows].std(1).min() > 1e-3
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    by_row = [name for name in ("candidates", "embeddings") if name in seen]
    after = extractor({**seen, **{name: seen[name][:, order] for name in by_row}})
    assert torch.allclose(after[:, :rows], before[:, order], atol=1e-5)
    assert torch.allclose(after[:, rows:], before[:, rows:], atol=1e-5)
    # Empty rows anywhere among the others, and a network made for more rows.
    wider = make_selection(3, observation=parts, budget=6, candidates=12)
    larger = CandidateExtractor(observation_space(wider), strength=1.5, width=8)
    larger.load_state_dict(extractor.state_dict())
    places = torch.tensor([0, 2, 3, 5, 6, 8, 9, 11])
    padded = {}
    for name in by_row:
        padded[name] = torch.zeros(3, 12, seen[name].shape[-1])
        padded[name][:, places] = seen[name]
    found = larger({**seen, **padded})
    assert torch.allclose(found[:, places], before[:, :rows], atol=1e-5)
    assert torch.allclose(found[:, 12:], before[:, rows:], atol=1e-5)
    assert (found[:, [1, 4, 7, 10]] == 0).all()


def test_features_by_hand():
    """Two candidates and an empty row, at a quarter of the budget, worked out on paper."""
    candidates = torch.zeros(1, 3, len(CANDIDATE_FEATURES) + 9)
    candidates[0, :2, CANDIDATE_FEATURES.index("margin")] = torch.tensor([0.2, 0.6])
    candidates[0, :2, CANDIDATE_FEATURES.index("position")] = torch.tensor([0.5, 0.9])
    candidates[0, :2, CANDIDATE_FEATURES.index("mean_unlabelled")] = torch.tensor([0.7, 0.3])
    candidates[0, :2, len(CANDIDATE_FEATURES) : -6] = torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.0, 0.1]])
    learner = torch.zeros(1, 8 + 6 + 2)
    learner[0, 11:14] = torch.tensor([0.9, 0.08, 0.02])
    found = candidate_features(candidates, learner, torch.tensor([[0.25, 0.0]]))[0]
    column = dict(zip(FEATURES, found.T, strict=True))
    assert torch.allclose(column["margin"], torch.tensor([-1.0, 1.0, 0.0]), atol=1e-4)
    assert torch.allclose(column["off_centre"], torch.tensor([-1.0, 1.0, 0.0]), atol=1e-4)
    # The second class is annotated less often, so the same share of it is worth more.
    assert torch.allclose(column["rare"], torch.tensor([-1.0, 1.0, 0.0]), atol=1e-4)
    assert torch.allclose(column["early_unlabelled"], torch.tensor([0.5, -0.5, 0.0]), atol=1e-4)
    # Nobody stands out in what is the same for all.
    assert (column["foreground"].abs() < 1e-3).all()
    assert (column["minutes"] == 0).all()


def test_what_is_said_of_each_class_by_hand():
    """Two positions of two classes: (.9, .1) and (.5, .5), a tie that goes to the lower class."""
    found = Summary(torch.tensor([[0.9, 0.5], [0.1, 0.5]])[:, None])
    parts = -torch.tensor([[0.9, 0.5], [0.1, 0.5]]) * torch.tensor([[0.9, 0.5], [0.1, 0.5]]).log2()
    assert torch.allclose(found.histogram, torch.tensor([0.7, 0.3]))
    assert torch.allclose(found.share, torch.tensor([1.0, 0.0]))
    assert torch.allclose(found.class_entropy, parts.mean(1), atol=1e-6)
    assert torch.allclose(found.class_entropy.sum(), found.entropy, atol=1e-6)


@pytest.mark.parametrize(("algorithm", "network"), [("maskable_ppo", PPO), ("masked_dqn", DQN)])
def test_a_trained_policy_still_treats_all_candidates_alike(make_selection, tmp_path, algorithm, network):
    """The head passes scores on, before and after training, in both networks of DQN."""
    settings = selector_run(tmp_path, algorithm=algorithm, network={**network, "activation": "tanh"})
    if algorithm == "masked_dqn":
        settings = replace(settings, hyperparameters={"buffer_size": 64, "learning_starts": 8, "batch_size": 8})
    model = make_model(settings)
    start = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(32)
    changed = [name for name, value in model.policy.state_dict().items() if not torch.equal(value, start[name])]
    assert any(name.endswith("correction") for name in changed)
    for head in policy_heads(model.policy):
        assert torch.equal(head.weight[:, : head.out_features], torch.eye(head.out_features))
        assert not head.weight[:, head.out_features :].any()
        assert not head.bias.any()
    observation = {name: torch.as_tensor(value) for name, value in model.env.reset().items()}
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    moved = {name: value[:, order] if value.ndim == 3 else value for name, value in observation.items()}
    scores = action_scores(model.policy, {**observation, "action_mask": torch.ones(4, 6)})
    again = action_scores(model.policy, {**moved, "action_mask": torch.ones(4, 6)})
    assert torch.allclose(again, scores[:, order], atol=1e-5)


def test_without_training_the_rule_decides(tmp_path):
    model = make_model(selector_run(tmp_path))
    observation = {name: torch.as_tensor(value) for name, value in model.env.reset().items()}
    features = candidate_features(observation["candidates"], observation["learner"], observation["progress"])
    rule = features[..., FEATURES.index("margin")] + features[..., FEATURES.index("disagreement")]
    legal = observation["action_mask"].bool()
    expected = rule.masked_fill(~legal, -torch.inf).argmax(1)
    assert torch.equal(best_legal(model.policy, observation, legal), expected)


def test_a_run_resumes_exactly_and_its_snapshot_knows_its_patients(tmp_path, monkeypatch):
    """Stopped in the middle of an episode; evolution comes before the first step and not again."""
    settings = selector_run(tmp_path, evolution={"generations": 1, "population": 4, "scans": 4}, checkpoint_every=0)
    whole = train(replace(settings, run_dir=str(tmp_path / "whole")))

    def interrupt(self):
        if self.num_timesteps == 12:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    original = EpisodeLog._on_step
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeLog, "_on_step", interrupt)
        parts = train(settings)
    assert resuming.read_state(parts / "last")["counters"]["num_timesteps"] == 16
    train(replace(settings, resume=True))
    for name in ("last/policy.safetensors", "best/policy.safetensors", "metrics.csv"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    assert "validation" in (whole / "metrics.csv").read_text()
    policy = load_policy(whole)
    assert policy.card["num_lines"] is None
    assert policy.card["patients"] == ROLES["train"]


@pytest.fixture
def trained(tmp_path):
    return load_policy(train(selector_run(tmp_path, total_steps=16, eval_every=0)))


def test_training_patients_are_refused(trained, make_selection):
    with pytest.raises(SeggymError, match=r"was trained on 5 of the 5 patients of cohort phantom with role=train"):
        trained.begin(make_selection(2))
    trained.begin(make_selection(2, role="test"))


def test_a_snapshot_that_does_not_fit_is_refused(trained, make_selection):
    with pytest.raises(SeggymError, match=r"num_actions=4 instead of 6.*candidates of shape \(4, 26\)"):
        trained.begin(make_selection(2, role="test", candidates=4))
    with pytest.raises(SeggymError, match="no observation part 'learner'"):
        trained.begin(make_selection(2, role="test", observation=["candidates", "budget", "progress"]))


def test_embeddings_need_an_encoder_with_a_name(tmp_path):
    run = selector_run(tmp_path)
    unnamed = {**run.env_kwargs, "encoder": None, "observation": [*SEEN, "embeddings"]}
    with pytest.raises(SeggymError, match="name an encoder, or leave embeddings out"):
        train(replace(run, env_kwargs=unnamed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {**PPO, "activation": "tanh", "net_arch": [8]}}, "puts layers behind the scores"),
        ({"prior_strength": 1.0}, "of which ALSelect-Phantom-v0 has none"),
        ({"blind": True}, "active learning has none"),
    ],
)
def test_what_a_selector_cannot_be(tmp_path, changes, message):
    with pytest.raises(SeggymError, match=message):
        make_model(selector_run(tmp_path, **changes))


def test_other_environments_have_no_candidates(tiny_run):
    with pytest.raises(SeggymError, match="needs candidates, learner, progress among the parts"):
        make_model(replace(tiny_run, network={**PPO, "activation": "tanh"}, prior_strength=0.0))


# --- several pools ----------------------------------------------------------------------------------------------------


def test_pools_side_by_side_are_the_pools_alone(make_selection):
    """Two pools in one batch do what each does by itself, and a saved batch goes on as it was."""
    pools = [make_selection(2, budget=4), make_selection(2, budget=4, objective="area")]
    alone = [make_selection(2, budget=4), make_selection(2, budget=4, objective="area")]
    both = PooledEngine(pools)
    keys = torch.arange(4) + 11
    both.begin(torch.arange(4), both.draw(keys))
    both.begin(torch.tensor([3]), both.draw(torch.tensor([40])))
    for part, own in zip(alone, ([11, 12], [13, 40]), strict=True):
        part.begin(torch.arange(2), part.draw(torch.tensor(own)))
    for _ in range(2):
        actions = both.action_mask().int().argmax(1)
        saved = both.state_dict()
        result = both.step(actions)
        parts = [part.step(some) for part, some in zip(alone, actions.split(2), strict=True)]
        assert torch.equal(result.parts["quality"], torch.cat([part.parts["quality"] for part in parts]))
        for name in both.observe():
            assert torch.equal(both.observe()[name], torch.cat([part.observe()[name] for part in alone])), name
        assert torch.equal(both.quality, torch.cat([part.quality for part in alone]))
    quality = both.quality.clone()
    both.load_state_dict(saved)
    both.step(actions)
    assert torch.equal(both.quality, quality)


def test_a_list_of_split_seeds_makes_pools(tmp_path):
    settings = selector_run(tmp_path, total_steps=16, eval_every=16)
    settings = replace(settings, env_kwargs={**settings.env_kwargs, "split_seed": [0, 1]})
    model = make_model(settings)
    engine = model.env.batch.engine
    names = [set(pool.pool.table.names) for pool in engine.pools]
    assert names[0] != names[1]
    policy = load_policy(train(settings))
    assert policy.card["patients"] == ROLES["train"]
    with pytest.raises(SeggymError, match=r"group_size=4 compares environments of one pool.* 2 has 2"):
        make_model(replace(settings, group_size=4))
    with pytest.raises(SeggymError, match=r"split_seed=\[0, 1, 2\] deals 3 pools"):
        make_model(replace(settings, env_kwargs={**settings.env_kwargs, "split_seed": [0, 1, 2]}))


# --- evolution --------------------------------------------------------------------------------------------------------


def test_values_are_the_rewards_of_really_selecting(make_selection):
    """Each candidate in an engine of its own, by hand; the pool's own budgets and objective count."""
    engine = make_selection(2, observation=SEEN, objective="area", budget=[2, 5])
    extractor = CandidateExtractor(observation_space(engine), width=4)
    weights = np.random.default_rng(0).normal(size=(3, len(FEATURES)))
    keys = torch.arange(6) + 90
    for whole in (engine, PooledEngine([engine, engine])):
        values = _episodes(extractor, whole, 6, 3)(keys, weights)
        for candidate, value in zip(weights, values, strict=True):
            other = engine.sibling(6)
            other.begin(torch.arange(6), other.draw(keys))
            total, active = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.bool)
            while bool(active.any()):
                features = candidate_features(
                    *(other.observe()[name] for name in ("candidates", "learner", "progress"))
                )
                scores = features @ torch.tensor(candidate, dtype=torch.float32)
                result = other.step(scores.masked_fill(~other.action_mask(), -torch.inf).argmax(1), active)
                total += result.parts["quality"]
                active &= ~result.terminated
            assert value == pytest.approx(float(total.mean()), abs=1e-9)


def test_evolution_improves_a_bad_start_and_disturbs_nothing(tmp_path):
    model = make_model(selector_run(tmp_path, num_envs=2))
    extractor, engine = model.policy.pi_features_extractor, model.env.batch.engine
    with torch.no_grad():
        # Towards what is known already.
        extractor.weights.zero_()
        extractor.weights[FEATURES.index("foreground")] = -3.0
    model.env.reset()
    before = engine.state_dict()
    start = extractor.weights.detach().clone()
    gains = evolve(model, engine, Evolution(generations=3, population=6, scans=6, sigma=2.0), seed=0)
    assert len(gains) == 3
    after = engine.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if isinstance(value, torch.Tensor))
    found = _episodes(extractor, engine, 24, 2)
    weights = np.stack([start.numpy(), extractor.weights.detach().numpy()]).astype(np.float64)
    values = found(10**6 + torch.arange(24), weights)
    assert values[1] > values[0]


def test_validation_measures_what_the_policy_does(make_selection):
    """Worst and best by looking ahead, which a policy cannot do, differ as they must; means are over the right axes."""
    engine = make_selection(3, observation=SEEN, budget=3, class_slots=4)
    keys = episode_keys(3)
    found = validate_selection(engine, keys, lambda seen, legal: legal.int().argmax(1))
    other = engine.sibling(3)
    other.begin(torch.arange(3), Episodes(torch.full((3,), 3), keys))
    curve = []
    for _ in range(3):
        other.step(other.action_mask().int().argmax(1))
        curve.append(other.quality.clone())
    assert found["mean_quality"] == pytest.approx(float(torch.stack(curve).mean()))
    assert found["quality"] == pytest.approx(float(curve[-1].mean()))
    assert found["dice_2"] == pytest.approx(float(other.scores[:, 1].nanmean()))


def test_the_network_is_named_like_the_others():
    arguments = policy_kwargs("maskable_ppo", {**PPO, "activation": "tanh"})
    assert arguments["features_extractor_class"] is CandidateExtractor


def test_a_selector_of_instances_trains(tmp_path):
    """Validated by mAP among the images of the role val, and its snapshot says which images it was trained on."""
    kwargs = {
        "cohort_options": {"images": 100},
        "learner_options": {"first_iterations": 1, "iterations": 1, "width": 8, "proposals": 4},
        "observation": [*SEEN, "action_mask"],
        "budget": 2,
        "initial": 2,
        "candidates": 4,
        "state_slices": 4,
    }
    network = {**PPO, "activation": "tanh"}
    steps = {
        "total_steps": 8,
        "num_envs": 2,
        "eval_every": 8,
        "eval_episodes": 2,
        "checkpoint_every": 8,
        "log_every": 8,
    }
    hyperparameters = {"n_steps": 4, "batch_size": 8, "n_epochs": 1}
    run = TrainSettings(
        str(tmp_path / "run"), "ALSelect-Instances-v0", kwargs, "maskable_ppo", hyperparameters, network, **steps
    )
    folder = train(run)
    card = load_policy(folder / "best").card
    assert card["cohort"] == "instances"
    assert card["num_classes"] == 6  # five kinds of objects and the background
    assert all(name.startswith("image_") for name in card["patients"])
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert header.count("dice_") == 5
    assert sum(",validation," in row for row in rows) == 2


@pytest.mark.parametrize("env", ["alselect_phantom", "alselect_acdc", "alselect_mscmr", "alselect_chaos"])
@pytest.mark.parametrize("agent", ["selector_ppo", "selector_dqn"])
def test_the_configurations_compose(env, agent):
    with initialize_config_module("seggym.configs", version_base="1.3"):
        values = plain(compose("train_selector", [f"env={env}", f"agent={agent}", "datadir=/data"]))
    kwargs = env_kwargs(values)
    assert kwargs["data_root"] == "/data"
    assert kwargs["split_seed"] == [0, 1, 2, 3]
    assert ("action_mask" in kwargs["observation"]) == (agent == "selector_dqn")
    policy_kwargs(values["agent"]["algorithm"], values["agent"]["network"])
    assert values["agent"].get("evolution", {"scans": 16})["scans"] % len(values["split_seeds"]) == 0
    assert values["num_envs"] // len(values["split_seeds"]) % values["agent"]["group_size"] == 0
