"""Pictures: fixed size, fresh arrays, what they show."""

import numpy as np
import pytest

from seggym.envs.kspace.environment import KSpaceEnv, KSpaceVectorEnv
from seggym.errors import SeggymError

ORANGE = (255, 140, 0)


def panel(frame, index):
    """The square ``index`` of the upper row."""
    left = 10 + index * 266
    return frame[22 : 22 + 256, left : left + 256]


@pytest.mark.parametrize("settings", [{}, {"lambda_recon": 1.0, "stop_action": True}, {"reward": "terminal"}])
def test_every_frame_has_the_same_size(make_engine, settings):
    env = KSpaceVectorEnv(3, engine=make_engine(3, **settings), render_mode="rgb_array", autoreset_mode="SameStep")
    env.reset(seed=0)
    frames = [env.render()]
    rng = np.random.default_rng(0)
    for _ in range(20):
        env.step([rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()])
        frames.append(env.render())
    assert {frame.shape for row in frames for frame in row} == {(492, 1074, 3)}
    assert all(frame.dtype == np.uint8 for row in frames for frame in row)
    assert (frames[0][0] != frames[1][0]).any()


def test_measured_lines_are_shown_and_the_newest_is_marked(make_engine):
    env = KSpaceEnv(engine=make_engine(1, budget=9), render_mode="rgb_array")
    env.reset(seed=0)

    def columns():
        kspace = panel(env.render(), 0).astype(int)
        centres = (np.arange(48) + 0.5) * 256 / 48
        shown = kspace[:, centres.astype(int)]
        marked = (shown[:, :, 0] > shown[:, :, 2] + 50).all(0)
        return np.flatnonzero(shown.any((0, 2))).tolist(), np.flatnonzero(marked).tolist()

    assert columns() == ([23, 24, 25], [])
    env.step(5)
    assert columns() == ([5, 23, 24, 25], [5])
    env.step(40)
    assert columns() == ([5, 23, 24, 25, 40], [40])
    env.step(40)  # illegal: nothing new
    assert columns() == ([5, 23, 24, 25, 40], [])


def test_the_curve_grows_by_a_point_per_step(make_engine):
    env = KSpaceEnv(engine=make_engine(1, budget=9), render_mode="rgb_array")
    env.reset(options={"episodes": [{"sample": 0, "budget": 9, "key": 1}]})

    def orange(frame):
        return int((frame[300:] == ORANGE).all(-1).sum())

    counts = [orange(env.render())]
    for line in (30, 31, 32):
        env.step(line)
        counts.append(orange(env.render()))
    assert counts[0] > 0
    assert (np.diff(counts) > 0).all()


def test_drawing_changes_nothing(make_engine):
    plain, drawn = (KSpaceEnv(engine=make_engine(1), render_mode=mode) for mode in (None, "rgb_array"))
    plain.reset(seed=0)
    drawn.reset(seed=0)
    terminated = False
    while not terminated:
        action = int(np.flatnonzero(plain.action_masks())[0])
        one, other = plain.step(action), drawn.step(action)
        first, second = drawn.render(), drawn.render()
        np.testing.assert_array_equal(first, second)
        assert first is not second
        first[...] = 0
        np.testing.assert_array_equal(drawn.render(), second)
        np.testing.assert_array_equal(one[0]["image"], other[0]["image"])
        assert one[1] == other[1]
        terminated = one[2]
    assert plain.render() is None


def test_a_slice_without_a_class_is_drawn(make_engine):
    env = KSpaceEnv(engine=make_engine(1), render_mode="rgb_array")
    env.reset(options={"episodes": [{"sample": 6, "budget": 3, "key": 1}]})
    env.step(1)
    assert env.render().shape == (492, 1074, 3)


def test_a_resumed_environment_draws_from_then_on(make_engine):
    env = KSpaceVectorEnv(2, engine=make_engine(2, budget=9), render_mode="rgb_array")
    env.reset(seed=0)
    env.step([1, 2])
    other = KSpaceVectorEnv(2, engine=make_engine(2, budget=9), render_mode="rgb_array")
    with pytest.raises(SeggymError, match="nothing to render"):
        other.render()
    other.load_state_dict(env.state_dict())
    other.step([3, 4])
    assert other.render()[0].shape == (492, 1074, 3)


def test_an_unknown_render_mode_is_refused(make_engine):
    with pytest.raises(SeggymError, match="rgb_array"):
        KSpaceEnv(engine=make_engine(1), render_mode="human")
