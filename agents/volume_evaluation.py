"""Policies on whole volumes, scored slice by slice and volume by volume as those of the 2-D environments are.

A budget of an evaluation is a number of lines per slice: a volume of Z slices gets Z times as many where an action is a
line of one slice. So a shared order and an allocation are compared at the same number of measurements.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from seggym import __version__
from seggym.agents.bench import Bench
from seggym.agents.evaluation import CEILING, cached_scores, check_range
from seggym.agents.greedy import episode_key
from seggym.agents.policies import Baseline, Policy
from seggym.agents.results import EvaluationResult, PolicyResult
from seggym.agents.rollouts import Grader, Record, RunPlan
from seggym.agents.scores import Scores, plan_cases
from seggym.agents.volume_baselines import volume_baselines
from seggym.envs.kspace.engine import Episodes
from seggym.envs.kspace.segmentation import segment
from seggym.envs.kspace.volumes.engine import VolumeEngine
from seggym.envs.kspace.volumes.settings import VolumeSettings
from seggym.reward_models import image_quality
from seggym.reward_models.metrics import most_probable

# Volumes at a time.
_BATCH = 8


@dataclass
class _Chunk:
    """Volumes that are run together: which they are, and their slices.

    samples, keys, depths int64 (B,); scans int64 (S,): the scans of the engine that hold a slice; owners int64 (S,):
    the environment of each; rows int64 (S,): the case of each; terms: of their noise-free images, made when known.
    """

    samples: torch.Tensor
    keys: torch.Tensor
    depths: torch.Tensor
    scans: torch.Tensor
    owners: torch.Tensor
    rows: torch.Tensor
    terms: image_quality.ReferenceTerms | None = None


def evaluate_volumes(
    bench: Bench,
    policies: Iterable[Policy | Sequence[Policy]],
    eval_range: Sequence[int],
    *,
    protocol: str = "per_budget",
    repeats: int = 1,
    surface_budgets: Sequence[int] | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """As :func:`seggym.agents.evaluation.evaluate_policies`, for a bench whose environment scans volumes.

    ``eval_range`` counts lines per slice. With ``slices="sequential"`` every policy is run anew for each budget,
    because the share of a slice follows from it.
    """
    settings = bench.settings
    assert isinstance(settings, VolumeSettings)
    low, high = check_range(eval_range, settings)
    cases = plan_cases(bench.stack, bench.class_names, repeats)
    plan = RunPlan(cases, range(low, high + 1), _BATCH, once=protocol == "anytime" and settings.slices != "sequential")
    surfaces = set(plan.budgets if surface_budgets is None else surface_budgets)
    grader = Grader(plan, bench.independent, [i for i, budget in enumerate(plan.points) if budget in surfaces])
    # Budgets come with the episodes.
    seeing = replace(settings, objective="final", budget=1, illegal_action="noop")
    blind = replace(seeing, observation=("acquired",))
    engine = _engine(bench, blind, 1)
    chunks = _chunks(engine, repeats, len(bench.stack))
    cases.keys[torch.cat([chunk.rows for chunk in chunks])] = torch.cat(
        [engine.slice_keys(chunk.keys)[chunk.owners, chunk.scans % engine.num_slots] for chunk in chunks]
    )
    shared = {
        **bench.key,
        "volumes": [low, high],
        "once": plan.once,
        "repeats": repeats,
        "surfaces": sorted(surfaces),
        "independent": bench.independent is not None,
        "seggym": __version__,
    }
    known = {policy.name for policy in volume_baselines(None, settings)}
    results = []
    groups: list[list[Policy]] = [[p] if isinstance(p, Policy) else list(p) for p in policies]
    for group in groups:
        runs = []
        for policy in group:
            observes = not isinstance(policy, Baseline)

            def run(policy: Policy = policy, observes: bool = observes) -> Scores:
                made = _engine(bench, seeing if observes else blind, _BATCH)
                return _grade(policy, made, grader, chunks, observes, progress)

            identity = getattr(policy, "identity", None)
            key = None if identity is None else {**shared, "policy": policy.name, "identity": identity}
            runs.append(cached_scores(cache, key, run))
        kind = "baseline" if group[0].name in known else "policy"
        results.append(PolicyResult(group[0].name, kind, group[0].privileged, plan.points, runs))
    full = cached_scores(
        cache, {**shared, "policy": CEILING}, lambda: _grade_full(_engine(bench, blind, _BATCH), grader, chunks)
    )
    results.append(PolicyResult(CEILING, "ceiling", False, (settings.lines_per_slice,), [full]))
    results.sort(key=lambda result: ("policy", "baseline", "ceiling").index(result.kind))
    return EvaluationResult(
        env_id=bench.env_id,
        eval_range=(low, high),
        protocol=protocol,
        repeats=repeats,
        settings={**asdict(settings), "acquisition": settings.scan.as_dict()},
        provenance=bench.provenance,
        cases=cases,
        policies=results,
        key=bench.comparison_key(plan, repeats),
    )


def _engine(bench: Bench, settings: VolumeSettings, num_envs: int) -> VolumeEngine:
    engine: Any = bench.make_engine(settings, num_envs)
    return engine


def _chunks(engine: VolumeEngine, repeats: int, slices: int) -> list[_Chunk]:
    """All volumes, ``repeats`` times, a batch at a time; rows are those of :func:`plan_cases` of ``slices`` slices."""
    names = engine.episode_names
    samples = torch.arange(len(names)).repeat(repeats)
    keys = torch.tensor([episode_key("eval", name, repeat) for repeat in range(repeats) for name in names])
    chunks = []
    for episodes in torch.arange(len(samples)).split(_BATCH):
        members = engine.table.members[samples[episodes]]
        owners, slots = (members >= 0).nonzero(as_tuple=True)
        rows = members[owners, slots] + slices * (episodes[owners] // len(names))
        depths = engine.table.depths[samples[episodes]]
        scans = owners * engine.num_slots + slots
        chunks.append(_Chunk(samples[episodes], keys[episodes], depths, scans, owners, rows))
    return chunks


def _begin(engine: VolumeEngine, chunk: _Chunk, budget: int) -> None:
    budgets = torch.full_like(chunk.depths, budget) * (1 if engine.is_shared else chunk.depths)
    episodes = Episodes(*(value.to(engine.device) for value in (chunk.samples, budgets, chunk.keys)))
    engine.begin(torch.arange(len(chunk.samples), device=engine.device), episodes)
    if chunk.terms is None:
        scans = chunk.scans.to(engine.device)
        maximum = engine.stack.data_range[engine.slices.samples[scans]].to(engine.dtype)
        chunk.terms = image_quality.encode_reference(engine.slices.scanner.noise_free(scans), maximum)


def _runs(plan: RunPlan, policy: Policy, engine: VolumeEngine) -> Iterator[tuple[int, tuple[int, ...]]]:
    if engine.settings.slices == "sequential":
        yield from ((budget, (budget,)) for budget in plan.budgets)
    else:
        yield from plan.runs(policy)


def _grade(
    policy: Policy, engine: VolumeEngine, grader: Grader, chunks: list[_Chunk], observes: bool, progress: bool
) -> Scores:
    """Run ``policy`` on all volumes and score the images of their slices at every number of lines per slice."""
    plan = grader.plan
    record = grader.empty(len(plan.points))
    lines = np.full((len(plan.cases), engine.settings.lines_per_slice), -1, np.int16)
    illegal = 0
    for chunk in tqdm(chunks, desc=policy.name, unit="batch", disable=not progress):
        for number, (budget, read) in enumerate(_runs(plan, policy, engine)):
            _begin(engine, chunk, budget)
            policy.begin(engine)  # type: ignore[arg-type]
            if number == 0:
                _show(record, chunk, engine, torch.ones_like(chunk.owners, dtype=torch.bool), 0)
            per_line = torch.ones_like(chunk.depths) if engine.is_shared else chunk.depths
            active = torch.arange(engine.num_envs, device=engine.device) < len(chunk.samples)
            while bool(active.any()):
                before = engine.slices.acquired[chunk.scans.to(engine.device)].cpu()
                observation = engine.observe() if observes else {}
                actions = policy.act(engine, observation, engine.action_mask())  # type: ignore[arg-type]
                result = engine.step(actions, active)
                illegal += int(result.illegal.sum())
                if budget == plan.budgets[-1]:
                    _note_lines(lines, chunk, engine, before)
                active &= ~result.terminated
                steps = engine.steps[: len(chunk.samples)].cpu()
                ended = ~active[: len(chunk.samples)].cpu()
                for point in read:
                    # A volume that ends early, for want of lines, keeps its last images.
                    now = (steps == point * per_line) | (ended & (steps < point * per_line))
                    if bool(now.any()):
                        _show(record, chunk, engine, now[chunk.owners], plan.points.index(point))
    return {**record.scores(), "lines": lines, "illegal": np.asarray(illegal)}


def _show(record: Record, chunk: _Chunk, engine: VolumeEngine, wanted: torch.Tensor, point: int) -> None:
    """Score the current images of the slices ``wanted`` bool (S,) at ``point``."""
    here = wanted.nonzero()[:, 0]
    scans = chunk.scans[here].to(engine.device)
    assert engine.segmentation is not None
    assert chunk.terms is not None
    magnitude, labels = engine.slices.magnitude[scans], engine.segmentation.labels[scans]
    record.show(chunk.rows[here], here.to(engine.device), engine.slices, magnitude, labels, chunk.terms)
    record.keep(point, chunk.rows[here])


def _note_lines(lines: np.ndarray, chunk: _Chunk, engine: VolumeEngine, before: torch.Tensor) -> None:
    """Write down the line that each slice has just measured, behind those it had."""
    new = engine.slices.acquired[chunk.scans.to(engine.device)].cpu() & ~before
    there = new.any(1)
    count = before.sum(1) - len(engine.slices.scanner.trajectory.initial)
    lines[chunk.rows[there], count[there]] = new[there].byte().argmax(1).numpy()


def _grade_full(engine: VolumeEngine, grader: Grader, chunks: list[_Chunk]) -> Scores:
    """The ceiling: every line of every slice, with the noise of the episode. One point."""
    record = grader.empty(1)
    for chunk in chunks:
        _begin(engine, chunk, 1)
        scans = chunk.scans.to(engine.device)
        magnitude = engine.slices.scanner.full(scans)
        route = engine.slices.routing[engine.slices.samples[scans]]
        labels = most_probable(segment(engine.networks, route, magnitude).probabilities)
        assert chunk.terms is not None
        every = torch.arange(len(scans), device=engine.device)
        record.show(chunk.rows, every, engine.slices, magnitude, labels, chunk.terms)
        record.keep(0, chunk.rows)
    return record.scores()
