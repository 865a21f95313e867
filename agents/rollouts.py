"""Running one policy over all cases, and recording what the scoring networks make of its images at every budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from seggym.agents.policies import Policy
from seggym.agents.scores import Cases, Scores, segmentation_scores, volume_image_scores
from seggym.envs.batched import read_rows
from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.envs.kspace.segmentation import Segmenter, segment
from seggym.reward_models import image_quality, metrics


@dataclass(frozen=True)
class RunPlan:
    """Which cases, at which budgets, in engines of how many environments.

    ``once`` runs every policy once at the largest budget, also those that would act differently with a smaller one; not
    those with ``every_budget``, which are nothing but their answers to each budget.
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
        """Rows of the cases, in batches of at most ``num_envs``; the first one is full.

        Every batch takes its cases from all over the list, so that it holds scans of several patients (the blind twin
        of :mod:`seggym.agents.blind` needs that).
        """
        batches = -(-len(self.cases) // self.num_envs)
        yield from (torch.arange(start, len(self.cases), batches) for start in range(batches))

    def runs(self, policy: Policy) -> list[tuple[int, tuple[int, ...]]]:
        """(budget, budgets that are read off during the run) of every run that ``policy`` needs."""
        if policy.anytime or (self.once and not getattr(policy, "every_budget", False)):
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
            here = torch.arange(len(rows), device=engine.device)
            maximum = engine.stack.data_range[engine.samples[here]].to(engine.dtype)
            self._references[first] = image_quality.encode_reference(engine.scanner.noise_free(here), maximum)
        return self._references[first]

    def empty(self, points: int) -> "Record":
        """A record for ``points`` images of every case."""
        return Record(self, points)


class Record:
    """Label maps and image quality of every case at every point, and of the image that it showed last."""

    def __init__(self, grader: Grader, points: int) -> None:
        count = len(grader.plan.cases)
        self._grader = grader
        self._shape = (points + 1, *grader.plan.cases.labels.shape)
        self._labels: dict[str, torch.Tensor] = {}
        self._ssim, self._psnr = (np.full((points + 1, count), np.nan, np.float32) for _ in range(2))

    def show(
        self,
        rows: torch.Tensor,
        slots: torch.Tensor,
        engine: KSpaceEngine,
        magnitude: torch.Tensor,
        a: torch.Tensor | None,
        terms: image_quality.ReferenceTerms,
    ) -> None:
        """Score the last images ``magnitude`` (B, C, C) of the cases ``rows``, run by the environments ``slots``.

        ``a`` is network A's label maps of them, ``terms`` are those of all cases of the batch.
        """
        terms = read_rows(terms, slots)
        self._ssim[-1, rows.numpy()] = image_quality.ssim(magnitude, terms).cpu().numpy()
        self._psnr[-1, rows.numpy()] = image_quality.psnr(magnitude, terms).cpu().numpy()
        found = {"A": a}
        if self._grader.independent is not None:
            found["B"] = metrics.most_probable(self._grader.independent(magnitude).probabilities)
        for net, segmented in found.items():
            if segmented is not None:
                labels = self._labels.setdefault(net, torch.zeros(self._shape, dtype=torch.uint8))
                labels[-1, rows] = segmented.cpu()

    def keep(self, point: int, rows: torch.Tensor) -> None:
        """Give the cases ``rows`` at ``point`` the scores of their last images."""
        for values in (self._ssim, self._psnr):
            values[point, rows] = values[-1, rows]
        for labels in self._labels.values():
            labels[point, rows] = labels[-1, rows]

    def scores(self) -> Scores:
        """All scores of the record; see :mod:`seggym.agents.scores`."""
        scores: Scores = {"image/slice/ssim": self._ssim[:-1], "image/slice/psnr": self._psnr[:-1]}
        cases, surfaces = self._grader.plan.cases, self._grader.surface_points
        scores |= volume_image_scores(scores, cases)
        for net, labels in self._labels.items():
            points = [0] if len(labels) == 2 else surfaces
            found = segmentation_scores(labels[:-1], cases, points)
            scores |= {f"{net}/{key}": values for key, values in found.items()}
        return scores


def grade_policy(policy: Policy, engine: KSpaceEngine, grader: Grader, observes: bool, bar: Any) -> Scores:
    """Run ``policy`` in ``engine`` on all cases; ``observes`` says whether it is given observations.

    A point of the plan is a number of measurements. Where a scan passes over it, because a decision measures several
    lines or because the policy stopped, it keeps the last image of no more measurements.
    """
    plan = grader.plan
    record = grader.empty(len(plan.points))
    lines = np.full((len(plan.cases), plan.budgets[-1]), -1, np.int16)
    illegal = 0
    for rows in plan.chunks():
        for run, (budget, read) in enumerate(plan.runs(policy)):
            _begin(engine, rows, budget, plan.cases)
            policy.begin(engine)
            reader = _Reader(record, grader, rows, engine, [0, *read] if run == 0 else read)
            reader.read()
            active = torch.arange(engine.num_envs, device=engine.device) < len(rows)
            while bool(active.any()):
                before = engine.steps.clone()
                observation = engine.observe() if observes else {}
                actions = policy.act(engine, observation, engine.action_mask())
                result = engine.step(actions, active)
                illegal += int(result.illegal.sum())
                if budget == plan.budgets[-1]:
                    measured = (active & ~result.illegal & (engine.steps > before))[: len(rows)].cpu()
                    there = before[: len(rows)].cpu()[measured]
                    lines[rows[measured].numpy(), there.numpy()] = actions[: len(rows)].cpu()[measured].numpy()
                active &= ~result.terminated
                reader.read(active)
                bar.update()
    return {**record.scores(), "lines": lines, "illegal": np.asarray(illegal)}


class _Reader:
    """Records the images of one run at the numbers of measurements ``points``, a rising sequence."""

    def __init__(
        self, record: Record, grader: Grader, rows: torch.Tensor, engine: KSpaceEngine, points: Sequence[int]
    ) -> None:
        self._record, self._rows, self._engine = record, rows, engine
        self._indices = torch.tensor([grader.plan.points.index(point) for point in points])
        self._points = torch.tensor([*points, 2**31])
        self._terms = grader.reference(rows, engine)
        self._next = torch.zeros(len(rows), dtype=torch.int64)  # the point that each scan reaches next
        self._may_pass = engine.settings.lines_per_step > 1

    def read(self, active: torch.Tensor | None = None) -> None:
        """Record the images as they are now; ``active`` bool (N,) are the scans that go on (default: all)."""
        count = len(self._rows)
        steps = self._engine.steps[:count].cpu()
        ended = torch.zeros(count, dtype=torch.bool) if active is None else ~active[:count].cpu()
        # A point that was passed over belongs to the image before.
        while bool((passed := self._points[self._next] < steps).any()):
            self._keep(passed)
        unread = self._next < len(self._indices)
        wanted = unread & (ended | (self._points[self._next] == steps) | self._may_pass)
        if bool(wanted.any()):
            self._show(wanted.nonzero()[:, 0], active is None or bool(ended[wanted].all()))
        while bool((reached := wanted & (self._points[self._next] == steps)).any()):
            self._keep(reached)
        while bool((left := ended & (self._next < len(self._indices))).any()):
            self._keep(left)

    def _keep(self, scans: torch.Tensor) -> None:
        for number in self._next[scans].unique().tolist():
            self._record.keep(int(self._indices[number]), self._rows[scans & (self._next == number)])
        self._next += scans

    def _show(self, here: torch.Tensor, scored: bool) -> None:
        """Score the images of the scans ``here``; ``scored`` says that the engine's own segmentation is theirs.

        With the terminal reward the engine segments the first and the last image only, unless a network is observed.
        """
        engine = self._engine
        slots = here.to(engine.device)
        magnitude = engine.magnitude[slots]
        if engine.segmentation is not None and (scored or engine.settings.network_is_observed):
            labels: torch.Tensor | None = engine.segmentation.labels[slots]
        else:
            labels = _network_a(engine, slots, magnitude)
        self._record.show(self._rows[here], slots, engine, magnitude, labels, self._terms)


def grade_full_kspace(engine: KSpaceEngine, grader: Grader) -> Scores:
    """The ceiling: every line measured, with the noise of the episode. One point."""
    record = grader.empty(1)
    for rows in grader.plan.chunks():
        _begin(engine, rows, grader.plan.budgets[-1], grader.plan.cases)
        here = torch.arange(len(rows), device=engine.device)
        magnitude = engine.scanner.full(here)
        terms = grader.reference(rows, engine)
        record.show(rows, here, engine, magnitude, _network_a(engine, here, magnitude), terms)
        record.keep(0, rows)
    return record.scores()


def _begin(engine: KSpaceEngine, rows: torch.Tensor, budget: int, cases: Cases) -> None:
    samples, keys = cases.samples[rows].to(engine.device), cases.keys[rows].to(engine.device)
    slots = torch.arange(len(rows), device=engine.device)
    engine.begin(slots, Episodes(samples, torch.full_like(samples, budget), keys))


def _network_a(engine: KSpaceEngine, here: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor | None:
    if not engine.networks:
        return None
    prediction = segment(engine.networks, engine.routing[engine.samples[here]], magnitude)
    return metrics.most_probable(prediction.probabilities)
