"""Policies on the same episodes, at every budget, scored by the environment's network and an independent one."""

import hashlib
import json
import platform
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from seggym import __version__
from seggym.agents.baselines import BASELINES, TuningGround, make_baselines
from seggym.agents.controls import control_policies
from seggym.agents.figures import file_name
from seggym.agents.policies import Baseline, CallablePolicy, Chooser, Policy, load_callable
from seggym.agents.results import EvaluationResult, PolicyResult
from seggym.agents.rollouts import Grader, RunPlan, grade_full_kspace, grade_policy
from seggym.agents.scores import Scores, plan_cases
from seggym.agents.volume_baselines import volume_baselines
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.envs.kspace.segmentation import Segmenter
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.envs.kspace.sources import build_engine, choose_patients, load_cohort, require_fit, resolve_device
from seggym.envs.kspace.volumes.settings import VolumeSettings, settings_type
from seggym.envs.kspace.volumes.sources import build_volume_engine
from seggym.errors import SeggymError
from seggym.files import write_atomic
from seggym.kspace.acquisition import SliceStack
from seggym.kspace.reconstruction.methods import parse_reconstruction
from seggym.reward_models.checkpoints import RewardModel, open_reward_model
from seggym.reward_models.frozen import load_frozen
from seggym.reward_models.slices import prepared_slices

BATCH = 64
CEILING = "full_kspace"
_NOT_SETTINGS = ("autoreset_mode", "output", "render_mode", "max_episode_steps")
_KSPACE_ENTRY = "seggym.envs.kspace."


@dataclass(frozen=True)
class Bench:
    """Where policies are compared.

    ``settings`` of the environments (the role is whose patients are scored); ``make_engine(settings, N)``;
    ``independent`` is network B, None where there is none; ``provenance`` is plain JSON: data, networks, versions.
    """

    env_id: str
    settings: KSpaceSettings
    stack: SliceStack
    class_names: tuple[str, ...]
    make_engine: Callable[[KSpaceSettings, int], KSpaceEngine]
    independent: Segmenter | None
    provenance: dict[str, Any]

    def ground(self, length: int, cache: Path | None = None, progress: bool = True, **options: Any) -> TuningGround:
        """What baselines are tuned on: the training role of the same environment, scored at every step."""

        def make(at_most: int) -> KSpaceEngine:
            return self.tuning_engine("train", at_most, length)

        return TuningGround(
            self.settings.scan, make, length, key=self.key_of("train"), cache=cache, progress=progress, **options
        )

    def tuning_engine(
        self, role: str, at_most: int, length: int, observation: Sequence[str] = ("acquired",)
    ) -> KSpaceEngine:
        """An engine over the patients of ``role`` that scores every step, for at most ``at_most`` of their slices."""
        settings = replace(
            self.settings, role=role, reward="dense", budget=length, observation=observation, illegal_action="noop"
        )
        # A first engine of one environment knows how many slices there are; data and networks are shared.
        slices = len(self.make_engine(settings, 1).stack)
        return self.make_engine(settings, min(slices, at_most))

    def key_of(self, role: str) -> dict[str, Any]:
        """What a result depends on beside policy and budgets.

        Where data and networks lie and how fast it goes are no part: networks are known by their weights.
        """
        described = asdict(self.settings)
        # What is observed matters to a trained policy only, and its weights say that.
        for name in (
            "data_root",
            "root",
            "device",
            "role",
            "budget",
            "train_sampler_filename",
            "reward_model",
            "split",
        ):
            del described[name]
        del described["observation"]
        method, options = parse_reconstruction(self.settings.reconstruction)
        options.pop("folder", None)
        described["reconstruction"] = {"method": method, **options}
        names = ("fingerprint", "weights", "split")
        return {**described, "role": role, **{name: self.provenance.get(name) for name in names}}

    @property
    def key(self) -> dict[str, Any]:
        """All that a score depends on beside policy and budgets (plain JSON)."""
        return self.key_of(self.settings.role)

    def comparison_key(self, plan: RunPlan, repeats: int) -> dict[str, Any]:
        """What two evaluations must have in common for their policies to be compared: data, split, networks, budgets.

        How a policy was trained (its objective, what it observes) is no part of it.
        """
        own = self.key
        names = (
            *("cohort", "cohort_options", "role", "fingerprint", "split", "weights"),
            *("candidates", "stop_action", "choose_axis", "lines_per_step", "remeasure", "corruption_flagged"),
            "reconstruction",
        )
        return {
            **{name: own.get(name) for name in names},
            "acquisition": self.settings.scan.as_dict(),
            "budgets": [plan.budgets[0], plan.budgets[-1]],
            "once": plan.once,
            "repeats": repeats,
        }


