"""Same seed, same result; replays; keys that nobody shares; exact continuation from a state."""

import copy

import numpy as np
import pytest
import torch

from seggym.envs.kspace.environment import KSpaceEnv, KSpaceVectorEnv
from seggym.errors import SeggymError

OBSERVATION = ["image", "acquired", "budget", "probabilities", "features", "kspace", "action_mask"]


def flatten(value, path=""):
    if isinstance(value, dict):
        for key in value:
            yield from flatten(value[key], f"{path}/{key}")
    elif (isinstance(value, np.ndarray) and value.dtype == object) or isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from flatten(item, f"{path}[{index}]")
    else:
        yield path, np.asarray(value)


def assert_identical(one, other):
    one, other = list(flatten(one)), list(flatten(other))
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, first), (_, second) in zip(one, other, strict=True):
        assert first.dtype == second.dtype, path
        np.testing.assert_array_equal(first, second, path)


def trajectory(env, steps, rng):
    """Everything that ``steps`` random steps return."""
    results = []
    for _ in range(steps):
        actions = [rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()]
        results.append(env.step(np.array(actions)))
    return results


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_seed_gives_the_same_result(make_engine, mode, dtype):
    def run(seed):
        engine = make_engine(3, observation=OBSERVATION, dtype=dtype)
        env = KSpaceVectorEnv(3, engine=engine, autoreset_mode=mode)
        return [env.reset(seed=seed), *trajectory(env, 50, np.random.default_rng(0))]

    assert_identical(tuple(run(5)), tuple(run(5)))
    assert run(5)[0][1]["key"].tolist() != run(6)[0][1]["key"].tolist()


def test_single_environments_obey_the_seed_as_well(make_engine):
    one, other = (KSpaceEnv(engine=make_engine(1, observation=OBSERVATION)) for _ in range(2))
    assert_identical(one.reset(seed=9), other.reset(seed=9))
    rng = np.random.default_rng(1)
    for _ in range(50):
        action = rng.choice(np.flatnonzero(one.action_masks()))
        first = one.step(action)
        assert_identical(first, other.step(action))
        if first[2]:
            assert_identical(one.reset(), other.reset())


def test_a_reset_without_a_seed_goes_on_with_the_stream(make_engine):
    env = KSpaceEnv(engine=make_engine(1))
    keys = [int(env.reset(seed=3)[1]["key"]), *(int(env.reset()[1]["key"]) for _ in range(5))]
    assert len(set(keys)) == 6
    again = [int(env.reset(seed=3)[1]["key"]), *(int(env.reset()[1]["key"]) for _ in range(5))]
    assert again == keys


@pytest.mark.parametrize("as_tuples", [False, True])
def test_given_episodes_are_replayed(make_engine, as_tuples):
    engine = make_engine(4, observation=OBSERVATION)
    env = KSpaceVectorEnv(4, engine=engine, autoreset_mode="SameStep")
    first = env.reset(seed=2)
    names = ("sample", "budget", "key")
    episodes = [{name: int(first[1][name][slot]) for name in names} for slot in range(4)]
    if as_tuples:
        episodes = [tuple(episode.values()) for episode in episodes]
    played = trajectory(env, 2, np.random.default_rng(0))
    env.reset(seed=77)
    trajectory(env, 5, np.random.default_rng(5))
    assert_identical(first, env.reset(options={"episodes": episodes}))
    assert_identical(tuple(played), tuple(trajectory(env, 2, np.random.default_rng(0))))
    # In another place and another batch the same episodes are the same.
    single = KSpaceEnv(engine=make_engine(1, observation=OBSERVATION))
    observation, info = single.reset(options={"episodes": episodes[2:3]})
    assert_identical(observation, {name: value[2] for name, value in first[0].items()})
    assert info["quality"] == first[1]["quality"][2]


def test_an_episode_can_have_another_budget_than_the_setting(make_engine):
    env = KSpaceEnv(engine=make_engine(1, budget=4))
    _, info = env.reset(options={"episodes": [{"sample": 1, "budget": 30, "key": -5}]})
    assert (info["sample"], info["budget"], info["key"]) == (1, 30, -5)


