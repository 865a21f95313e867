"""The batched episodes behind every selection environment: who is annotated, what is learned from it, the rewards."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seggym.envs.batched import StepResult, judge, refuse
from seggym.envs.selection.observation import Relations, observe
from seggym.envs.selection.pool import Oracle, Pool
from seggym.envs.selection.settings import SelectionSettings
from seggym.errors import SeggymError
from seggym.kspace.keyed_random import random_bits, uniform
from seggym.reward_models.learners import Learner
from seggym.reward_models.metrics import Overlap

# Streams of an episode's key; part of the definition of an episode.
_BUDGET, _INITIAL, _CANDIDATES, _LEARNER, _STRATEGY = range(5)


@dataclass(frozen=True)
class Episodes:
    """Episodes as data: budget and key of each, int64 (B,)."""

    budgets: Tensor
    keys: Tensor


class SelectionEngine:
    """N episodes of annotation in parallel, each with its own annotated samples, candidates, budget and learner.

    ``oracle`` alone knows the labels of ``pool``; ``learner`` is given a lesson when a sample is annotated and scores
    itself on its set "reward" and any other it was made with. An action is a row of the ``candidates``.
    """

    def __init__(
        self,
        pool: Pool,
        oracle: Oracle,
        learner: Learner,
        settings: SelectionSettings,
        num_envs: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings, self.num_envs = settings, num_envs
        self.device, self.dtype = torch.device(device), dtype
        self.pool, self.oracle, self.learner = pool.to(self.device), oracle, learner
        self.initial = len(pool.initial) or settings.initial
        spare, (_, highest) = len(pool) - self.initial, settings.budget_range
        if highest > spare:
            raise SeggymError(
                f"budget={settings.budget} goes up to {highest}, expected at most {spare}: the pool has {len(pool)} "
                f"samples, of which {self.initial} are annotated at the start; lower budget or initial"
            )
        if settings.class_slots is not None and settings.class_slots < pool.num_classes:
            raise SeggymError(
                f"class_slots={settings.class_slots} is less than the {pool.num_classes} classes of the cohort "
                f"({', '.join(pool.class_names)}); raise it or leave it out"
            )
        self.num_candidates = len(pool) if settings.action == "pool" else min(settings.candidates, len(pool))
        self.num_actions = self.num_candidates
        self._costs = settings.minutes
        per_slice = getattr(self._costs, settings.ann_type)
        self.minutes_per_sample = ((self.pool.slices >= 0).sum(1) * per_slice).to(self.device, dtype)
        self._volume = torch.from_numpy(pool.table.volume).to(self.device)
        self.relations = Relations(self.pool, self.minutes_per_sample)
        self._rows = torch.arange(num_envs, device=self.device)
        self._allocate()

    def sibling(self, num_envs: int, **changes: Any) -> "SelectionEngine":
        """Another engine of ``num_envs`` episodes in the same pool; none has begun in it.

        ``changes`` are settings that differ; those of the data and the learner cannot.
        """
        learner, settings = self.learner.sibling(num_envs), replace(self.settings, **changes)
        return type(self)(self.pool, self.oracle, learner, settings, num_envs, self.device, self.dtype)

    def _allocate(self) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(self.num_envs, *shape, dtype=dtype, device=self.device)

        size, classes = len(self.pool), self.pool.num_classes
        self.keys, self.budgets, self.remaining = zeros(), zeros(), zeros()
        # Picks after the initial samples, illegal ones included; those since the last retraining; retrainings.
        self.steps, self.pending, self.rounds = zeros(), zeros(), zeros()
        # Annotated samples in order, how many, and how many of them the learner has been taught.
        self.order, self.count, self.taught = zeros(size) - 1, zeros(), zeros()
        self.labelled = zeros(size, dtype=torch.bool)
        self.candidates = zeros(self.num_candidates) - 1
        self.pixels = zeros(classes)
        self.minutes, self._minutes_taught = zeros(dtype=self.dtype), zeros(dtype=self.dtype)
        self.quality, self.initial_quality = zeros(dtype=self.dtype), zeros(dtype=self.dtype)
        self.scores = zeros(classes if self.settings.classification else classes - 1, dtype=self.dtype)

    # --- episodes -----------------------------------------------------------------------------------------------

    def draw(self, keys: Tensor) -> Episodes:
        """The episodes that belong to ``keys`` int64 (B,): the budget is uniform in its range."""
        keys = keys.to(self.device)
        low, high = self.settings.budget_range
        budgets = low + (uniform(keys, _BUDGET, 1)[:, 0] * (high - low + 1)).long().clamp_(max=high - low)
        return Episodes(budgets, keys)

    def begin(self, slots: Tensor, episodes: Episodes) -> None:
        """Start ``episodes`` in the environments ``slots`` int64 (B,): annotate the initial samples and teach them."""
        self._check(episodes)
        for state in (self.steps, self.pending, self.rounds, self.count, self.taught, self.labelled, self.pixels):
            state[slots] = 0
        self.minutes[slots], self._minutes_taught[slots] = 0, 0
        self.order[slots], self.candidates[slots] = -1, -1
        self.keys[slots], self.budgets[slots], self.remaining[slots] = episodes.keys, episodes.budgets, episodes.budgets
        self.learner.begin(slots)
        for sample in self._initial_samples(episodes.keys).unbind(1):
            self._annotate(slots, sample)
        self._teach(slots)
        self.initial_quality[slots] = self.quality[slots]

    def _initial_samples(self, keys: Tensor) -> Tensor:
        """What is annotated at the start, int64 (B, initial): uniform, so that it says nothing about any label."""
        if len(self.pool.initial):
            return self.pool.initial.expand(len(keys), -1)
        return random_bits(keys, _INITIAL, len(self.pool)).topk(self.initial, dim=1).indices

    def _check(self, episodes: Episodes) -> None:
        highest = len(self.pool) - self.initial
        if len(episodes.budgets) and not (int(episodes.budgets.min()) >= 1 and int(episodes.budgets.max()) <= highest):
            raise SeggymError(f"an episode has a budget outside 1..{highest}, the samples that are left in the pool")

    # --- one step -----------------------------------------------------------------------------------------------

    def action_mask(self) -> Tensor:
        """Candidates that are not annotated yet, a fresh bool (N, K)."""
        there = self.candidates >= 0
        return there & ~self.labelled.gather(1, self.candidates.clamp_min(0))

    def step(self, actions: Tensor, active: Tensor | None = None) -> StepResult:
        """Annotate candidate ``actions`` int64 (N,) in every environment that is ``active`` bool (N,) (default: all).

        The learner is taught after ``samples_per_query`` picks, and at the end of an episode.
        """
        active = torch.ones_like(actions, dtype=torch.bool) if active is None else active
        chosen, legal, illegal = judge(actions, self.action_mask(), active)
        if self.settings.illegal_action == "raise":
            refuse(illegal, actions, "the candidate is annotated already, or the row is empty")
        picked = legal.nonzero()[:, 0]
        self._annotate(picked, self.candidates[picked, chosen[picked]])
        used = (legal | illegal).long()
        self.steps += used
        self.pending += used
        self.remaining -= used
        terminated = active & ((self.remaining <= 0) | self.labelled.all(1))
        due = active & ((self.pending >= self.settings.samples_per_query) | terminated | ~self.action_mask().any(1))
        self.pending[due] = 0
        before, minutes = self.quality.clone(), self._minutes_taught.clone()
        self._teach((due & (self.count > self.taught)).nonzero()[:, 0])
        return StepResult(self._rewards(before, minutes, illegal), terminated, illegal)

    def annotate(self, slot: int, samples: Tensor) -> None:
        """Annotate ``samples`` int64 (n,) in episode ``slot``, in this order, and retrain once: a query of any size.

        Every sample is a pick; raises :class:`SeggymError` where one is annotated already or named twice.
        """
        row, samples = self._rows[slot : slot + 1], samples.to(self.device)
        if bool(self.labelled[slot, samples].any()) or len(samples.unique()) < len(samples):
            raise SeggymError("a query names a sample twice, or one that is annotated already: name others")
        for sample in samples.split(1):
            self._annotate(row, sample)
        self.steps[row] += len(samples)
        self.remaining[row] -= len(samples)
        self._teach(row)

    def _annotate(self, rows: Tensor, samples: Tensor) -> None:
        """Let the oracle annotate one sample int64 (B,) in each of ``rows``."""
        volume = self._volume[samples]
        opened = (self.labelled[rows] & (self._volume == volume[:, None])).any(1)
        opening = torch.where(opened, 0, self.pool.opened[samples] * self._costs.volume)
        self.minutes[rows] += self.minutes_per_sample[samples] + opening.to(self.dtype)
        self.pixels[rows] += self.oracle.annotate(samples)[1]
        self.order[rows, self.count[rows]] = samples
        self.labelled[rows, samples] = True
        self.count[rows] += 1

    def _teach(self, rows: Tensor) -> None:
        """Retrain and score the learners of ``rows``, and draw the next candidates."""
        if not len(rows):
            return
        new = int((self.count - self.taught)[rows].max())
        place = self.taught[rows][:, None] + torch.arange(new, device=self.device)
        there = place < self.count[rows][:, None]
        samples = torch.where(there, self.order[rows].gather(1, place.clamp_max(len(self.pool) - 1)), 0)
        slices = torch.where(there[:, :, None], self.pool.slices[samples], -1)
        lessons = self.oracle.annotate(samples)[0]
        keys = self._subkeys(rows, _LEARNER)
        self.learner.teach(rows, slices, lessons, keys, self.rounds[rows])
        self.taught[rows] = self.count[rows]
        self._minutes_taught[rows] = self.minutes[rows]
        self.quality[rows], self.scores[rows] = self._measure(self.learner, rows, "reward")
        self._draw_candidates(rows)
        self.rounds[rows] += 1

    def _draw_candidates(self, rows: Tensor) -> None:
        """Among whom the next query chooses: ascending, -1 where there are fewer."""
        if self.settings.action == "pool":
            self.candidates[rows] = torch.arange(len(self.pool), device=self.device)
            return
        # One random number per sample and round, so that policies that annotated the same meet the same candidates.
        numbers = random_bits(self._subkeys(rows, _CANDIDATES), 0, len(self.pool)) >> 1
        numbers = numbers.masked_fill(self.labelled[rows], torch.iinfo(torch.int64).max)
        drawn = numbers.topk(self.num_candidates, dim=1, largest=False).indices
        free = ~self.labelled[rows].gather(1, drawn)
        ordered = torch.where(free, drawn, len(self.pool)).sort(1).values
        self.candidates[rows] = torch.where(ordered < len(self.pool), ordered, -1)

    def _subkeys(self, rows: Tensor, stream: int) -> Tensor:
        """A key for each of ``rows`` and its round, int64 (B,)."""
        rounds = self.rounds[rows]
        return random_bits(self.keys[rows], stream, len(self.pool) + 1).gather(1, rounds[:, None])[:, 0]

    def strategy_seed(self, slot: int) -> int:
        """The seed of a query strategy at this pick."""
        bits = random_bits(self.keys[slot : slot + 1], _STRATEGY, len(self.pool) + 1)
        return int(bits[0, int(self.steps[slot])] & (2**63 - 1))

    # --- scores -------------------------------------------------------------------------------------------------

    def _measure(self, learner: Learner, rows: Tensor, scored: str) -> tuple[Tensor, Tensor]:
        """Quality (B,) of ``rows`` of ``learner`` on the set ``scored``, and its mean per class."""
        return self._score(learner.overlap(rows, scored))

    def _score(self, overlap: Overlap) -> tuple[Tensor, Tensor]:
        """Quality (B,) and its mean per class (B, K - 1) (K for a classification) of an overlap (B, cases, K)."""
        shared, predicted, true = (part.to(self.dtype) for part in overlap)
        dice = (2 * shared / (predicted + true)).masked_fill(true == 0, torch.nan)
        if self.settings.metric == "accuracy":
            return (shared.sum(-1) / true.sum(-1)).mean(-1), dice.nanmean(1)
        dice = dice if self.settings.classification else dice[..., 1:]
        # Mean over the classes of a case, then over the cases that have any.
        return dice.nanmean(-1).nanmean(-1), dice.nanmean(1)

    def evaluate(self, slot: int, scored: str) -> Tensor:
        """Dice of every case of the set ``scored`` ("reward", "val", "test"), (cases, K - 1), NaN for absent classes.

        For a classification (1, K), the F1 score of each class.
        """
        shared, predicted, true = self.learner.overlap(self._rows[slot : slot + 1], scored)
        dice = (2 * shared / (predicted + true)).masked_fill(true == 0, torch.nan)[0]
        return dice if self.settings.classification else dice[:, 1:]

    def quality_of(self, samples: Tensor, keys: Tensor, scored: str = "reward") -> Tensor:
        """Quality (B,), on the set ``scored``, of learners that are taught just ``samples`` int64 (B, n), all at once.

        ``keys`` int64 (B,) decide what is random in them. It looks at the labels of the samples; no episode changes.
        """
        rows = torch.arange(len(samples), device=self.device)
        learner = self.learner.sibling(len(samples))
        learner.begin(rows)
        lessons = self.oracle.annotate(samples)[0]
        learner.teach(rows, self.pool.slices[samples], lessons, keys, torch.zeros_like(keys))
        return self._measure(learner, rows, scored)[0]

    def lookahead(self, slot: int, samples: Tensor) -> Tensor:
        """Quality after each of ``samples`` int64 (n,) alone would have been annotated, (n,): it looks at the labels.

        What a privileged strategy may ask. The episode stays as it is.
        """
        copies = self.sibling(len(samples))
        rows = copies._rows
        copies.take(self, torch.full_like(rows, slot))
        copies._annotate(rows, samples.to(self.device))
        copies._teach(rows)
        return copies.quality

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts of a reward: "quality" or "gain_per_cost"; "illegal" and "cost" at a price."""
        names = ["quality" if self.settings.reward == "gain" else "gain_per_cost"]
        names += ["illegal"] if self.settings.illegal_action == "penalty" else []
        return (*names, "cost") if self.settings.cost_weight > 0 else tuple(names)

    def _rewards(self, before: Tensor, minutes: Tensor, illegal: Tensor) -> dict[str, Tensor]:
        settings = self.settings
        gain = self.quality - before
        spent = self._minutes_taught - minutes
        if settings.objective == "area":
            gain = gain * (self.budgets - self.steps.clamp_min(1) + 1) / self.budgets.clamp_min(1)
        if settings.reward == "gain_per_cost":
            gain = torch.where(spent > 0, gain / spent.clamp_min(1e-6), 0)
        parts = {self.part_names[0]: gain}
        if "illegal" in self.part_names:
            parts["illegal"] = -settings.illegal_penalty * illegal.to(self.dtype)
        if "cost" in self.part_names:
            parts["cost"] = -settings.cost_weight / 60 * spent
        return parts

    def observe(self) -> dict[str, Tensor]:
        """The parts of the observation, fresh tensors with a leading axis N."""
        return observe(self)

    # --- exact resume -------------------------------------------------------------------------------------------

    _STATE: tuple[str, ...] = (
        "keys",
        "budgets",
        "remaining",
        "steps",
        "pending",
        "rounds",
        "order",
        "count",
        "taught",
        "labelled",
        "candidates",
        "pixels",
        "minutes",
        "_minutes_taught",
        "quality",
        "initial_quality",
        "scores",
    )

    def take(self, other: "SelectionEngine", slots: Tensor) -> None:
        """Go on from the episodes ``slots`` int64 (N,) of ``other``, a sibling, in all of this engine's."""
        for name in self._STATE:
            getattr(self, name).copy_(getattr(other, name)[slots])
        self.learner.take(other.learner, slots)

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on exactly; copies."""
        state = {name.removeprefix("_"): getattr(self, name).clone() for name in self._STATE}
        return {**state, "learner": self.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state`` of an engine with the same pool, settings and number of environments."""
        for name in self._STATE:
            mine, given = getattr(self, name), state.get(name.removeprefix("_"))
            if given is None or given.shape != mine.shape:
                found = "nothing" if given is None else f"shape {tuple(given.shape)}"
                raise SeggymError(
                    f"the state of the environments holds {found} for {name.removeprefix('_')}, expected shape "
                    f"{tuple(mine.shape)}; make the environments with the same data, settings and num_envs"
                )
        self._check(Episodes(state["budgets"], state["keys"]))
        for name in self._STATE:
            getattr(self, name).copy_(state[name.removeprefix("_")])
        self.learner.load_state_dict(state["learner"])
