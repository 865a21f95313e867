"""The network that all lines share, the head that passes its scores on, and advantages within a group."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from seggym.agents.algorithms.device_buffer import MaskableDeviceRolloutBuffer
from seggym.agents.extractors import LineConvolution, LineExtractor, _mirrored
from seggym.agents.models import TrainSettings, make_model
from seggym.agents.priors import low_frequency_prior, start_head
from seggym.agents.vec_env import BatchedVecEnv
from seggym.errors import SeggymError

LINES = 32
SPACE = spaces.Dict(
    {
        "energy": spaces.Box(0, 1, (LINES,), np.float32),
        "acquired": spaces.MultiBinary(LINES),
        "budget": spaces.Box(0, 1, (1,), np.float32),
    }
)


def observe(acquired):
    acquired = torch.as_tensor(acquired).float()
    return {"acquired": acquired, "energy": 0.5 * acquired, "budget": torch.ones(len(acquired), 1)}


@pytest.mark.parametrize("lines", [8, 9])
def test_mirror_image_is_the_line_at_minus_k(lines):
    offset = torch.arange(lines)[None] - lines // 2
    mirrored = _mirrored(offset.float())[0]
    expected = -offset[0].float()
    if lines % 2 == 0:
        expected[0] = offset[0, 0]
    assert torch.equal(mirrored, expected)


def test_scores_are_shared_between_lines_and_local():
    """Measuring a line far away changes a score only through what all lines are told alike: not at all here."""
    torch.manual_seed(0)
    extractor = LineExtractor(SPACE, neighbours=2)
    torch.nn.init.normal_(extractor.score[-1].weight)
    with torch.no_grad():
        extractor.shared.weight.zero_()
        acquired = torch.zeros(2, LINES)
        acquired[:, 15:18] = 1
        acquired[1, 22] = 1
        scores = extractor(observe(acquired))[:, : extractor.num_scores]
    changed = (scores[0] != scores[1]).nonzero()[:, 0].tolist()
    # Line 22, its mirror image 10, and two neighbours of each.
    assert set(changed) <= {8, 9, 10, 11, 12, 20, 21, 22, 23, 24}
    assert 22 in changed
    assert 10 in changed


def test_missing_parts_are_named():
    with pytest.raises(SeggymError, match="budget"):
        LineExtractor(spaces.Dict({"acquired": spaces.MultiBinary(LINES)}))


def test_an_untrained_head_says_the_prior():
    extractor = LineExtractor(SPACE)
    head = torch.nn.Linear(extractor.features_dim, LINES + 1)
    prior = low_frequency_prior(LINES, 8.0, LINES + 1)
    start_head(head, prior, extractor.num_scores)
    with torch.no_grad():
        logits = head(extractor(observe(torch.ones(3, LINES))))
    constant = extractor.score[-1].bias
    assert torch.allclose(logits[:, :LINES], (prior[:LINES] + constant).expand(3, -1), atol=1e-5)
    assert torch.allclose(logits[:, LINES], prior[LINES].expand(3))


def test_group_advantages_have_no_mean_and_returns_stay():
    buffers = []
    for size in (1, 3):
        buffer = MaskableDeviceRolloutBuffer(5, SPACE, spaces.Discrete(LINES), n_envs=6, group_size=size)
        draws = np.random.default_rng(1)
        for step in range(5):
            buffer.add(
                {name: space.sample()[None].repeat(6, 0) for name, space in SPACE.spaces.items()},
                np.zeros((6, 1)),
                draws.normal(size=6),
                np.full(6, step == 0),
                torch.from_numpy(draws.normal(size=6)),
                torch.zeros(6),
                action_masks=np.ones((6, LINES)),
            )
        buffer.compute_returns_and_advantage(torch.from_numpy(draws.normal(size=6)), np.zeros(6))
        buffers.append(buffer)
    plain, grouped = buffers
    assert np.array_equal(plain.returns, grouped.returns)
    groups = grouped.held["advantages"].numpy().reshape(2, 3, 5)
    assert np.abs(groups.mean(1)).max() < 1e-6
    expected = plain.held["advantages"].numpy().reshape(2, 3, 5)
    assert groups == pytest.approx(expected - expected.mean(1, keepdims=True), abs=1e-6)
    with pytest.raises(SeggymError, match="group_size=4"):
        MaskableDeviceRolloutBuffer(5, SPACE, spaces.Discrete(LINES), n_envs=6, group_size=4)


def test_a_group_runs_the_same_episodes(tiny_env):
    batch = gymnasium.make_vec(
        tiny_env["id"],
        num_envs=6,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",
        **tiny_env["kwargs"],
    )
    env = BatchedVecEnv(batch, group_size=3)
    env.seed(0)
    env.reset()
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(12):
        keys = batch.engine.keys.reshape(2, 3)
        assert (keys == keys[:, :1]).all()
        assert keys[0, 0] != keys[1, 0]
        seen.add(int(keys[0, 0]))
        masks = env.env_method("action_masks")
        env.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in masks]))
    assert len(seen) > 1


def test_algorithms_without_rollouts_have_no_groups(tiny_env):
    settings = TrainSettings(
        run_dir="unused",
        env_id=tiny_env["id"],
        env_kwargs=tiny_env["kwargs"],
        algorithm="dqn",
        hyperparameters={},
        network={"extractor": "lines", "extractor_kwargs": {}, "net_arch": [], "activation": "relu"},
        group_size=2,
        num_envs=2,
    )
    with pytest.raises(SeggymError, match="group_size"):
        make_model(settings)


@pytest.mark.parametrize(("inputs", "outputs", "size"), [(6, 5, 9), (5, 1, 1)])
def test_a_line_convolution_is_a_convolution_over_lines(inputs, outputs, size):
    torch.manual_seed(0)
    ours = LineConvolution(inputs, outputs, size, padding=size // 2).double()
    plain = torch.nn.Conv1d(inputs, outputs, size, padding=size // 2).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, inputs, LINES, dtype=torch.float64)
    gradients = []
    for module in (ours, plain):
        given = x.clone().requires_grad_()
        result = module(given)
        result.square().sum().backward()
        gradients.append((result.detach(), given.grad, module.weight.grad, module.bias.grad))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10)
