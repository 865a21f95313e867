"""What every environment promises, kept by those of volumes: batches, resume, replay, checks, errors."""

import dataclasses
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from volume_episodes import ALL_PARTS, MODES, PHASES, begin, legal_action

from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.volumes.environment import KSpaceVolumeEnv, KSpaceVolumeVectorEnv
from seggym.envs.kspace.volumes.table import paired_volumes
from seggym.errors import SeggymError
from seggym.testing import check_seg_env


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("slices", MODES)
def test_batched_equals_single(make_volumes, slices, pair):
    together = make_volumes(3, slices=slices, pair=pair, budget=[2, 5])
    together.begin(torch.arange(3), together.draw(torch.tensor([5, 6, 7])))
    alone = [make_volumes(1, slices=slices, pair=pair, budget=[2, 5]) for _ in range(3)]
    for env, key in enumerate((5, 6, 7)):
        alone[env].begin(torch.arange(1), alone[env].draw(torch.tensor([key])))
    running = torch.ones(3, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    while running.any():
        actions = legal_action(together, generator)
        result = together.step(actions, running)
        for env in running.nonzero()[:, 0].tolist():
            single = alone[env].step(actions[env : env + 1])
            assert torch.equal(single.parts["quality"][0], result.parts["quality"][env])
            assert single.terminated[0] == result.terminated[env]
            for part, value in alone[env].observe().items():
                assert torch.equal(value[0], together.observe()[part][env]), part
        running = running & ~result.terminated
    assert len(set(together.budgets.tolist())) > 1


@pytest.mark.parametrize("slices", MODES)
def test_an_observation_is_a_function_of_what_was_measured(make_volumes, stack, slices):
    """Everything that was not measured is replaced, and the labels are: nothing that a policy sees changes."""
    generator = torch.Generator().manual_seed(3)
    one, two = make_volumes(2, slices=slices), make_volumes(2, slices=slices)
    two.slices.stack = dataclasses.replace(stack, labels=stack.labels.flip(1, 2))
    actions = []
    for engine in (one, two):
        begin(engine, [0, 3])
    for _ in range(4):
        actions.append(legal_action(one, generator))
        one.step(actions[-1])
    # What the other will measure stays, the rest becomes noise.
    used = one.slices.acquired
    signal = two.slices.scanner.signal
    noise = torch.randn(signal.shape, dtype=torch.float64, generator=generator).to(signal.dtype)
    two.slices.scanner.signal = torch.where(used[:, :, None, None], signal, 1e3 * noise)
    for action in actions:
        two.step(action)
    for part, value in one.observe().items():
        assert torch.equal(value, two.observe()[part]), part
    assert not torch.equal(one.quality, two.quality)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("slices", MODES)
def test_autoreset_and_exact_resume(make_volumes, slices, mode):
    options = {"slices": slices, "budget": [2, 4]}
    env = KSpaceVolumeVectorEnv(3, engine=make_volumes(3, **options), autoreset_mode=mode)
    env.reset(seed=3)
    rng = np.random.default_rng(0)

    def advance(batch, draws):
        outcomes = []
        for draw in draws:
            actions = [np.flatnonzero(mask)[int(draw * mask.sum())] for mask in batch.action_masks()]
            outcomes.append(batch.step(np.array(actions)))
        return outcomes

    outcomes = advance(env, rng.random(9))
    assert any(result[2].any() for result in outcomes)
    for _, _, terminated, _, info in outcomes:
        for slot in np.flatnonzero(terminated):
            last = info["final_info"] if mode == "SameStep" else info
            assert last["action_mask"][slot].all()
            assert last["measurements"][slot] == last["budget"][slot]
    copy = KSpaceVolumeVectorEnv(3, engine=make_volumes(3, **options), autoreset_mode=mode)
    copy.load_state_dict(env.state_dict())
    draws = rng.random(8)
    for (seen, reward, *_), (again, same, *_) in zip(advance(env, draws), advance(copy, draws), strict=True):
        np.testing.assert_array_equal(reward, same)
        for part in seen:
            np.testing.assert_array_equal(seen[part], again[part])


def test_an_environment_without_an_episode_shows_zeros(make_volumes):
    """An evaluation may leave some of the last batch unused."""
    engine = make_volumes(2)
    engine.begin(torch.tensor([0]), engine.draw(torch.tensor([4])))
    engine.step(torch.tensor([20, 20]), torch.tensor([True, False]))
    assert not any(value[1].any() for part, value in engine.observe().items() if part != "acquired")


def test_replay_gives_the_same_episode(make_volumes):
    env = KSpaceVolumeEnv(engine=make_volumes(1, slices="allocate", budget=[3, 6]))
    observation, info = env.reset(seed=9)
    episode = {name: int(info[name]) for name in ("sample", "budget", "key")}
    again, _ = env.reset(options={"episodes": [episode]})
    for part in observation:
        np.testing.assert_array_equal(observation[part], again[part])


@pytest.mark.parametrize(("slices", "pair"), [("shared", True), ("sequential", False), ("allocate", False)])
def test_registered(slices, pair):
    """Gymnasium's and our own checks, without a warning, on phantoms with the packaged networks."""
    phantoms = {"cohort_options": {"patients": 6, "test_patients": 2}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(
            "seggym:KSpaceSeg3D-Phantom-v0",
            slices=slices,
            pair=pair,
            budget=[2, 3],
            render_mode="rgb_array",
            observation=list(ALL_PARTS),
            **phantoms,
        )
        check_env(env.unwrapped)
        check_seg_env(env)
    assert env.action_space.n == 128 * (10 if slices == "allocate" else 1)
    _, info = env.reset(seed=0)
    before = env.render()
    assert ("ejection_fraction" in info, "slice" in info) == (pair, slices == "sequential")
    env.step(int(np.flatnonzero(info["action_mask"])[-1]))
    assert env.render().shape == before.shape
    assert (env.render() != before).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"slices": "all"}, "slices='all' is unknown, expected one of shared, sequential, allocate"),
        ({"max_slices": 3}, "has 4 slices and max_slices=3: set max_slices=4 or more"),
        ({"reward": "terminal"}, "reward='terminal' is not offered"),
        ({"lines_per_step": 2}, "lines_per_step=2 is not offered"),
        ({"budget": 46}, "budget=46 must lie in 1..45"),
        ({"slices": "allocate", "budget": 91}, "patient001_frame09 has 90 to measure"),
        ({"observation": ["image"]}, "must name parts among acquired, energy"),
        ({"pair": 1}, "pair=1 is a int, expected bool"),
    ],
)
def test_errors_are_sentences(make_volumes, options, sentence):
    with pytest.raises(SeggymError, match=sentence):
        make_volumes(1, **options)


def test_a_patient_without_both_phases_is_named(stack):
    with pytest.raises(SeggymError, match="patient002 has 1 volumes at end-diastole and 0 at end-systole"):
        paired_volumes(stack, 4, {name: phase for name, phase in PHASES.items() if name != "patient002_frame09"})


def test_slices_are_scans_of_an_engine(make_volumes):
    """The engine of a volume measures nothing itself."""
    assert type(make_volumes(2).slices) is KSpaceEngine
