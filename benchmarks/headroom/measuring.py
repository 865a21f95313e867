"""Every policy on the test patients of one scan, and the privileged choice among simple ones."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.headroom.scans import Options, environment
from benchmarks.headroom.training import trained_policies
from benchmarks.k1.evaluating import greedy_volumes
from seggym.agents.baselines import EnergyFollowing, make_baselines
from seggym.agents.bench import Bench, open_bench
from seggym.agents.controls import RemeasureFirst
from seggym.agents.echo_baselines import AxisFirst, EchoFollowing
from seggym.agents.evaluation import BATCH
from seggym.agents.greedy import OneStepGreedy, evenly_spread
from seggym.agents.policies import Baseline, FixedOrder, Policy
from seggym.agents.results import PolicyResult
from seggym.agents.rollouts import Grader, RunPlan, grade_full_kspace, grade_policy
from seggym.agents.scores import Cases, plan_cases
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.kspace import orders


class Ground:
    """Where policies are run and scored: the test patients, or the training patients, by network A alone."""

    def __init__(self, bench: Bench, options: Options, role: str, volumes: Sequence[str] | None = None) -> None:
        blind = replace(
            bench.settings,
            role=role,
            reward="terminal",
            objective="final",
            budget=options.budget,
            observation=("acquired",),
        )
        cases = plan_cases(bench.make_engine(blind, 1).stack, bench.class_names, only=volumes)
        if role == "train":
            cases = _spread(cases, options.slices)
        self.bench, self.settings, self.cases = bench, blind, cases
        self.plan = RunPlan(cases, options.budgets, -(-len(cases) // -(-len(cases) // BATCH)), once=True)
        self.weights = area_weights(self.plan.points)
        self._grader = Grader(self.plan, bench.independent if role == "test" else None, [])
        self._engine = bench.make_engine(blind, self.plan.num_envs)

    @property
    def engine(self) -> KSpaceEngine:
        """The engine of policies that observe nothing."""
        return self._engine

    def run(self, policy: Policy) -> PolicyResult:
        """The scores of ``policy`` on every case."""
        observes = not isinstance(policy, Baseline)
        shown = replace(self.settings, observation=self.bench.settings.observation)
        engine = self.bench.make_engine(shown, self.plan.num_envs) if observes else self._engine
        with tqdm(total=self.plan.steps(policy), desc=policy.name, unit="step", leave=False) as bar:
            scores = grade_policy(policy, engine, self._grader, observes, bar)
        return PolicyResult(policy.name, "policy", policy.privileged, self.plan.points, [scores])

    def full(self) -> PolicyResult:
        """The scores of all of k-space."""
        scores = grade_full_kspace(self._engine, self._grader)
        return PolicyResult("full", "ceiling", False, (self.plan.budgets[-1],), [scores])

    def slice_areas(self, policy: Policy) -> np.ndarray:
        """Area of the slice Dice by network A, (cases,); NaN where a slice has no structure."""
        return self.weights @ self.run(policy).values("A", "slice", "dice")[0]


def area_weights(points: Sequence[int]) -> np.ndarray:
    """Weights (points,) of the mean over 1..``points[-1]`` lines of a curve that is linear between its ``points``."""
    budgets = np.arange(1, points[-1] + 1)
    return np.stack([np.interp(budgets, points, row) for row in np.eye(len(points))]).mean(1)


class ChosenPerSlice(Baseline):
    """Follows ``ways[choice[s]]`` in slice s, where ``choice`` int64 (slices,) was made with labels."""

    privileged = True

    def __init__(self, ways: Sequence[Baseline], choice: torch.Tensor) -> None:
        super().__init__("privileged choice")
        self.ways, self.choice = ways, choice

    def begin(self, engine: KSpaceEngine) -> None:
        """New episodes for all of the ways."""
        for way in self.ways:
            way.begin(engine)

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,)."""
        actions = torch.stack([way.act(engine, observation, legal) for way in self.ways])
        return actions.gather(0, self.choice.to(legal.device)[engine.samples][None])[0]


def fixed_orders(bench: Bench) -> list[FixedOrder]:
    """Orders that are the same for everybody: centre-out, to one side, and around where the echo may be."""
    scan = bench.settings.scan
    found = [FixedOrder("centre-out", orders.centre_out(scan.matrix))]
    for ratio, title in ((4, "4:1"), (scan.matrix, "one-sided")):
        for side, sign in ((1, "+"), (-1, "-")):
            found.append(FixedOrder(f"{title} {sign}", orders.partial_fourier(scan.matrix, side, ratio)))
    if scan.echo_shift:
        # Two thirds of the largest shift: the middle of the outer thirds of where the echo is.
        for shift in (round(2 / 3 * scan.echo_shift), -round(2 / 3 * scan.echo_shift)):
            found.append(FixedOrder(f"around {shift:+d}", _around(scan.matrix, shift)))
    return found


