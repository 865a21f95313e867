"""The policies that a learned one is compared with: a registry of names, and how each is made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seggym.agents import greedy
from seggym.agents.echo_baselines import EchoFollowing, tuned_entropy_stop
from seggym.agents.learned_stop import tuned_learned_stop
from seggym.agents.policies import Baseline, EpisodeOrder, FixedOrder, Policy, first_line
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.errors import SeggymError
from seggym.kspace import orders, view_orders
from seggym.kspace.acquisition import Acquisition

POWERS = (1, 2, 4, 6, 8, 12)
RATIOS = (1, 2, 3, 4, 6, 10**6)  # lines on the major side per line on the minor side; the last one is one-sided


@dataclass
class TuningGround:
    """What a baseline may be tuned with: training slices, scored by networks that never saw their patients.

    ``make_engine(at_most)`` builds an engine over the training role with an environment for each slice, but not more
    than ``at_most``; ``length`` is the largest budget of the evaluation; ``key`` all that a result depends on beside
    the search itself (plain JSON).
    """

    acquisition: Acquisition
    make_engine: Callable[[int], KSpaceEngine]
    length: int
    key: dict[str, Any]
    max_slices: int = greedy.MAX_SLICES
    window: int = greedy.WINDOW
    cache: Path | None = None
    progress: bool = True

    def engine(self) -> KSpaceEngine:
        """An engine with one environment for each slice that tuning uses."""
        return self.make_engine(self.max_slices)

    def search(self, what: dict[str, Any], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cached result of ``find``, bound to ``what`` it searches, the data, the networks and the scan."""
        key = {**self.key, **what, "length": self.length, "max_slices": self.max_slices}
        return greedy.cached_search(key, find, self.cache)


class EnergyFollowing(Baseline):
    """Grows the measured block around DC towards the side whose outermost measured line holds more energy.

    It sees measured samples only, so it finds the side to which the echo is shifted and follows the spectrum of each
    slice without knowing what the labels are.
    """

    def __init__(self) -> None:
        super().__init__("energy_following")
        self.identity = {"version": 1}

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        line = torch.arange(engine.num_lines, device=legal.device)
        scan = torch.arange(len(legal), device=legal.device)
        open_lines = ~engine.acquired
        right = torch.where(open_lines & (line > engine.acquisition.dc), line, engine.num_lines).amin(1)
        left = torch.where(open_lines & (line < engine.acquisition.dc), line, -1).amax(1)
        sides = torch.stack([right, left], 1)
        possible = (sides >= 0) & (sides < engine.num_lines)
        target = sides.clamp(0, engine.num_lines - 1)
        possible &= legal[scan[:, None], target]
        # Inside the edge of the measured block by construction, so only measured samples are read.
        neighbour = target + torch.tensor([-1, 1], device=legal.device)
        energy = engine.scanner.energy[scan[:, None], neighbour]
        energy = torch.where(possible, energy, -torch.inf)
        near = torch.from_numpy(orders.centre_out(engine.num_lines)).to(legal.device)
        fallback = near[legal[:, near].byte().argmax(1)]
        return torch.where(possible.any(1), target[scan, energy.argmax(1)], fallback)


class RegionGrowing(Baseline):
    """Measures the point beside the measured ones whose measured neighbours hold most energy: energy following in 2-D.

    A neighbour shares an edge. It sees measured samples only.
    """

    def __init__(self) -> None:
        super().__init__("energy_following")
        self.identity = {"version": 1, "trajectory": "points"}

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        side = engine.acquisition.matrix // engine.acquisition.block
        seen = torch.where(engine.acquired, engine.scanner.energy, -torch.inf).unflatten(1, (side, side))
        around = torch.nn.functional.pad(seen, (1, 1, 1, 1), value=-torch.inf)
        shifted = (around[:, 2:, 1:-1], around[:, :-2, 1:-1], around[:, 1:-1, 2:], around[:, 1:-1, :-2])
        energy = torch.stack(shifted).amax(0).flatten(1)
        energy = torch.where(legal[:, : engine.num_lines] & ~engine.acquired, energy, -torch.inf)
        order = torch.from_numpy(view_orders.plain_order(engine.acquisition)).to(legal.device)
        best = order[energy[:, order].argmax(1)]
        return torch.where(energy.isfinite().any(1), best, first_line(order.expand(len(legal), -1), engine, legal))


def variable_density_order(acquisition: Acquisition, power: float) -> EpisodeOrder:
    """Random orders with a density that falls with the distance from DC to the power of ``power``."""
    return EpisodeOrder("variable_density", lambda rng, budget: view_orders.random_order(acquisition, power, rng))


def _random(ground: TuningGround) -> Policy:
    views = ground.acquisition.num_views
    policy = EpisodeOrder("random", lambda rng, budget: orders.uniformly_random(views, rng))
    return _identified(policy, {"version": 1})