def test_no_key_is_shared_between_slots_workers_and_runs(make_engine):
    """Trainers seed with states of SeedSequence([run_seed, worker]): neighbouring seeds would share most streams."""
    keys = []
    engine = make_engine(8, budget=1, lambda_seg=0.0, lambda_recon=1.0)
    for run in (0, 1):
        for worker in range(3):
            env = KSpaceVectorEnv(8, engine=engine, autoreset_mode="SameStep")
            seeds = [int(state) for state in np.random.SeedSequence([run, worker]).generate_state(8)]
            _, info = env.reset(seed=seeds)
            keys += info["key"].tolist()
            for _ in range(10):
                keys += env.step(np.zeros(8, int))[4]["key"].tolist()
    assert len(keys) == len(set(keys)) == 2 * 3 * 8 * 11
    shared, other = KSpaceVectorEnv(8, engine=engine), KSpaceVectorEnv(8, engine=engine)
    first, second = shared.reset(seed=0)[1]["key"], other.reset(seed=1)[1]["key"]
    assert set(first.tolist()) & set(second.tolist()), "seed + i, as Gymnasium does it, does share keys"


def test_draws_follow_the_weights_and_the_budget_range(make_engine):
    engine = make_engine(1, budget=[3, 6])
    engine._cumulative = torch.tensor([0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    drawn = engine.draw(torch.arange(4000) * 7919)
    assert drawn.samples.unique().tolist() == [1, 3]
    assert float((drawn.samples == 1).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.bincount(drawn.budgets)[3:].double().div(4000).tolist() == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("settings", [{}, {"reward": "terminal", "observation": ["image"]}, {"lambda_recon": 1.0}])
def test_a_state_is_continued_exactly(make_engine, mode, settings):
    def make():
        engine = make_engine(4, dtype=torch.float32, **{"observation": OBSERVATION, **settings})
        return KSpaceVectorEnv(4, engine=engine, autoreset_mode=mode)

    env = make()
    env.reset(seed=4)
    trajectory(env, 11, np.random.default_rng(0))
    state = env.state_dict()
    kept = copy.deepcopy(state)
    expected = trajectory(env, 15, np.random.default_rng(1))
    assert_identical(state["generators"][0], kept["generators"][0])  # a state is a copy, it does not run along
    resumed = make()
    resumed.load_state_dict(state)
    assert_identical(tuple(expected), tuple(trajectory(resumed, 15, np.random.default_rng(1))))


def test_a_state_holds_the_segmentation(make_engine):
    engine = make_engine(3, observation=OBSERVATION)
    env = KSpaceVectorEnv(3, engine=engine)
    env.reset(seed=0)
    env.step([1, 2, 3])
    other = KSpaceVectorEnv(3, engine=make_engine(3, observation=OBSERVATION))
    other.load_state_dict(env.state_dict())
    for name, kept in vars(engine.segmentation).items():
        found = getattr(other.engine.segmentation, name)
        assert found is kept is None or torch.equal(torch.nan_to_num(found), torch.nan_to_num(kept)), name
    for name, part in engine.observe().items():
        assert torch.equal(part, other.engine.observe()[name]), name
    assert torch.equal(engine.quality, other.engine.quality)
    assert torch.equal(engine.magnitude, other.engine.magnitude)


def test_a_state_of_another_version_is_refused(make_engine):
    env = KSpaceVectorEnv(3, engine=make_engine(3))
    env.reset(seed=0)
    state = env.state_dict()
    state["engine"]["image"] = state["engine"].pop("scanner.planes")
    with pytest.raises(SeggymError, match=r"lacks scanner\.planes, so another version"):
        env.load_state_dict(state)


def test_a_state_of_another_size_is_refused(make_engine):
    env = KSpaceVectorEnv(3, engine=make_engine(3))
    env.reset(seed=0)
    with pytest.raises(SeggymError, match="holds 3 environments, this engine has 2"):
        KSpaceVectorEnv(2, engine=make_engine(2)).load_state_dict(env.state_dict())
