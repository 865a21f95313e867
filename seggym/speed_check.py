"""How fast this machine steps the phantom environment: two seconds' worth, for ``seggym doctor``."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import gymnasium
import torch

ENVIRONMENT = "KSpaceSeg-Phantom-v0"
NUM_ENVS = 16
SECONDS = 2.0
# Few, because they are generated on a machine that has none yet.
_PHANTOMS = {"patients": 4, "test_patients": 1}


class Speed(NamedTuple):
    """What was measured, resets included."""

    steps_per_second: float
    """Image-steps per second of wall time: steps of the batch times :data:`NUM_ENVS`."""
    network_share: float
    """Time of a bare forward pass of the same images over the time of a step."""
    precision: str
    """Of the reward model."""


def measure_speed() -> Speed:
    """Step :data:`NUM_ENVS` environments at once on their default device, for :data:`SECONDS` after construction.

    Raises what making the environment raises, :class:`~seggym.errors.SeggymError` where there are no data for it.
    """
    env = gymnasium.make_vec(
        ENVIRONMENT, num_envs=NUM_ENVS, vectorization_mode="vector_entry_point", cohort_options=_PHANTOMS
    )
    try:
        engine = env.engine  # type: ignore[attr-defined]
        network, crop = engine.networks[0], engine.acquisition.crop
        env.reset(seed=0)
        images = torch.rand(NUM_ENVS, crop, crop, device=engine.device)
        # In turn, so that another program's load slows both.
        calls: tuple[Callable[[], object], ...] = (
            lambda: env.step(env.action_masks().argmax(1)),  # type: ignore[attr-defined]
            lambda: network(images),
        )
        seconds: list[list[float]] = [[], []]
        _time(calls, seconds, engine.device)
        seconds = [[], []]  # the first calls set things up
        while sum(map(sum, seconds)) < SECONDS:
            _time(calls, seconds, engine.device)
        stepping, forward = seconds
        share = statistics.median(forward) / statistics.median(stepping)
        return Speed(NUM_ENVS * len(stepping) / sum(stepping), share, network.precision)
    finally:
        env.close()


def _time(calls: Iterable[Callable[[], object]], seconds: list[list[float]], device: torch.device) -> None:
    """Append the wall time of each call to its own list."""
    for call, times in zip(calls, seconds, strict=True):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
