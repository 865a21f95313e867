"""Checks for other people's environments: does one keep the contracts of this suite?"""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

_TOLERANCE = 1e-4
_MAX_STEPS = 10_000


def check_seg_env(env: gymnasium.Env, *, objective: str = "final", seed: int = 0) -> None:
    """Raise :class:`AssertionError`, with a sentence that says what is wrong, where ``env`` breaks a contract.

    A few episodes are played with random legal actions. Checked are: observations and actions in their spaces; finite
    rewards that are the sum of ``info["reward_parts"]``; legal actions, the same in ``info["action_mask"]`` and
    ``action_masks()``, fresh at every call and all ones at the end; an illegal action that by default gains nothing and
    uses budget; a budget in the observation (where there is one) that falls by the same amount at every step; an end
    within 10,000 steps; the same result for the same seed; replay of an episode from its ``sample``, ``budget`` and
    ``key``; and, with ``objective="final"``, ``info["reward_parts"]["quality"]`` summing to the change of
    ``info["quality"]``.

    ``objective`` is "final", or "area" for an environment whose quality rewards are weighted.
    """
    _require(objective in ("final", "area"), f"objective={objective!r} is unknown, expected 'final' or 'area'")
    _require(
        isinstance(env.observation_space, gymnasium.spaces.Dict), "observation_space must be a Dict of named parts"
    )
    _require(
        isinstance(env.action_space, gymnasium.spaces.Discrete),
        f"action_space is {env.action_space}, expected Discrete: a mask has one entry per action",
    )
    _require(
        callable(getattr(env.unwrapped, "action_masks", None)),
        "the environment has no action_masks() for the legal actions",
    )
    first = _play(env, objective, seed)
    _check_same(first, _play(env, objective, seed), f"two episodes after reset(seed={seed}) with the same actions")
    other = _play(env, objective, seed + 1)
    keys = [int(_single(step.info, "key")) for step in (first[0], other[0])]
    _require(keys[0] != keys[1], f"reset with seeds {seed} and {seed + 1} began the same episode (key {keys[0]})")
    episode = {name: int(_single(first[0].info, name)) for name in ("sample", "budget", "key")}
    replay = _play(env, objective, None, options={"episodes": [episode]})
    _check_same(first, replay, f"the replay of episode {episode} with reset(options={{'episodes': [...]}})")
    _check_illegal_action(env, seed)


class _Step:
    """What one call of reset or step returned."""

    def __init__(self, observation: Any, reward: float, terminated: bool, info: dict[str, Any]) -> None:
        self.observation, self.reward, self.terminated, self.info = observation, reward, terminated, info


def _play(env: gymnasium.Env, objective: str, seed: int | None, options: dict[str, Any] | None = None) -> list[_Step]:
    """One checked episode with random legal actions; the same ones for every seed."""
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=seed, options=options)
    steps = [_Step(observation, 0.0, False, info)]
    _check_step(env, steps[-1], "reset")
    frozen = _copy(observation)
    while not steps[-1].terminated:
        number = len(steps)
        _require(number <= _MAX_STEPS, f"the episode did not end within {_MAX_STEPS} steps; every budget is finite")
        mask = np.asarray(steps[-1].info["action_mask"])
        action = int(rng.choice(np.flatnonzero(mask)))
        observation, reward, terminated, truncated, info = env.step(action)
        _require(not truncated, f"step {number} was truncated: a used-up budget is terminated, there is no other limit")
        steps.append(_Step(observation, float(reward), bool(terminated), info))
        _check_step(env, steps[-1], f"step {number}")
    for name, value in frozen.items():
        _require(
            np.array_equal(value, steps[0].observation[name]),
            f"observation[{name!r}] of the reset changed during the episode: return a fresh array at every call",
        )
    _check_budget(steps)
    if objective == "final":
        gained = sum(float(_single(step.info["reward_parts"], "quality")) for step in steps[1:])
        change = float(_single(steps[-1].info, "quality")) - float(_single(steps[0].info, "quality"))
        _require(
            abs(gained - change) <= _TOLERANCE * max(1.0, abs(change)),
            f"info['reward_parts']['quality'] summed to {gained:.6g} over the episode, expected the final minus the "
            f"initial info['quality'], {change:.6g}",
        )
    return steps


