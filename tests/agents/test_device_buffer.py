"""The rollout buffer on a device against the numpy ones of stable-baselines3 and sb3-contrib."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer

from seggym.agents.algorithms.device_buffer import DeviceRolloutBuffer, MaskableDeviceRolloutBuffer
from seggym.agents.models import make_model
from seggym.errors import SeggymError

STEPS, ENVS, LINES = 7, 6, 10
SPACE = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (1, 8, 8), np.uint8),
        "acquired": spaces.MultiBinary(LINES),
        "budget": spaces.Box(0, 1, (1,), np.float32),
    }
)
ACTIONS = spaces.Discrete(LINES)
REFERENCES = {DeviceRolloutBuffer: DictRolloutBuffer, MaskableDeviceRolloutBuffer: MaskableDictRolloutBuffer}


def fill(buffer, tensors=False, seed=0):
    """A rollout of random numbers with ends of episodes in it; a second one is not the first."""
    draws = np.random.default_rng(seed)
    for part in (0, 1):
        buffer.reset()
        for step in range(STEPS):
            observation = {
                "image": draws.integers(0, 256, (ENVS, 1, 8, 8)).astype(np.uint8),
                "acquired": draws.integers(0, 2, (ENVS, LINES)).astype(np.int8),
                # Says which transition it is.
                "budget": (100 * part + step + np.arange(ENVS) / 10).astype(np.float32)[:, None],
            }
            if tensors:
                observation = {name: torch.from_numpy(value) for name, value in observation.items()}
            masks = draws.integers(0, 2, (ENVS, LINES)).astype(bool)
            buffer.add(
                observation,
                draws.integers(0, LINES, (ENVS, 1)),
                draws.normal(size=ENVS).astype(np.float32),
                draws.random(ENVS) < 0.3,
                torch.from_numpy(draws.normal(size=(ENVS, 1)).astype(np.float32)),
                torch.from_numpy(draws.normal(size=ENVS).astype(np.float32)),
                **({"action_masks": masks} if isinstance(buffer, MaskableDictRolloutBuffer) else {}),
            )
        last = torch.from_numpy(draws.normal(size=(ENVS, 1)).astype(np.float32))
        buffer.compute_returns_and_advantage(last, draws.random(ENVS) < 0.5)
    return buffer


def minibatches(buffer, batch_size):
    np.random.seed(3)  # noqa: NPY002  the stream that the buffers draw from
    return list(buffer.get(batch_size))


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("kind", REFERENCES)
def test_minibatches_are_those_of_the_numpy_buffer(kind, tensors):
    options = {"gae_lambda": 0.9, "gamma": 0.97, "n_envs": ENVS}
    buffer = fill(kind(STEPS, SPACE, ACTIONS, "cpu", **options), tensors)
    reference = fill(REFERENCES[kind](STEPS, SPACE, ACTIONS, "cpu", **options))
    for _ in range(2):
        for found, expected in zip(minibatches(buffer, 16), minibatches(reference, 16), strict=True):
            assert type(found) is type(expected)
            for name, part in expected.observations.items():
                assert torch.equal(found.observations[name], part)
                assert found.observations[name].dtype == part.dtype
            assert torch.equal(found.actions, expected.actions.long())
            for name in ("old_values", "old_log_prob", "advantages", "returns"):
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-6, rtol=0)
            if hasattr(expected, "action_masks"):
                assert torch.equal(found.action_masks, expected.action_masks.bool())


def test_every_transition_once_per_epoch():
    buffer = fill(DeviceRolloutBuffer(STEPS, SPACE, ACTIONS, "cpu", n_envs=ENVS))
    expected = sorted(100 + step + env / 10 for step in range(STEPS) for env in range(ENVS))
    orders = []
    for _ in range(2):
        batches = list(buffer.get(16))
        assert [len(batch.actions) for batch in batches] == [16, 16, 10]
        seen = torch.cat([batch.observations["budget"] for batch in batches])[:, 0]
        assert sorted(seen.tolist()) == pytest.approx(expected)
        orders.append(seen)
    assert not torch.equal(*orders)
    assert len(next(iter(buffer.get())).actions) == STEPS * ENVS


def test_memory_is_what_the_spaces_say():
    buffer = MaskableDeviceRolloutBuffer(STEPS, SPACE, ACTIONS, "cpu", n_envs=ENVS)
    sizes = {name: tensor.nbytes for name, tensor in {**buffer.observations_held, **buffer.held}.items()}
    bytes_of = {"image": 64, "acquired": LINES, "budget": 4, "action_masks": LINES, "actions": 8}
    scalars = ("rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
    assert sizes == {name: size * STEPS * ENVS for name, size in {**bytes_of, **dict.fromkeys(scalars, 4)}.items()}
    # One rollout is written over the other, and nothing is kept as numpy beside the tensors.
    places = {name: tensor.data_ptr() for name, tensor in buffer.observations_held.items()}
    fill(buffer)
    assert {name: tensor.data_ptr() for name, tensor in buffer.observations_held.items()} == places
    assert not any(isinstance(value, np.ndarray) for value in vars(buffer).values())


def test_what_is_stored_does_not_change_with_its_source():
    buffer = DeviceRolloutBuffer(1, SPACE, ACTIONS, "cpu", n_envs=ENVS)
    seen = {name: torch.zeros(ENVS, *part.shape) for name, part in SPACE.spaces.items()}
    zeros = np.zeros(ENVS)
    buffer.add(seen, zeros, zeros, zeros, torch.zeros(ENVS, 1), torch.zeros(ENVS))
    for value in seen.values():
        value.fill_(1)
    assert not any(tensor.any() for tensor in buffer.observations_held.values())


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tiny_run):
    return replace(
        tiny_run,
        hyperparameters={"n_steps": 8, "batch_size": 16, "n_epochs": 2},
        env_kwargs={**tiny_run.env_kwargs, "observation": ["image", "energy", "acquired", "budget"], "device": "cpu"},
        num_envs=6,
        seed=4,
    )


def trained(settings):
    model = make_model(settings)
    model.learn(3 * 8 * settings.num_envs)
    return model, {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo"])
def test_the_switch_does_not_change_what_is_learnt(settings, algorithm, group_size):
    settings = replace(settings, algorithm=algorithm, group_size=group_size)
    model, on = trained(replace(settings, rollouts_on_device=True))
    assert all(isinstance(value, torch.Tensor) for value in model._last_obs.values())
    assert model._last_obs["image"].dtype == torch.uint8
    model, off = trained(replace(settings, rollouts_on_device=False))
    assert all(isinstance(value, np.ndarray) for value in model._last_obs.values())
    untrained = make_model(settings).policy.state_dict()
    assert not torch.equal(on["action_net.weight"], untrained["action_net.weight"])
    for name, value in on.items():
        torch.testing.assert_close(value, off[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo"])
def test_the_same_is_learnt_with_the_buffers_of_stable_baselines3(settings, algorithm):
    settings = replace(settings, algorithm=algorithm)
    _, expected = trained(settings)
    model = make_model(settings)
    reference = REFERENCES[model.rollout_buffer_class]
    model.rollout_buffer = reference(
        8, model.observation_space, model.action_space, "cpu", gae_lambda=0.95, gamma=0.99, n_envs=6
    )
    model.learn(3 * 8 * 6)
    for name, value in model.policy.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0, msg=name)


def test_where_rollouts_are_held(settings):
    assert not make_model(settings).env.gives_tensors
    model = make_model(replace(settings, rollouts_on_device=False, device="meta"))
    assert model.rollout_buffer.held_on == torch.device("cpu")
    assert model.rollout_buffer.device == torch.device("meta")


@pytest.mark.parametrize("algorithm", ["dqn", "masked_dqn"])
def test_replay_buffers_stay_in_main_memory(settings, algorithm):
    with pytest.raises(SeggymError, match=f"rollouts_on_device=true: {algorithm} has no rollouts"):
        make_model(replace(settings, algorithm=algorithm, rollouts_on_device=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo"])
def test_on_a_gpu_rollouts_stay_there(settings, algorithm):
    kwargs = {**settings.env_kwargs, "device": "cuda"}
    settings = replace(settings, algorithm=algorithm, env_kwargs=kwargs, device="cuda", group_size=3)
    model, on = trained(settings)
    assert all(value.is_cuda for value in model._last_obs.values())
    held = {**model.rollout_buffer.observations_held, **model.rollout_buffer.held}
    assert all(value.is_cuda for value in held.values())
    _, off = trained(replace(settings, rollouts_on_device=False))
    for name, value in on.items():
        assert value.isfinite().all()
        # Advantages of the second run come from the CPU, which adds in another order; an update is up to 3e-4.
        torch.testing.assert_close(value, off[name], atol=1e-3, rtol=0, msg=name)