def _equispaced(ground: TuningGround) -> Policy:
    scan = ground.acquisition

    def draw(rng: np.random.Generator, budget: int) -> np.ndarray:
        if scan.trajectory == "radial":
            return view_orders.equispaced_spokes(scan, budget, rng)
        return orders.equispaced(scan.matrix, budget, scan.initial_lines, rng)

    return _identified(EpisodeOrder("equispaced", draw, anytime=False), {"version": 1})


def _variable_density(ground: TuningGround) -> Policy:
    scan = ground.acquisition

    def find() -> dict[str, Any]:
        candidates = [(power, variable_density_order(scan, power)) for power in POWERS]
        power, areas = greedy.tune(ground.engine(), candidates, ground.length, "variable density", ground.progress)
        return {"power": power, "areas": areas}

    found = ground.search({"search": "variable_density", "powers": POWERS}, find)
    return _identified(variable_density_order(scan, found["power"]), {"power": found["power"]})


def _centre_out(ground: TuningGround) -> Policy:
    return FixedOrder("centre_out", view_orders.plain_order(ground.acquisition))


def _golden_angle(ground: TuningGround) -> Policy:
    return FixedOrder("golden_angle", view_orders.golden_angle(ground.acquisition))


def _sequential(ground: TuningGround) -> Policy:
    return FixedOrder("sequential", view_orders.spokes_by_angle(ground.acquisition))


def _energy_following(ground: TuningGround) -> Policy:
    return RegionGrowing() if ground.acquisition.trajectory == "points" else EnergyFollowing()


def _partial_fourier(ground: TuningGround) -> Policy:
    matrix = ground.acquisition.matrix

    def order(side: int, ratio: int) -> FixedOrder:
        return FixedOrder("partial_fourier", orders.partial_fourier(matrix, side, ratio))

    def find() -> dict[str, Any]:
        settings = [(side, ratio) for ratio in RATIOS for side in (1, -1)]
        candidates = [((side, ratio), order(side, ratio)) for side, ratio in settings]
        (side, ratio), areas = greedy.tune(
            ground.engine(), candidates, ground.length, "partial Fourier", ground.progress
        )
        return {"side": side, "ratio": ratio, "areas": areas}

    found = ground.search({"search": "partial_fourier", "ratios": RATIOS}, find)
    return order(found["side"], found["ratio"])


def _population_greedy(ground: TuningGround) -> Policy:
    def find() -> dict[str, Any]:
        order = greedy.population_greedy(ground.engine(), ground.length, ground.window, ground.progress)
        return {"order": order.tolist()}

    found = ground.search({"search": "population_greedy", "window": ground.window}, find)
    return FixedOrder("population_greedy", np.asarray(found["order"]))


def _identified(policy: EpisodeOrder, identity: dict[str, Any]) -> Policy:
    policy.identity = identity
    return policy


# In the order of the tables. Everything but one_step_greedy uses labels of training patients at most.
BASELINES: dict[str, Callable[[TuningGround], Policy]] = {
    "random": _random,
    "equispaced": _equispaced,
    "variable_density": _variable_density,
    "sequential": _sequential,
    "golden_angle": _golden_angle,
    "centre_out": _centre_out,
    "partial_fourier": _partial_fourier,
    "energy_following": _energy_following,
    "echo_following": lambda ground: EchoFollowing(),
    "entropy_stop": lambda ground: tuned_entropy_stop(ground, EchoFollowing()),
    "learned_stop": lambda ground: tuned_learned_stop(ground, EchoFollowing()),
    "population_greedy": _population_greedy,
    "one_step_greedy": lambda ground: greedy.OneStepGreedy(ground.window, ground.progress),
}


# They need stop_action=true, so they have to be asked for.
_STOPPING = ("entropy_stop", "learned_stop")
# What makes sense of one trajectory only; spokes all pass the centre, so that none is nearer to it than another.
_ONLY = {
    "equispaced": ("lines", "radial"),
    "variable_density": ("lines", "points"),
    "sequential": ("radial",),
    "golden_angle": ("radial",),
    "centre_out": ("lines", "points"),
    "partial_fourier": ("lines",),
    "energy_following": ("lines", "points"),
    "echo_following": ("lines",),
    **dict.fromkeys(_STOPPING, ()),
}


def offered(trajectory: str) -> list[str]:
    """Names of the baselines for an acquisition with ``trajectory``."""
    return [name for name in BASELINES if trajectory in _ONLY.get(name, (trajectory,))]


def make_baselines(names: Sequence[str] | None, ground: TuningGround) -> list[Policy]:
    """The baselines ``names`` (default: all of the trajectory), tuned on ``ground`` where they can be."""
    known = offered(ground.acquisition.trajectory)
    chosen = known if names is None else list(names)
    unknown = [name for name in chosen if name not in (*known, *_STOPPING)]
    if unknown:
        raise SeggymError(
            f"baselines={unknown} are unknown to trajectory={ground.acquisition.trajectory!r}, expected some of "
            f"{', '.join(known)}"
        )
    return [BASELINES[name](ground) for name in chosen]
