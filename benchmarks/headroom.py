"""What each feature of the Hard scans leaves to win, and what simple policies get of it: docs/headroom.md.

python -m benchmarks.headroom cohort=phantom reward_model=phantom-hard
python -m benchmarks.headroom cohort=acdc reward_model=acdc-hard split=split.json policies=runs/a,runs/b

Every feature is switched on alone over a plain scan, last all of them together. Finished features are kept in ``out``
and not run again. Options: ``datadir``, ``split``, ``features`` (some of them), ``policies`` (folders of trained
policies, training runs of one method), ``budget`` (24), ``every`` (1: network images after every so many lines; the
curve between them is interpolated), ``volumes`` (of the test patients; default all), ``slices`` (64, of the training
patients that choose the best fixed order), ``population_greedy`` (false: search for that order as well),
``greedy_window`` (0 is without; lines on either side of DC that the label-using greedy tries), ``out``, ``device``.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.k1.evaluating import greedy_volumes
from seggym import __version__
from seggym.agents.baselines import EnergyFollowing, make_baselines
from seggym.agents.bench import Bench, open_bench, settings_of
from seggym.agents.controls import RemeasureFirst
from seggym.agents.echo_baselines import AxisFirst, EchoFollowing
from seggym.agents.evaluation import BATCH
from seggym.agents.greedy import OneStepGreedy, evenly_spread
from seggym.agents.policies import Baseline, FixedOrder, Policy
from seggym.agents.results import PolicyResult
from seggym.agents.rollouts import Grader, RunPlan, grade_full_kspace, grade_policy
from seggym.agents.scores import Cases, plan_cases
from seggym.agents.snapshots import LearnedPolicy, load_policy
from seggym.configs.checking import build
from seggym.envs import ENVIRONMENTS
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.sources import load_cohort
from seggym.errors import SeggymError, one_sentence
from seggym.files import read_json, write_atomic, write_json
from seggym.kspace import orders
from seggym.reward_models.checkpoints import open_reward_model
from seggym.reward_models.statistics import bootstrap_interval, paired_difference

VERSION = 3  # to be raised when the same options give other numbers

_PLAIN: dict[str, Any] = {
    "phase": [0.0, 0.0],
    "echo_shift": 0.0,
    "orientation": 0.0,
    "field_of_view": [1.0, 1.0],
    "phase_encode": "columns",
    "corruption": 0.0,
}
_CORRUPTED = {"remeasure": "any", "corruption_flagged": True}
_HIDDEN = {"remeasure": "any", "corruption_flagged": False}

# name -> (fields of the acquisition, keyword arguments of the environment) that differ from the plain scan
FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "phase 0.5-3 rad": ({"phase": [0.5, 3.0]}, {}),
    "echo shift 4": ({"echo_shift": 4.0}, {}),
    "echo shift 12": ({"echo_shift": 12.0}, {}),
    "orientation and field of view": ({"orientation": 45.0, "field_of_view": [1.0, 1.25]}, {}),
    "either axis, drawn": ({"phase_encode": "random"}, {}),
    "either axis, chosen": ({}, {"choose_axis": True}),
    "corruption 0.1, flagged": ({"corruption": 0.1}, _CORRUPTED),
    "corruption 0.1, hidden": ({"corruption": 0.1}, _HIDDEN),
    "corruption 0.25, flagged": ({"corruption": 0.25}, _CORRUPTED),
    "corruption 0.25, hidden": ({"corruption": 0.25}, _HIDDEN),
    "4 lines per step": ({}, {"lines_per_step": 4}),
    "all together": (
        {
            "phase": [0.5, 3.0],
            "echo_shift": 12.0,
            "orientation": 45.0,
            "field_of_view": [1.0, 1.25],
            "phase_encode": "random",
            "corruption": 0.25,
        },
        _CORRUPTED,
    ),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    cohort: str
    reward_model: str
    datadir: str | None = None
    split: str | None = None
    features: str | None = None
    policies: str = ""
    budget: int = 24
    every: int = 1
    volumes: int | None = None
    slices: int = 64
    population_greedy: bool = False
    greedy_window: int = 0
    out: str = "runs/headroom"
    device: str = "auto"

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of lines at which images are segmented."""
        return (*range(self.every, self.budget, self.every), self.budget)

    @property
    def chosen(self) -> list[str]:
        """The names of the features to run."""
        names = list(FEATURES) if self.features is None else self.features.split(";")
        unknown = [name for name in names if name not in FEATURES]
        if unknown:
            raise SeggymError(f"features={unknown} are unknown, expected some of {'; '.join(FEATURES)}")
        return names

    @property
    def learned(self) -> list[LearnedPolicy]:
        """The trained policies."""
        device = "cpu" if not torch.cuda.is_available() else self.device
        return [load_policy(folder, device) for folder in self.policies.split(",") if folder]


def environment(options: Options, name: str, observation: Sequence[str], **more: Any) -> tuple[str, dict[str, Any]]:
    """Id and keyword arguments of the environment with the feature ``name``."""
    env_id = {"phantom": "KSpaceSeg-Phantom-Hard-v0", "acdc": "KSpaceSeg-ACDC-Hard-v0"}.get(options.cohort)
    if env_id is None:
        raise SeggymError(f"cohort={options.cohort!r} has no Hard environment, expected phantom or acdc")
    scan, kwargs = FEATURES[name]
    trained = open_reward_model(options.reward_model).acquisition
    size = {key: trained.get(key, ENVIRONMENTS[env_id][2]["acquisition"][key]) for key in ("matrix", "crop")}
    return env_id, {
        "acquisition": {**size, **_PLAIN, **scan},
        "reward_model": options.reward_model,
        "data_root": options.datadir,
        "split": options.split,
        "budget": options.budget,
        "remeasure": "never",
        "observation": list(observation),
        "device": options.device,
        **kwargs,
        **more,
    }


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
    learned = options.learned
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
        try:
            curves["trained"] = _curves(test, [test.run(policy) for policy in learned])
        except SeggymError as error:
            print(f"{name}: no trained policy, {error}", file=sys.stderr)
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


