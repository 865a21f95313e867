"""The evaluation of an outer fold: every method on its test patients, tuned on its training patients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.k1.networks import reward_model
from benchmarks.k1.policies import run_folder
from benchmarks.k1.protocol import Protocol
from benchmarks.k1.sharing import Task
from seggym.agents.baselines import TuningGround, make_baselines
from seggym.agents.bench import Bench, open_bench
from seggym.agents.blind import BlindTwin
from seggym.agents.controls import RemeasureFirst, choose_best_order, fixed_orders
from seggym.agents.curves import curves_of, joined
from seggym.agents.evaluation import evaluate_policies
from seggym.agents.fixed_sets import find_fixed_sets, static_order
from seggym.agents.policies import Baseline, FixedOrder, Policy
from seggym.agents.results import EvaluationResult
from seggym.agents.snapshots import LearnedPolicy, load_policy
from seggym.files import write_json
from seggym.kspace.acquisition import SliceStack
from seggym.reward_models.frozen import resolve_device

SUBJECT, TWIN, SWAPPED, STATIC = "learned", "blind_twin", "swapped_observation", "static_learned"
CONTROLS = (SWAPPED,)
"""Methods that explain and do not compete."""


def fold_folder(protocol: Protocol, fold: int) -> Path:
    """Where the curves of a fold lie."""
    return protocol.out / "evaluation" / f"fold{fold}"


def evaluation_tasks(protocol: Protocol) -> list[Task]:
    """One evaluation for every fold."""
    return [
        Task(fold_folder(protocol, fold), lambda fold=fold: _evaluate(protocol, fold))
        for fold in range(len(protocol.folds))
    ]


def _evaluate(protocol: Protocol, fold: int) -> None:
    options, folder = protocol.content["evaluation"], fold_folder(protocol, fold)
    kwargs = protocol.env_kwargs(fold, reward_model(protocol, fold))
    bench = open_bench(protocol.content["env"]["id"], kwargs, "test")
    ground = bench.ground(
        protocol.budget,
        cache=protocol.out / "searches",
        progress=protocol.progress,
        max_slices=options["max_slices"],
        window=options["window"],
    )
    learned, twins = (_policies(protocol, fold, kind) for kind in ("learned", "blind"))
    for policy in learned:
        policy.name = SUBJECT
    static = [FixedOrder(STATIC, _static_order(policy, bench, ground)) for policy in learned]
    baselines = make_baselines(options["baselines"], ground)
    candidates = [*fixed_orders(ground), static[0]]
    best = choose_best_order(
        bench,
        candidates,
        protocol.budget,
        slices=options["selection_slices"],
        cache=ground.cache,
        progress=protocol.progress,
    )
    policies: list[Policy | Sequence[Policy]] = [
        learned,
        [BlindTwin(policy, TWIN) for policy in twins],
        [BlindTwin(policy, SWAPPED) for policy in learned],
        static,
        *baselines,
        best,
    ]
    settings = bench.settings
    if settings.lines_per_step == 1:
        order = next(policy for policy in candidates if policy.name == "population_greedy").order
        budgets = range(1, protocol.budget + 1)
        policies.append(find_fixed_sets(ground, order, budgets, options["set_evaluations"]))
    if settings.remeasure != "never" and settings.corruption_flagged:
        # Reacting to corruption needs no learning: the best order and the best heuristic may do it too.
        follower = [
            policy for policy in baselines if policy.name == "energy_following" and isinstance(policy, Baseline)
        ]
        policies += [RemeasureFirst(policy) for policy in (best, *follower)]
    volumes = greedy_volumes(bench.stack, options["greedy_volumes"])
    references = [policy for policy in policies if isinstance(policy, Baseline) and policy.privileged]
    apart = references if len(volumes) < len(set(bench.stack.volumes)) else []

    def run(chosen: Sequence[Policy | Sequence[Policy]], only: Sequence[str] | None = None) -> EvaluationResult:
        return evaluate_policies(
            bench,
            chosen,
            [1, protocol.budget],
            protocol="anytime",
            repeats=options["repeats"],
            surface_budgets=[],
            volumes=only,
            cache=protocol.out / "scores",
            progress=protocol.progress,
        )

    result = run([policy for policy in policies if policy not in apart])
    curves = curves_of(result, result.key, fold)
    if apart:
        some = run(apart, volumes)
        curves = joined(curves, curves_of(some, some.key, fold))
    curves.save(folder)
    chosen = next(policy.name for policy in candidates if np.array_equal(policy.order, best.order))
    write_json(folder / "notes.json", {"best_fixed_order": chosen, "lines": _lines(result)})


def greedy_volumes(stack: SliceStack, count: int | None) -> list[str]:
    """The volumes that the label-using reference scans, ``count`` of them (None: all).

    As many patients as possible: the first volume of every second patient and the second one of the others, and so on.
    """
    volumes: dict[str, list[str]] = {}
    for patient, volume in sorted(set(zip(stack.patients, stack.volumes, strict=True))):
        volumes.setdefault(patient, []).append(volume)
    turns = [own[number % len(own) :] + own[: number % len(own)] for number, own in enumerate(volumes.values())]
    rounds = [own[i] for i in range(max(map(len, turns))) for own in turns if i < len(own)]
    return rounds if count is None else rounds[:count]


def _policies(protocol: Protocol, fold: int, kind: str) -> list[LearnedPolicy]:
    device = str(resolve_device(protocol.device))
    return [load_policy(run_folder(protocol, fold, kind, seed), device) for seed in protocol.seeds(fold)]


def _static_order(policy: LearnedPolicy, bench: Bench, ground: TuningGround) -> np.ndarray:
    def find() -> dict[str, Any]:
        engine = bench.tuning_engine("train", ground.max_slices, ground.length, policy.observation)
        return {"order": static_order(policy, engine, ground.length).tolist()}

    found = ground.search({"search": "static_order", "policy": policy.identity}, find)
    return np.asarray(found["order"])


def _lines(result: EvaluationResult) -> dict[str, Any]:
    """How much each method varies between scans: the mean number of different lines at a step of the first run."""
    spread = {}
    for policy in result.policies:
        if "lines" in policy.runs[0]:
            lines = policy.runs[0]["lines"]
            counts = [len(np.unique(column[column >= 0])) for column in lines.T]
            spread[policy.name] = round(float(np.mean(counts)), 2)
    return spread
