"""A small made-up scanner: synthetic slices, a stub network, and engines and environments made of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from synthetic_scanner import SMALL_SCAN, StubNetwork, synthetic_stack

from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.kspace.acquisition import SliceStack


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., KSpaceEngine]:
    """``make_engine(num_envs, dtype=, network=, stack=, **settings)``: an engine on the synthetic slices."""

    def make(
        num_envs: int = 1,
        *,
        dtype: torch.dtype = torch.float64,
        network: Any = None,
        stack: SliceStack | None = None,
        **settings: Any,
    ) -> KSpaceEngine:
        chosen = {"cohort": "acdc", "reward_model": "stub", "acquisition": SMALL_SCAN, "budget": [3, 9], **settings}
        checked = KSpaceSettings(**chosen)
        stack = synthetic_stack(checked.scan) if stack is None else stack
        return KSpaceEngine(stack, checked, num_envs, networks=[network or StubNetwork()], dtype=dtype)

    return make


@pytest.fixture(scope="session")
def make_stack() -> Callable[..., SliceStack]:
    """:func:`synthetic_stack`."""
    return synthetic_stack


@pytest.fixture(scope="session")
def play() -> Callable[..., list[torch.Tensor]]:
    """``play(engine, keys, steps, seed=)``: begin the episodes of ``keys``, then random legal lines; the actions."""

    def run(engine: KSpaceEngine, keys: list[int], steps: int, seed: int = 0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        engine.begin(torch.arange(engine.num_envs), engine.draw(torch.tensor(keys)))
        actions = []
        for _ in range(steps):
            scores = torch.rand(engine.num_envs, engine.num_actions, generator=generator)
            actions.append(torch.where(engine.action_mask(), scores, -1.0).argmax(1))
            engine.step(actions[-1])
        return actions

    return run
