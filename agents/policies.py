"""What a policy is, and the simple ones: a fixed order of lines, an order drawn per episode, somebody's function."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from seggym.envs.kspace.engine import KSpaceEngine
from seggym.errors import SeggymError

Chooser = Callable[[dict[str, np.ndarray], np.ndarray], Any]


@runtime_checkable
class Policy(Protocol):
    """Chooses the next line of every scan of an engine.

    ``privileged`` policies see labels of the episodes they act in, and are reported apart. ``anytime`` policies do the
    same whatever the budget, so that one run at the largest budget serves every smaller one. A policy that also has
    ``identity`` (plain JSON that distinguishes it from others of its name, not None) can have its results cached.
    """

    name: str
    privileged: bool
    anytime: bool

    def begin(self, engine: KSpaceEngine) -> None:
        """New episodes have begun in every environment of ``engine``."""
        ...

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,) for the ``observation`` of N scans, of which ``legal`` bool (N, A) are possible."""
        ...


class Baseline:
    """A policy that reads the engine instead of an observation, so that none needs to be made for it.

    What it may read are the measured lines; a baseline that reads more sets ``privileged``.
    """

    privileged = False
    anytime = True
    every_budget = False  # has no meaning as one run read off at every line: re-run for each budget in any protocol

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity: dict[str, Any] | None = None

    def begin(self, engine: KSpaceEngine) -> None:
        """Nothing to prepare."""

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        raise NotImplementedError


def first_line(orders: torch.Tensor, engine: KSpaceEngine, legal: torch.Tensor) -> torch.Tensor:
    """The first line of each of ``orders`` int64 (N, M) that is legal and not yet measured: int64 (N,).

    An order never measures a line again, where an environment would allow it. A scan with no such line gets the first
    action that is legal: the axis of phase encoding, say, where that is chosen first.
    """
    possible = (legal[:, : engine.num_lines] & ~engine.acquired).gather(1, orders)
    line = orders.gather(1, possible.byte().argmax(1, keepdim=True))[:, 0]
    return torch.where(possible.any(1), line, legal.byte().argmax(1))


class FixedOrder(Baseline):
    """The first line of one ``order`` (M,) that is legal and not yet measured, for all scans."""

    def __init__(self, name: str, order: np.ndarray) -> None:
        super().__init__(name)
        self.order = np.ascontiguousarray(order, dtype=np.int64)
        if not np.array_equal(np.sort(self.order), np.arange(len(self.order))):
            raise SeggymError(
                f"the order of policy {name} must hold every line 0..{len(self.order) - 1} exactly once; append the "
                "missing lines in any order"
            )
        self.identity = {"order": self.order.tolist()}

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        if len(self.order) != engine.num_lines:
            raise SeggymError(
                f"policy {self.name} orders {len(self.order)} lines, the acquisition has {engine.num_lines}; make the "
                "order for this matrix"
            )
        order = torch.from_numpy(self.order).to(legal.device)
        return first_line(order.expand(len(legal), -1), engine, legal)


class EpisodeOrder(Baseline):
    """The first line, legal and not yet measured, of an order that is drawn anew for every episode.

    ``draw(rng, budget)`` returns a permutation (M,). ``rng`` is seeded by the key of the episode, so the order belongs
    to the episode and not to the batch that it runs in; policies given the same key draw from the same numbers.
    """

    def __init__(self, name: str, draw: Callable[[np.random.Generator, int], np.ndarray], anytime: bool = True) -> None:
        super().__init__(name)
        self.anytime = anytime
        self._draw = draw
        self._orders = torch.zeros(0, 0, dtype=torch.int64)

    def begin(self, engine: KSpaceEngine) -> None:
        """Draw the order of every scan."""
        keys, budgets = engine.keys.tolist(), engine.budgets.tolist()
        orders = [
            self._draw(np.random.default_rng(key % 2**64), budget) for key, budget in zip(keys, budgets, strict=True)
        ]
        self._orders = torch.from_numpy(np.stack(orders).astype(np.int64)).to(engine.device)

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        return first_line(self._orders, engine, legal)


class CallablePolicy:
    """Anybody's function of a batch: ``function(observation, action_mask) -> actions``.

    ``observation`` is a dict of numpy arrays with a leading axis N, as the vector environment gives it;
    ``action_mask`` is bool (N, A); ``actions`` are N integers.
    """

    privileged = False
    # Nothing is known about the function: its observation holds the budget, so it is run anew for each.
    anytime = False

    def __init__(self, function: Chooser, name: str | None = None) -> None:
        self.name = str(name or getattr(function, "__name__", type(function).__name__))
        self._function = function

    def begin(self, engine: KSpaceEngine) -> None:
        """Tell a function that keeps a state, through its ``begin()`` if it has one."""
        begin = getattr(self._function, "begin", None)
        if begin is not None:
            begin()

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,); a wrong number of actions, or what is no whole number, is a :class:`SeggymError`."""
        arrays = {key: value.cpu().numpy() for key, value in observation.items()}
        returned = self._function(arrays, legal.cpu().numpy())
        actions = returned.detach().cpu().numpy() if isinstance(returned, torch.Tensor) else np.asarray(returned)
        if actions.shape != (len(legal),) or not np.issubdtype(actions.dtype, np.integer):
            raise SeggymError(
                f"policy {self.name} returned {actions.dtype} of shape {actions.shape}, expected {len(legal)} "
                "integers, one line for each scan of the batch"
            )
        return torch.from_numpy(actions.astype(np.int64)).to(legal.device)


def load_callable(spec: str) -> CallablePolicy:
    """The policy behind ``"module:function"``; modules in the working directory are found as well."""
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise SeggymError(f"policy={spec!r} is not of the form module:function, e.g. policy=my_agents:choose_line")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SeggymError(
            f"policy={spec!r}: module {module_name} cannot be imported ({error}); run from the folder that holds it, "
            "or install it"
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise SeggymError(f"policy={spec!r}: {module_name} has no function {attribute}; name one that it has")
    return CallablePolicy(function, name=attribute)