def _around(matrix: int, shift: int) -> np.ndarray:
    """All lines by their distance from ``shift`` lines beside DC."""
    line = np.arange(matrix)
    return np.argsort(np.abs(line - (matrix // 2 + shift)) * 2 + (line < matrix // 2 + shift), kind="stable")


def measure(options: Options, name: str) -> dict[str, Any]:
    """Curves of every policy with the feature ``name``, plain JSON."""
    learned = trained_policies(options, name)
    observation = learned[0].observation if learned else ("acquired",)
    bench = open_bench(*environment(options, name, observation))
    settings = bench.settings
    test = Ground(bench, options, "test", greedy_volumes(bench.stack, options.volumes))
    train = Ground(bench, options, "train")

    axes: Sequence[int | None] = (0, 1) if settings.choose_axis else (None,)
    fixed: list[FixedOrder] = fixed_orders(bench)
    if options.population_greedy:
        (found,) = make_baselines(["population_greedy"], bench.ground(options.budget, max_slices=options.slices))
        assert isinstance(found, FixedOrder)
        fixed.append(found)
    ways: list[Baseline] = [_along(order, axis) for order in fixed for axis in axes]
    areas = [float(np.nanmean(train.slice_areas(way))) for way in ways]
    best = ways[int(np.argmax(areas))]
    axis = axes[int(np.argmax(areas)) % len(axes)]

    policies: dict[str, Policy] = {"best fixed": best}
    simple = {"energy-following": EnergyFollowing(), "echo-following": EchoFollowing()}
    policies |= {title: _along(policy, axis) for title, policy in simple.items()}
    flagged = bool(settings.scan.corruption) and settings.corruption_flagged
    if flagged:
        policies["re-measure first, then best fixed"] = RemeasureFirst(best)
        policies["re-measure first, then energy"] = RemeasureFirst(_along(EnergyFollowing(), axis))
        ways += [RemeasureFirst(way) for way in ways]
    chosen = _best_per_slice(test, ways)
    policies["privileged choice"] = ChosenPerSlice(ways, chosen)
    if options.greedy_window:
        policies["label-using greedy"] = _along(OneStepGreedy(options.greedy_window), axis)

    curves = {title: _curves(test, [test.run(policy)]) for title, policy in policies.items()}
    if learned:
        curves["trained"] = _curves(test, [test.run(policy) for policy in learned])
    return {
        "best_fixed": best.name,
        "training_areas": dict(zip([way.name for way in ways], areas, strict=False)),
        "chosen": {way.name: int((chosen == index).sum()) for index, way in enumerate(ways)},
        "privileged": [title for title, policy in policies.items() if policy.privileged],
        "points": list(test.plan.points),
        "patients": test.cases.volume_patients,
        "slices": len(test.cases),
        "tuning_slices": len(train.cases),
        "curves": curves,
        "full": _curves(test, [test.full()]),
    }


def _along(policy: Baseline, axis: int | None) -> Baseline:
    return policy if axis is None else AxisFirst(policy, axis)


def _spread(cases: Cases, at_most: int) -> Cases:
    """At most so many of ``cases`` at equal distances, so of as many patients as possible; each a volume of its own."""
    rows = evenly_spread(len(cases), at_most)
    names = [cases.names[row] for row in rows]
    return replace(
        cases,
        samples=cases.samples[rows],
        keys=cases.keys[rows],
        labels=cases.labels[rows],
        spacing=cases.spacing[rows],
        names=names,
        patients=[cases.patients[row] for row in rows],
        volumes={name: [number] for number, name in enumerate(names)},
    )


def _best_per_slice(ground: Ground, ways: Sequence[Baseline]) -> torch.Tensor:
    """The way with the largest area by labels and network A for every slice of the stack, int64 (slices,)."""
    areas = np.nan_to_num(np.stack([ground.slice_areas(way) for way in ways]))
    choice = torch.zeros(len(ground.bench.stack), dtype=torch.int64)
    choice[ground.cases.samples] = torch.from_numpy(areas.argmax(0))
    return choice


def _curves(ground: Ground, results: Sequence[PolicyResult]) -> dict[str, Any]:
    """Volume Dice by net: (runs, points, volumes) as lists."""
    nets = ("A",) if ground.bench.independent is None else ("A", "B")
    stacked = {net: np.stack([result.values(net, "volume", "dice")[0] for result in results]) for net in nets}
    return {net: values.round(5).tolist() for net, values in stacked.items()}