def settings_of(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> KSpaceSettings:
    """The settings of a registered k-space environment with ``env_kwargs`` over its defaults."""
    name = env_id.rpartition(":")[2]
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise SeggymError(
            f"environment {env_id!r} is not registered ({error}); `seggym envs` lists those that are"
        ) from None
    if not str(spec.entry_point).startswith(_KSPACE_ENTRY):
        raise SeggymError(f"environment {env_id!r} is no k-space environment, which is what this evaluation compares")
    kwargs = {**spec.kwargs, **(env_kwargs or {})}
    try:
        chosen = {key: value for key, value in kwargs.items() if key not in _NOT_SETTINGS}
        return settings_type(spec.entry_point)(**chosen)
    except TypeError as error:
        raise SeggymError(f"environment {env_id!r} does not take these arguments: {error}") from None


def open_bench(
    env_id: str, env_kwargs: Mapping[str, Any] | None = None, role: str = "test", net_b: str | None = None
) -> Bench:
    """The bench of a registered environment; patients that a scoring network was trained on are refused.

    ``net_b`` is the folder of the independent network; by default the one that comes with the reward model. A copy of a
    network of the reward model is refused.
    """
    settings = replace(
        settings_of(env_id, env_kwargs), role=role, precision="fp32", train_sampler_filename=None, illegal_action="noop"
    )
    cohort, split = load_cohort(settings)
    stack = prepared_slices(cohort, choose_patients(cohort, split, settings), settings.scan)
    weights: dict[str, str] = {}
    independent = None
    if settings.reward_model is not None and settings.needs_network:
        model = open_reward_model(settings.reward_model)
        weights = {name: card.weights for name, card in model.cards.items()}
        if net_b is None and model.independent is not None:
            model.require_unseen("independent", stack.patients, cohort.name)
            net_b = str(model.independent)
        elif net_b is not None:
            other = open_reward_model(net_b)
            other.require_unseen("full", stack.patients, cohort.name)
            require_fit(other, "full", cohort, settings)
            weights["independent"] = other.cards["full"].weights
            net_b = str(other.full)
        if net_b is not None:
            _require_independent(model, weights["independent"], net_b)
            independent = load_frozen(net_b, resolve_device(settings.device), "fp32")
    if settings.reconstruction_network is not None:
        weights["reconstruction"] = open_reward_model(settings.reconstruction_network).cards["full"].weights
    provenance = {
        "cohort": cohort.name,
        "measured": cohort.measured,
        "fingerprint": cohort.fingerprint,
        "weights": weights,
        "split": {name: list(getattr(split, name)) for name in ("train", "val", "test")},
        "versions": {
            "seggym": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    build: Any = build_volume_engine if isinstance(settings, VolumeSettings) else build_engine
    return Bench(env_id, settings, stack, tuple(cohort.class_names), build, independent, provenance)


def _require_independent(model: RewardModel, weights: str, net_b: str) -> None:
    """Network B must not be one of the networks A: it would confirm whatever exploits them."""
    same = [name for name, card in model.cards.items() if name != "independent" and card.weights == weights]
    if same:
        raise SeggymError(
            f"net_b={net_b} has the weights {weights}, which are those of {model.path(same[0])}, expected a network of "
            "another seed and architecture than the reward model: pass another folder, or leave net_b out"
        )


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