# --- the tables -------------------------------------------------------------------------------------------------------

_COLUMNS = (
    "energy-following",
    "echo-following",
    "re-measure first, then best fixed",
    "re-measure first, then energy",
    "trained",
    "label-using greedy",
)


def table(contents: dict[str, dict[str, Any]], net: str) -> str:
    """One row per feature: area of the best fixed order, and what every policy adds to it."""
    columns = [title for title in _COLUMNS if any(title in content["curves"] for content in contents.values())]
    head = ["feature", "best fixed order", "its area", "full k-space", "headroom \\*", *columns]
    rows = [head, ["---"] * len(head)]
    for name, content in contents.items():
        patients = content["patients"]
        areas = {title: _areas(content, title, net) for title in content["curves"]}
        base = areas["best fixed"]
        interval = bootstrap_interval(base[0], patients)
        full = np.asarray(content["full"][net])[0, 0]
        gains = [_gain(areas.get(title), base, patients) for title in ("privileged choice", *columns)]
        cells = [name, content["best_fixed"], f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"]
        rows.append([*cells, f"{bootstrap_interval(full, patients).mean:.3f}", *gains])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _areas(content: dict[str, Any], title: str, net: str) -> np.ndarray:
    """Areas (runs, volumes)."""
    return np.einsum("p,rpv->rv", area_weights(content["points"]), np.asarray(content["curves"][title][net]))


def _gain(values: np.ndarray | None, base: np.ndarray, patients: list[str]) -> str:
    if values is None:
        return ""
    runs = np.repeat(np.arange(len(values)), values.shape[1]).tolist() if len(values) > 1 else None
    found = paired_difference(
        values.ravel(), np.broadcast_to(base, values.shape).ravel(), patients * len(values), runs=runs
    )
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def markdown(contents: dict[str, dict[str, Any]], options: Options, command: str) -> str:
    """The page's tables."""
    first = next(iter(contents.values()))
    patients = len(set(first["patients"]))
    lines = [
        f"`{command}`",
        "",
        f"{options.cohort}: {patients} test patients, {len(first['patients'])} volumes, {first['slices']} slices. Area "
        f"of volume Dice over budgets 1 to {options.budget}, read every {options.every} lines; best fixed order chosen "
        f"on {first['tuning_slices']} slices of training patients. Columns after full k-space are differences to that "
        "order, paired by patient [95 % interval over patients]. \\* privileged: chosen with labels.",
    ]
    for net in ("B", "A"):
        if net in first["full"]:
            what = "independent: scores only" if net == "B" else "the environment's: chose the privileged ways"
            lines += ["", f"Network {net} ({what}):", "", table(contents, net)]
    return "\n".join(lines) + "\n"


def parsed(arguments: Sequence[str], kind: type) -> Any:
    """``key=value`` arguments as a ``kind``, whose defaults say what is a number."""
    given = dict(argument.split("=", 1) for argument in arguments)
    values: dict[str, Any] = {}
    for key, value in given.items():
        values[key] = int(value) if value.isdigit() else {"true": True, "false": False}.get(value, value)
    return build(kind, values)


def kept(path: Path, key: dict[str, Any], find: Any) -> dict[str, Any]:
    """What ``find()`` returns, from ``path`` where it is there with this ``key``."""
    if path.is_file():
        content = read_json(path, "benchmark result")
        if content.get("key") == key:
            return content
    started = time.perf_counter()
    content = {**find(), "key": key, "seconds": round(time.perf_counter() - started, 1)}
    write_json(path, content)
    return content


def key_of(options: Options, name: str) -> dict[str, Any]:
    """What the numbers of a feature depend on."""
    free = ("out", "device", "features", "policies", "datadir", "reward_model", "split")
    own = {field: value for field, value in asdict(options).items() if field not in free}
    cards = open_reward_model(options.reward_model).cards
    cohort, split = load_cohort(settings_of(*environment(options, name, ("acquired",))))
    return {
        **own,
        "fingerprint": cohort.fingerprint,
        "split": {role: list(getattr(split, role)) for role in ("train", "test")},
        "version": VERSION,
        "seggym": __version__,
        "feature": [name, *FEATURES[name]],
        "weights": {member: card.weights for member, card in cards.items()},
        "policies": [policy.identity["weights"] for policy in options.learned],
    }


@one_sentence
def main(*arguments: str) -> None:
    """Run the features that are missing and print the tables."""
    options: Options = parsed(arguments, Options)
    torch.set_num_threads(1)
    folder = Path(options.out)
    contents: dict[str, dict[str, Any]] = {}
    for name in options.chosen:
        path = folder / f"{options.cohort}-{name.replace(' ', '_')}.json"
        contents[name] = kept(path, key_of(options, name), lambda name=name: measure(options, name))
        text = markdown(contents, options, " ".join(["python -m benchmarks.headroom", *arguments]))
        write_atomic(folder / f"{options.cohort}.md", text.encode())
        print(f"{name}: {contents[name]['seconds']:.0f} s", file=sys.stderr)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
