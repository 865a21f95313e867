"""Policies on the same episodes, at every budget, scored by the environment's network and an independent one."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from tqdm import tqdm

from seggym import __version__
from seggym.agents.baselines import BASELINES, TuningGround, make_baselines
from seggym.agents.bench import Bench, open_bench
from seggym.agents.controls import control_policies
from seggym.agents.figures import file_name
from seggym.agents.policies import Baseline, CallablePolicy, Chooser, Policy, load_callable
from seggym.agents.results import EvaluationResult, PolicyResult
from seggym.agents.rollouts import Grader, RunPlan, grade_full_kspace, grade_policy
from seggym.agents.scores import Scores, plan_cases
from seggym.agents.volume_baselines import volume_baselines
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.errors import SeggymError
from seggym.files import write_atomic

BATCH = 64
CEILING = "full_kspace"


def bench_baselines(bench: Bench, names: Sequence[str] | None, ground: TuningGround) -> list[Policy]:
    """The baselines ``names`` (default: all) of the environment of ``bench``, tuned on ``ground`` where they can be."""
    if isinstance(bench.settings, VolumeSettings):
        return volume_baselines(names, bench.settings)
    return make_baselines(names, ground)


def evaluate_policies(
    bench: Bench,
    policies: Iterable[Policy | Sequence[Policy]],
    eval_range: Sequence[int],
    *,
    protocol: str = "per_budget",
    repeats: int = 1,
    surface_budgets: Sequence[int] | None = None,
    volumes: Collection[str] | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Run every policy on every slice of the bench and score it at every budget of ``eval_range`` [a, b].

    A policy given as a sequence is several training runs of one method, reported as one. The first policy that is no
    baseline is what the others are compared with. ``protocol`` "per_budget" re-runs a policy for each budget unless it
    is ``anytime``; "anytime" runs all of them once, at the largest budget. ``surface_budgets`` are those at which HD95
    and ASSD are computed (default: all; they take longer than everything else). ``volumes`` are those to be scanned, by
    name (default: all). With ``cache``, finished policies that have an ``identity`` are read from that folder instead
    of being run again.

    Where the environment scans volumes, budgets are lines per slice (see :mod:`seggym.agents.volume_evaluation`).
    """
    low, high = check_range(eval_range, bench.settings)
    if protocol not in ("per_budget", "anytime"):
        raise SeggymError(f"protocol={protocol!r} is unknown, expected per_budget or anytime")
    if repeats < 1:
        raise SeggymError(f"repeats={repeats} must be at least 1")
    if isinstance(bench.settings, VolumeSettings):
        # Imported late: it needs what is defined here.
        from seggym.agents.volume_evaluation import evaluate_volumes

        if volumes is not None:
            raise SeggymError("volumes= is for environments that scan single slices: leave it out")
        return evaluate_volumes(
            bench,
            policies,
            eval_range,
            protocol=protocol,
            repeats=repeats,
            surface_budgets=surface_budgets,
            cache=cache,
            progress=progress,
        )
    cases = plan_cases(bench.stack, bench.class_names, repeats, volumes)
    batches = -(-len(cases) // BATCH)
    plan = RunPlan(cases, range(low, high + 1), num_envs=-(-len(cases) // batches), once=protocol == "anytime")
    surfaces = set(plan.budgets if surface_budgets is None else surface_budgets)
    grader = Grader(plan, bench.independent, [i for i, budget in enumerate(plan.points) if budget in surfaces])
    # The scores are made here, so that the environment needs no network between the first and the last image.
    settings = replace(bench.settings, reward="terminal", objective="final", budget=high, illegal_action="noop")
    blind = replace(settings, observation=("acquired",))
    shared = {
        **bench.key,
        "range": [low, high],
        "once": plan.once,
        "repeats": repeats,
        "surfaces": sorted(surfaces),
        "independent": bench.independent is not None,
        "volumes": None if volumes is None else sorted(volumes),
        "seggym": __version__,
    }
    groups: list[list[Policy]] = [[p] if isinstance(p, Policy) else list(p) for p in policies]
    names = [group[0].name for group in groups] + [CEILING]
    if len(set(names)) < len(names):
        raise SeggymError(f"policies {', '.join(names)} must have different names: rename yours")
    results, done = [], 0
    with tqdm(total=sum(plan.steps(p) for group in groups for p in group), unit="step", disable=not progress) as bar:
        for group in groups:
            bar.set_description(group[0].name)
            runs = []
            for policy in group:

                def run(policy: Policy = policy) -> Scores:
                    observes = not isinstance(policy, Baseline)
                    engine = bench.make_engine(settings if observes else blind, plan.num_envs)
                    return grade_policy(policy, engine, grader, observes, bar)

                identity = getattr(policy, "identity", None)
                key = None if identity is None else {**shared, "policy": policy.name, "identity": identity}
                runs.append(cached_scores(cache, key, run))
                done += plan.steps(policy)
                bar.update(done - bar.n)
            kind = "baseline" if group[0].name in BASELINES else "policy"
            results.append(PolicyResult(group[0].name, kind, group[0].privileged, plan.points, runs))
    full = cached_scores(
        cache, {**shared, "policy": CEILING}, lambda: grade_full_kspace(bench.make_engine(blind, plan.num_envs), grader)
    )
    every = bench.settings.scan.num_views - len(bench.settings.scan.initial_views)
    results.append(PolicyResult(CEILING, "ceiling", False, (every,), [full]))
    # The subject of the comparisons comes first.
    results.sort(key=lambda result: ("policy", "baseline", "ceiling").index(result.kind))
    return EvaluationResult(
        env_id=bench.env_id,
        eval_range=(low, high),
        protocol=protocol,
        repeats=repeats,
        settings={**asdict(bench.settings), "acquisition": bench.settings.scan.as_dict()},
        provenance=bench.provenance,
        cases=cases,
        policies=results,
        key=bench.comparison_key(plan, repeats),
    )


def check_range(eval_range: Sequence[int], settings: KSpaceSettings) -> tuple[int, int]:
    """``eval_range`` as (a, b); raises :class:`SeggymError` unless 1 <= a <= b and b lines are there to measure."""
    most = settings.scan.num_views - len(settings.scan.initial_views)
    values = list(eval_range) if isinstance(eval_range, Iterable) else [eval_range]
    whole = all(isinstance(value, (int, np.integer)) for value in values)
    if len(values) != 2 or not whole or not 1 <= values[0] <= values[1] <= most:
        raise SeggymError(
            f"eval_range={values} must be [a, b] with whole numbers 1 <= a <= b <= {most}: the budgets to evaluate"
        )
    return int(values[0]), int(values[1])


def cached_scores(folder: Path | None, key: dict[str, Any] | None, compute: Callable[[], Scores]) -> Scores:
    if folder is None or key is None:
        return compute()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{file_name(key['policy'])}-{digest}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, zipfile.BadZipFile):
            # Half a file cannot come from us (writes are atomic), but the disk may have lost it: make it again.
            path.unlink(missing_ok=True)
    scores = compute()
    write_atomic(path, lambda target: np.savez_compressed(target, **scores))  # type: ignore[arg-type]
    return scores


@overload
def evaluate(policy: str | Path | Policy | Chooser, env_id: str | None = None, **options: Any) -> EvaluationResult: ...
@overload
def evaluate(
    policy: str | Path | Policy | Chooser, env_id: list[str] | tuple[str, ...], **options: Any
) -> "ResultTables": ...
def evaluate(
    policy: str | Path | Policy | Chooser,
    env_id: str | list[str] | tuple[str, ...] | None = None,
    *,
    eval_range: Sequence[int] = (1, 12),
    role: str = "test",
    baselines: Sequence[str] | None = (),
    controls: bool | None = None,
    net_b: str | None = None,
    protocol: str = "per_budget",
    repeats: int = 1,
    surface_budgets: Sequence[int] | None = (),
    cache: Path | None = None,
    progress: bool = True,
    **env_kwargs: Any,
) -> "EvaluationResult | ResultTables":
    """Evaluate anybody's policy in one registered environment, or in several.

    ``policy`` is the folder of a training run, a :class:`~seggym.agents.policies.Policy`, a function
    ``(observation, action_mask) -> actions``, or its name ``"module:function"``. ``env_id`` may be left out for a run
    folder, which knows its own. ``baselines`` names those to run on the same episodes (None: all). ``controls`` adds
    the same policy with swapped observations (of another patient; not retrained for them, so this is no blind twin) and
    the best fixed order, tuned on training and validation patients: the contrasts of the result are the gains over
    them. Default: where several environments are given. The other arguments are those of :func:`open_bench` and
    :func:`evaluate_policies`; ``env_kwargs`` go to every environment.

    Returns an :class:`EvaluationResult`, or for several ids a :class:`ResultTables` of them by id.

    >>> result = seggym.evaluate("runs/mine", eval_range=[1, 12], role="test")
    >>> print(result.table())
    """
    ids: list[str | None] = [env_id] if env_id is None or isinstance(env_id, str) else list(env_id)
    chosen, own_id, own_kwargs = resolve_policy(policy)
    results = ResultTables()
    for name in ids:
        if name is None and own_id is None:
            raise SeggymError("env_id is missing: only the folder of a training run knows its environment by itself")
        if own_id is not None and name is not None and name.rpartition(":")[2] != own_id.rpartition(":")[2]:
            raise SeggymError(f"the policy in {policy} was trained in {own_id}, not in {name}: evaluate it in its own")
        bench = open_bench(name or str(own_id), {**own_kwargs, **env_kwargs}, role, net_b)
        _, high = check_range(eval_range, bench.settings)
        ground = bench.ground(high, cache=cache, progress=progress)
        others = bench_baselines(bench, baselines, ground)
        if controls or (controls is None and len(ids) > 1):
            others += control_policies(bench, chosen, ground)
        results[bench.env_id] = evaluate_policies(
            bench,
            [chosen, *others],
            eval_range,
            protocol=protocol,
            repeats=repeats,
            surface_budgets=surface_budgets,
            cache=cache,
            progress=progress,
        )
    return results if not (env_id is None or isinstance(env_id, str)) else next(iter(results.values()))


class ResultTables(dict[str, EvaluationResult]):
    """The evaluation of one policy in each of several environments, by id."""

    def table(self) -> str:
        """The summary of every environment, and the gains in area over each comparator with their intervals."""
        return "\n\n".join(f"{result.table()}\n{result.gains()}" for result in self.values())


def resolve_policy(policy: str | Path | Policy | Chooser) -> tuple[Policy, str | None, dict[str, Any]]:
    """The policy, and the id and keyword arguments of its environment where it is a run folder."""
    if isinstance(policy, Policy):
        return policy, None, {}
    if isinstance(policy, (str, Path)):
        if ":" in str(policy) and not Path(policy).exists():
            return load_callable(str(policy)), None, {}
        # Imported late: trainers are not needed to evaluate a function.
        from seggym.agents.snapshots import load_policy

        learned = load_policy(policy)
        return learned, learned.card["env_id"], dict(learned.card["env_kwargs"])
    if callable(policy):
        return CallablePolicy(policy), None, {}
    raise SeggymError(f"policy={policy!r} is no run folder, Policy, function or 'module:function'")