def _check_step(env: gymnasium.Env, step: _Step, where: str) -> None:
    _require(
        env.observation_space.contains(step.observation), f"the observation of {where} lies outside observation_space"
    )
    _require(np.isfinite(step.reward), f"the reward of {where} is {step.reward}, expected a finite number")
    wanted = ["action_mask", "quality", "sample", "budget", "key"] + (["reward_parts"] if where != "reset" else [])
    missing = [name for name in wanted if name not in step.info]
    _require(not missing, f"info of {where} lacks {', '.join(missing)}")
    if where != "reset":
        total = sum(float(value) for value in step.info["reward_parts"].values())
        _require(
            abs(total - step.reward) <= _TOLERANCE * max(1.0, abs(total)),
            f"the reward of {where} is {step.reward:.6g}, but info['reward_parts'] sum to {total:.6g}",
        )
    _check_mask(env, step, where)


def _check_mask(env: gymnasium.Env, step: _Step, where: str) -> None:
    masks: Callable[[], np.ndarray] = env.unwrapped.action_masks  # type: ignore[attr-defined]
    shown, asked = np.asarray(step.info["action_mask"]), np.asarray(masks())
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    size = int(env.action_space.n)
    _require(
        shown.shape == asked.shape == (size,),
        f"masks after {where} have shapes {shown.shape} and {asked.shape}, expected ({size},), one entry per action",
    )
    _require(
        np.array_equal(shown.astype(bool), asked.astype(bool)),
        f"info['action_mask'] and action_masks() disagree after {where}: there must be one source of legal actions",
    )
    if "action_mask" in step.observation:
        _require(
            np.array_equal(np.asarray(step.observation["action_mask"]).astype(bool), asked.astype(bool)),
            f"observation['action_mask'] and action_masks() disagree after {where}",
        )
    _require(bool(asked.any()), f"no action is legal after {where}: end the episode instead")
    if step.terminated:
        _require(bool(asked.all()), f"the mask after {where}, the end of the episode, is not all ones")
    asked[...] = 0
    _require(
        bool(np.asarray(masks()).any()),
        "action_masks() returned the same array twice: return a fresh one at every call",
    )


def _check_budget(steps: list[_Step]) -> None:
    """The remainder is scaled by a constant: it falls by one unit at each step, and all at once by stopping."""
    if "budget" not in steps[0].observation:
        return
    left = [float(np.asarray(step.observation["budget"]).reshape(-1)[0]) for step in steps]
    _require(all(0 <= value <= 1 for value in left), "observation['budget'] must be scaled to [0, 1]")
    falls = -np.diff(left)
    unit = falls[0] if len(falls) > 1 else left[0]
    for number, fall in enumerate(falls, start=1):
        # The last step may be a stop action, which gives all that is left away.
        same = abs(fall - unit) <= 1e-6 or (steps[number].terminated and left[number] == 0)
        _require(
            bool(fall > 0 and same),
            f"observation['budget'] fell by {fall:.6g} in step {number}, expected the same positive amount in each "
            f"step ({unit:.6g})",
        )


def _check_illegal_action(env: gymnasium.Env, seed: int) -> None:
    """By default an illegal action is a no-op that uses budget. Environments in which none is illegal pass."""
    observation, info = env.reset(seed=seed)
    illegal = np.flatnonzero(np.asarray(info["action_mask"]) == 0)
    if not len(illegal):
        return
    before = float(_single(info, "quality"))
    after, reward, _, _, after_info = env.step(int(illegal[0]))
    _require(
        float(_single(after_info["reward_parts"], "quality")) == 0 and float(_single(after_info, "quality")) == before,
        f"the illegal action {illegal[0]} changed the quality (reward {float(reward):.6g}), expected a noop",
    )
    if "budget" in observation:
        _require(
            float(np.asarray(after["budget"]).reshape(-1)[0]) < float(np.asarray(observation["budget"]).reshape(-1)[0]),
            f"the illegal action {illegal[0]} used no budget: an agent could go on for ever",
        )


def _check_same(one: list[_Step], other: list[_Step], what: str) -> None:
    _require(
        len(one) == len(other), f"{what} lasted {len(one) - 1} and {len(other) - 1} steps, expected the same result"
    )
    for number, (first, second) in enumerate(zip(one, other, strict=True)):
        _require(
            first.reward == second.reward,
            f"{what} differ: rewards {first.reward!r} and {second.reward!r} in step {number}",
        )
        for name, value in _parts(first.observation):
            _require(
                np.array_equal(value, np.asarray(second.observation[name])),
                f"{what} differ: observation[{name!r}] of step {number}",
            )


def _parts(observation: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in observation.items():
        yield name, np.asarray(value)


def _copy(observation: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in _parts(observation)}


def _single(info: dict[str, Any], name: str) -> Any:
    _require(name in info, f"info lacks {name!r}")
    return np.asarray(info[name]).reshape(-1)[0]


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)
