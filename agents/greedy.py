"""Searches with labels: the greedy reference per slice, and orders and settings tuned on training data."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from seggym.agents.policies import Baseline, Policy
from seggym.cohorts.cohort import seggym_home
from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.envs.kspace.lookahead import try_lines
from seggym.errors import SeggymError
from seggym.files import read_json, write_json
from seggym.kspace import view_orders
from seggym.kspace.keyed_random import key_of

WINDOW = 24
MAX_SLICES = 64
SEARCH_VERSION = 1  # to be raised whenever the same arguments find another result: it is part of the key of the cache


def episode_key(purpose: str, slice_name: str, repeat: int = 0) -> int:
    """The key of an episode that depends on its slice and purpose alone, non-negative."""
    return key_of(f"{purpose}:{slice_name}:{repeat}") & (2**63 - 1)


def evenly_spread(count: int, at_most: int) -> np.ndarray:
    """At most ``at_most`` of 0..count-1 at equal distances, int64."""
    chosen = min(count, at_most)
    return np.arange(chosen) * count // max(chosen, 1)


class OneStepGreedy(Baseline):
    """Measures the line that brings the largest gain in quality, by the environment's own network and the labels.

    A privileged reference and not an upper bound: greedy is myopic, and what it maximises is one network's score.
    Only the 2 * ``window`` + 1 lines or points nearest to DC are tried, and every spoke; where all are measured, the
    one nearest to DC follows. A step tries them all, which takes long with a large network: ``progress`` shows a bar
    for each.
    """

    privileged = True

    def __init__(self, window: int = WINDOW, progress: bool = False) -> None:
        super().__init__("one_step_greedy")
        self.window, self.progress = window, progress
        self.identity = {"window": window, "version": SEARCH_VERSION}

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        near = torch.from_numpy(view_orders.plain_order(engine.acquisition)).to(legal.device)
        window = torch.from_numpy(view_orders.near_centre(engine.acquisition, self.window)).to(legal.device)
        tried = torch.zeros_like(legal[:, : engine.num_lines])
        tried[:, window] = legal[:, window]
        slots, lines = tried.nonzero(as_tuple=True)
        gains = torch.full(tried.shape, -torch.inf, dtype=engine.dtype, device=legal.device)
        if len(slots):
            title = "one-step greedy: lines of a step" if self.progress else None
            gains[slots, lines] = try_lines(engine, slots, lines, title)
        fallback = near[legal[:, near].byte().argmax(1)]
        # Ties go to the line nearer to DC.
        return torch.where(tried.any(1), near[gains[:, near].argmax(1)], fallback)


def begin_training_episodes(engine: KSpaceEngine, length: int, repeat: int = 0) -> None:
    """Start one episode of ``length`` lines per environment, on slices spread evenly over those of the engine.

    Another ``repeat`` scans the same slices with other draws.
    """
    samples = torch.from_numpy(evenly_spread(len(engine.stack), engine.num_envs)).to(engine.device)
    if len(samples) != engine.num_envs:
        raise SeggymError(
            f"the search asks for {engine.num_envs} slices, the data hold {len(engine.stack)}: ask for fewer"
        )
    names = engine.stack.names
    keys = [episode_key("tune", names[sample], repeat) for sample in samples.tolist()]
    every = torch.arange(engine.num_envs, device=engine.device)
    engine.begin(every, Episodes(samples, torch.full_like(samples, length), torch.tensor(keys, device=engine.device)))


def population_greedy(engine: KSpaceEngine, length: int, window: int = WINDOW, progress: bool = True) -> np.ndarray:
    """The order (M,) that greedily maximises the mean quality over the training slices in ``engine``.

    The first ``length`` lines after the initial ones are searched for, among the 2 * ``window`` + 1 nearest to DC (all
    spokes); the rest is in plain order, centre-out or by the golden angle.
    """
    begin_training_episodes(engine, length)
    every = torch.arange(engine.num_envs, device=engine.device)
    found: list[int] = []
    for _ in tqdm(range(length), desc="population greedy: lines", disable=not progress):
        # Where lines may be measured again, an order for all still holds each of them once.
        legal = (engine.action_mask()[0, : engine.num_lines] & ~engine.acquired[0]).cpu().numpy()
        near = [line for line in view_orders.near_centre(engine.acquisition, window).tolist() if legal[line]]
        if not near:
            break
        lines = torch.tensor(near, device=engine.device).repeat_interleave(len(every))
        means = try_lines(engine, every.repeat(len(near)), lines).view(len(near), -1).mean(1)
        found.append(near[int(means.argmax())])
        engine.step(torch.full_like(every, found[-1]))
    first = [*engine.acquisition.initial_views.tolist(), *found]
    rest = view_orders.plain_order(engine.acquisition).tolist()
    return np.asarray(first + [line for line in rest if line not in first])


def training_area(engine: KSpaceEngine, policy: Policy, length: int) -> float:
    """Mean quality over lines 1..``length`` and over the training slices in ``engine``, which scores every step."""
    begin_training_episodes(engine, length)
    policy.begin(engine)
    total = 0.0
    for _ in range(length):
        engine.step(policy.act(engine, {}, engine.action_mask()))
        total += engine.quality.mean().item()
    return total / length


def tune(
    engine: KSpaceEngine, candidates: Sequence[tuple[Any, Policy]], length: int, title: str, progress: bool = True
) -> tuple[Any, list[float]]:
    """The setting of the candidate (setting, policy) with the largest training area, and all the areas."""
    areas = [
        training_area(engine, policy, length)
        for _, policy in tqdm(candidates, desc=f"{title}: settings", disable=not progress)
    ]
    return candidates[int(np.argmax(areas))][0], areas


def cached_search(
    key: dict[str, Any], search: Callable[[], dict[str, Any]], folder: Path | None = None
) -> dict[str, Any]:
    """The JSON result of ``search()``, kept in ``folder`` (default ``$SEGGYM_HOME/cache/baselines``) under its key.

    ``key`` is all that the result depends on. Where the folder cannot be written the result is used all the same.
    """
    # Through JSON and back, so that it equals what is read from the file.
    key = json.loads(json.dumps({**key, "version": SEARCH_VERSION}))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = (folder or seggym_home() / "cache" / "baselines") / f"{digest}.json"
    if path.is_file():
        stored = read_json(path, "cached search")
        if isinstance(stored, dict) and isinstance(stored.get("result"), dict) and stored.get("key") == key:
            return stored["result"]
    result = search()
    try:
        write_json(path, {"key": key, "result": result})
    except SeggymError as error:
        warnings.warn(f"the search will be repeated next time: {error}", stacklevel=2)
    return result
