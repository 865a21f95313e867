"""Running one policy over all cases, and recording what the scoring networks make of its images at every budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from seggym.agents.policies import Policy
from seggym.agents.scores import Cases, Scores, segmentation_scores, volume_image_scores
from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.envs.kspace.segmentation import Segmenter, segment
from seggym.kspace import simulation
from seggym.reward_models import image_quality, metrics


@dataclass(frozen=True)
class RunPlan:
    """Which cases, at which budgets, in engines of how many environments.

    ``once`` runs every policy once at the largest budget, also those that would act differently with a smaller one.
    """

    cases: Cases
    budgets: Sequence[int]
    num_envs: int
    once: bool = False

    @property
    def points(self) -> tuple[int, ...]:
        """The numbers of lines at which images are scored: 0 and every budget."""
        return (0, *self.budgets)

    def chunks(self) -> Iterator[torch.Tensor]:
        """Rows of the cases, in batches of at most ``num_envs``; the first one is full."""
        yield from torch.arange(len(self.cases)).split(self.num_envs)

    def runs(self, policy: Policy) -> list[tuple[int, tuple[int, ...]]]:
        """(budget, budgets that are read off during the run) of every run that ``policy`` needs."""
        if policy.anytime or self.once:
            return [(self.budgets[-1], tuple(self.budgets))]
        return [(budget, (budget,)) for budget in self.budgets]

    def steps(self, policy: Policy) -> int:
        """Batched steps of the whole evaluation of ``policy``."""
        return len(list(self.chunks())) * sum(budget for budget, _ in self.runs(policy))


@dataclass
class Grader:
    """Scores images by network A (the engine's), network B (``independent``) and against the noise-free image.

    ``surface_points`` are the indices of the plan's points at which surface distances are computed.
    """

    plan: RunPlan
    independent: Segmenter | None
    surface_points: Sequence[int]
    _references: dict[int, image_quality.ReferenceTerms] = field(default_factory=dict)

    def reference(self, rows: torch.Tensor, engine: KSpaceEngine) -> image_quality.ReferenceTerms:
        """Terms of the noise-free images of all lines, computed once for each batch of cases."""
        first = int(rows[0])
        if first not in self._references:
            stack, samples = engine.stack, engine.samples[: len(rows)]
            clean = simulation.encode(stack, samples, engine.keys[: len(rows)], engine.acquisition, engine.dtype)
            full = simulation.zero_filled(clean, None, engine.acquisition)
            self._references[first] = image_quality.encode_reference(full, stack.data_range[samples].to(engine.dtype))
        return self._references[first]

    def empty(self, points: int) -> "Record":
        """A record for ``points`` images of every case."""
        return Record(self, points)


class Record:
    """Label maps and image quality of every case at every point."""

    def __init__(self, grader: Grader, points: int) -> None:
        count = len(grader.plan.cases)
        self._grader = grader
        self._shape = (points, *grader.plan.cases.labels.shape)
        self._labels: dict[str, torch.Tensor] = {}
        self._ssim, self._psnr = (np.full((points, count), np.nan, np.float32) for _ in range(2))

    def add(
        self, point: int, rows: torch.Tensor, engine: KSpaceEngine, magnitude: torch.Tensor, a: torch.Tensor | None
    ) -> None:
        """Score ``magnitude`` (B, C, C) of the first B environments of ``engine``; ``a`` is network A's label maps."""
        terms = self._grader.reference(rows, engine)
        self._ssim[point, rows] = image_quality.ssim(magnitude, terms).cpu().numpy()
        self._psnr[point, rows] = image_quality.psnr(magnitude, terms).cpu().numpy()
        found = {"A": a}
        if self._grader.independent is not None:
            found["B"] = metrics.most_probable(self._grader.independent(magnitude).probabilities)
        for net, segmented in found.items():
            if segmented is not None:
                labels = self._labels.setdefault(net, torch.zeros(self._shape, dtype=torch.uint8))
                labels[point, rows] = segmented.cpu()

    def scores(self) -> Scores:
        """All scores of the record; see :mod:`seggym.agents.scores`."""
        scores: Scores = {"image/slice/ssim": self._ssim, "image/slice/psnr": self._psnr}
        cases, surfaces = self._grader.plan.cases, self._grader.surface_points
        scores |= volume_image_scores(scores, cases)
        for net, labels in self._labels.items():
            points = [0] if len(labels) == 1 else surfaces
            found = segmentation_scores(labels, cases, points)
            scores |= {f"{net}/{key}": values for key, values in found.items()}
        return scores


def grade_policy(policy: Policy, engine: KSpaceEngine, grader: Grader, observes: bool, bar: Any) -> Scores:
    """Run ``policy`` in ``engine`` on all cases; ``observes`` says whether it is given observations."""
    plan = grader.plan
    record = grader.empty(len(plan.points))
    lines = np.full((len(plan.cases), plan.budgets[-1]), -1, np.int16)
    illegal = 0
    seen = engine.settings.network_is_observed
    for rows in plan.chunks():
        for run, (budget, read) in enumerate(plan.runs(policy)):
            _begin(engine, rows, budget, plan.cases)
            policy.begin(engine)
            if run == 0:
                _read(record, 0, rows, engine, fresh=True)
            active = torch.arange(engine.num_envs, device=engine.device) < len(rows)
            for step in range(1, budget + 1):
                before = engine.acquired.clone()
                if bool(active.any()):
                    observation = engine.observe() if observes else {}
                    result = engine.step(policy.act(engine, observation, engine.action_mask()), active)
                    active &= ~result.terminated
                    illegal += int(result.illegal.sum())
                if budget == plan.budgets[-1]:
                    new = (engine.acquired & ~before)[: len(rows)].cpu()
                    lines[rows, step - 1] = torch.where(new.any(1), new.byte().argmax(1), -1).numpy()
                if step in read:
                    _read(record, plan.points.index(step), rows, engine, fresh=seen or not bool(active.any()))
                bar.update()
    return {**record.scores(), "lines": lines, "illegal": np.asarray(illegal)}


def grade_full_kspace(engine: KSpaceEngine, grader: Grader) -> Scores:
    """The ceiling: every line measured, with the noise of the episode. One point."""
    record = grader.empty(1)
    for rows in grader.plan.chunks():
        _begin(engine, rows, grader.plan.budgets[-1], grader.plan.cases)
        here = torch.arange(len(rows), device=engine.device)
        magnitude = simulation.zero_filled(engine.hybrid(here), None, engine.acquisition)
        if engine.reconstructor is not None:
            magnitude = engine.reconstructor(magnitude).to(engine.dtype)
        record.add(0, rows, engine, magnitude, _network_a(engine, here, magnitude))
    return record.scores()


def _begin(engine: KSpaceEngine, rows: torch.Tensor, budget: int, cases: Cases) -> None:
    samples, keys = cases.samples[rows].to(engine.device), cases.keys[rows].to(engine.device)
    slots = torch.arange(len(rows), device=engine.device)
    engine.begin(slots, Episodes(samples, torch.full_like(samples, budget), keys))


def _read(record: Record, point: int, rows: torch.Tensor, engine: KSpaceEngine, fresh: bool) -> None:
    """Record the current images; ``fresh`` says that the engine's own segmentation belongs to them.

    With the terminal reward the engine segments the first and the last image only, unless a network is observed.
    """
    here = torch.arange(len(rows), device=engine.device)
    magnitude = engine.magnitude[here]
    if fresh and engine.segmentation is not None:
        labels: torch.Tensor | None = engine.segmentation.labels[here]
    else:
        labels = _network_a(engine, here, magnitude)
    record.add(point, rows, engine, magnitude, labels)


def _network_a(engine: KSpaceEngine, here: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor | None:
    if not engine.networks:
        return None
    prediction = segment(engine.networks, engine.routing[engine.samples[here]], magnitude)
    return metrics.most_probable(prediction.probabilities)
