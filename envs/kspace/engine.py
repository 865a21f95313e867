"""The batched episodes behind every k-space environment: states in tensors, no Gymnasium, no loop over the batch."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seggym.envs.batched import Rows, StepResult, judge, pieces, read_rows, refuse, write_rows
from seggym.envs.kspace.expected import ExpectedDice
from seggym.envs.kspace.observation import make_part
from seggym.envs.kspace.reward import Truth, quality, quality_reward
from seggym.envs.kspace.scanner import Scanner
from seggym.envs.kspace.segmentation import Segmentation, Segmenter, segment, summarise
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.kspace.acquisition import SliceStack
from seggym.kspace.keyed_random import uniform
from seggym.kspace.reconstruction.methods import Reconstruction
from seggym.reward_models import image_quality, metrics
from seggym.reward_models.frozen import micro_batch

# Streams of an episode's key beside those of seggym.kspace.simulation; part of the definition of an episode.
SAMPLE_STREAM = 0
BUDGET_STREAM = 1

# Pixels that are worked on at a time on a processor, so that an operation finds the result of the one before in the
# cache: exact SSIM takes 0.10 ms per image of 128 x 128 for 4 of them at a time, 0.25 ms for 8 or 16.
_CACHED_PIXELS = 2**16


@dataclass(frozen=True)
class Episodes:
    """Episodes as data: slice index, budget and key of each, int64 (B,)."""

    samples: Tensor
    budgets: Tensor
    keys: Tensor


class KSpaceEngine:
    """N scans in parallel, each with its own slice, budget and clock.

    ``stack`` holds the slices that episodes draw from; ``networks`` scores them and ``routing`` int64 (n,) says which
    network scores which slice, so that no slice is scored by a network that was trained on its patient. ``weights``
    (n,) are the probabilities of the slices in the draw (uniform by default). ``reconstruction`` maps
    lines to the image that is shown and scored; None is zero-filled. ``expected`` is what ``lambda_error`` weighs.
    ``dtype`` is float32, or float64 for tests.

    Whatever takes memory per image is done for a few images at a time, so that a step takes no more of it, and no more
    time per image, for a thousand scans than for sixteen; what grows with N is the state of the episodes.
    """

    def __init__(
        self,
        stack: SliceStack,
        settings: KSpaceSettings,
        num_envs: int,
        networks: list[Segmenter] | None = None,
        routing: Tensor | None = None,
        weights: Tensor | None = None,
        reconstruction: Reconstruction | None = None,
        expected: ExpectedDice | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings, self.acquisition = settings, settings.scan
        self.device, self.dtype, self.num_envs = torch.device(device), dtype, num_envs
        self.stack = stack.to(self.device)
        self.networks, self.expected = networks or [], expected
        # What is kept of every prediction, see seggym.envs.kspace.segmentation.
        self.kept: Collection[str] = settings.observation
        self.routing = torch.zeros(len(stack), dtype=torch.int64) if routing is None else routing
        self.routing = self.routing.to(self.device)
        weights = torch.ones(len(stack)) if weights is None else weights
        self._cumulative = (weights.double().cumsum(0) / weights.double().sum()).to(self.device)
        # Images at a time: through a network, and through everything else.
        self.micro_batch = settings.micro_batch or micro_batch(self.device)
        cached = _CACHED_PIXELS // self.acquisition.crop**2 if self.device.type == "cpu" else self.micro_batch
        self.piece = max(1, min(self.micro_batch, cached))
        self.scanner: Scanner = Scanner(
            self.stack,
            self.acquisition,
            num_envs,
            self.device,
            dtype,
            self.piece,
            self.micro_batch,
            reconstruction,
            remeasures=settings.remeasure != "never",
            turns=settings.choose_axis,
            anew=settings.augment,
        )
        self.num_lines: int = self.scanner.num_views
        # After the lines come stopping, and the two axes of phase encoding: columns, rows.
        self.stop_index = self.num_lines if settings.stop_action else None
        self.axis_index = self.num_lines + settings.stop_action if settings.choose_axis else None
        self.num_actions = self.num_lines + settings.stop_action + 2 * settings.choose_axis
        first, last = settings.candidate_range
        line = torch.arange(self.num_lines, device=self.device)
        self._candidates = (line >= first) & (line <= last)
        if self.stack.available is not None:
            self._require_measurable(self.stack.available)
        self._every = torch.arange(num_envs, device=self.device)
        self._allocate()

    def sibling(self, num_envs: int, **changes: Any) -> "KSpaceEngine":
        """Another engine of ``num_envs`` scans of the same slices, by the same networks; no episode has begun in it.

        ``changes`` are fields of its settings that differ: what is rewarded and observed, not how a scan is made.
        """
        return KSpaceEngine(
            self.stack,
            replace(self.settings, **changes),
            num_envs,
            self.networks,
            self.routing,
            self._cumulative.diff(prepend=self._cumulative.new_zeros(1)),
            self.scanner.reconstruction,
            self.expected,
            self.device,
            self.dtype,
        )

    def _allocate(self) -> None:
        def zeros(dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(self.num_envs, dtype=dtype, device=self.device)

        # steps counts measurements, decisions the actions behind them; lines_per_step may lie between.
        self.budgets, self.steps, self.decisions = (zeros() for _ in range(3))
        self.remaining: Tensor = zeros()
        self.quality, self.initial_quality = zeros(self.dtype), zeros(self.dtype)
        self.expectation, self.initial_expectation = zeros(self.dtype), zeros(self.dtype)
        self.truth: Truth | None = None
        self.segmentation: Segmentation | None = None
        self._scored_by: list[Tensor] = []

    def take(self, other: "KSpaceEngine", slots: Tensor) -> None:
        """Go on from the state of the scans ``slots`` int64 (N,) of ``other``, a sibling, in all of this engine's."""
        self.scanner.take(other.scanner, slots)
        for name in self._state:
            getattr(self, name).copy_(getattr(other, name)[slots])
        self.truth, self.segmentation = read_rows(other.truth, slots), read_rows(other.segmentation, slots)
        self._scored_by = self._group(self._every)

    @property
    def rewarded(self) -> Tensor:
        """What the rewards are gains of (N,): the quality, and what an error net expects, where one is asked."""
        if self.expected is None:
            return self.quality
        return self.quality + self.settings.lambda_error * self.expectation

    # What the scanner holds and everybody asks for.

    @property
    def samples(self) -> Tensor:
        """Slice of every scan, int64 (N,)."""
        return self.scanner.samples

    @property
    def keys(self) -> Tensor:
        """Key of every episode, int64 (N,)."""
        return self.scanner.keys

    @property
    def acquired(self) -> Tensor:
        """Lines that are measured, bool (N, M)."""
        return self.scanner.acquired

    @property
    def lines(self) -> Tensor:
        """How many lines are measured, int64 (N,)."""
        return self.scanner.acquired.sum(1)

    @property
    def flagged(self) -> Tensor:
        """Measured lines that are known to be corrupted, bool (N, M); none where corruption is hidden."""
        if self.settings.corruption_flagged:
            return self.scanner.flagged & self.scanner.acquired
        return torch.zeros_like(self.scanner.acquired)

    @property
    def magnitude(self) -> Tensor:
        """The image of every scan, float (N, C, C)."""
        return self.scanner.magnitude

    # --- episodes -----------------------------------------------------------------------------------------------

    @property
    def episode_names(self) -> list[str]:
        """What each sample is called: the slice."""
        return self.stack.names

    def draw(self, keys: Tensor) -> Episodes:
        """The episodes that belong to ``keys`` int64 (B,): slice by weight, budget uniform in its range."""
        keys = keys.to(self.device)
        chosen = uniform(keys, SAMPLE_STREAM, 1)[:, 0].double()
        samples = torch.searchsorted(self._cumulative, chosen).clamp_(max=len(self.stack) - 1)
        low, high = self.settings.budget_range
        budgets = low + (uniform(keys, BUDGET_STREAM, 1)[:, 0] * (high - low + 1)).long().clamp_(max=high - low)
        return Episodes(samples, budgets, keys)

    def begin(self, slots: Tensor, episodes: Episodes) -> None:
        """Start ``episodes`` in the environments ``slots`` int64 (B,): measure the initial lines and score them."""
        self._check(episodes)
        self.scanner.begin(slots, episodes.samples, episodes.keys)
        self._scored_by = self._group(self._every)
        self._set_truth(slots)
        self.budgets[slots] = episodes.budgets
        self.remaining[slots] = episodes.budgets
        self.steps[slots] = 0
        self.decisions[slots] = 0
        self._score(slots)
        self.initial_quality[slots] = self.quality[slots]
        self.initial_expectation[slots] = self.expectation[slots]

    def _set_truth(self, slots: Tensor) -> None:
        """What the images of ``slots`` are compared with, computed once per episode."""
        for part in pieces(slots, max(1, self.piece // 4)):
            reference, segmentation = None, None
            if self.settings.lambda_recon > 0:
                maximum = self.stack.data_range[self.samples[part]].to(self.dtype)
                reference = image_quality.encode_reference(self.scanner.noise_free(part), maximum)
            if self.settings.needs_network:
                segmentation = metrics.encode_truth(self._reference_labels(part), self.stack.num_classes)
            self.truth = write_rows(self.truth, part, Truth(segmentation, reference), self.num_envs)

    def _reference_labels(self, rows: Tensor) -> Tensor:
        """The label maps uint8 (B, C, C) that predictions are rewarded against."""
        if self.settings.reward_reference == "labels":
            return self.stack.labels[self.samples[rows]]
        prediction = segment(self.networks, self.routing[self.samples[rows]], self.scanner.full(rows))
        return metrics.most_probable(prediction.probabilities)

    def _require_measurable(self, available: Tensor) -> None:
        """Measured k-space holds lines of one axis, each once; ``available`` bool (n, M) must leave a choice."""
        for name, default in (("remeasure", "never"), ("choose_axis", False)):
            if getattr(self.settings, name) != default:
                raise SeggymError(
                    f"{name}={getattr(self.settings, name)!r} needs a simulated scan, the k-space of "
                    f"{self.stack.volumes[0]} was measured once along one axis: leave it out"
                )
        without = ~(available & self._candidates & ~self.scanner.initial).any(1)
        if bool(without.any()):
            name = self.stack.names[int(without.nonzero()[0])]
            raise SeggymError(
                f"{name} has no measured line among the candidates beside the initial ones: widen candidates="
                f"{self.settings.candidates}, or leave out the volume"
            )

    def _check(self, episodes: Episodes) -> None:
        low, high = 1, self.num_lines - len(self.scanner.trajectory.initial)
        if len(episodes.samples) and not (
            int(episodes.samples.min()) >= 0 and int(episodes.samples.max()) < len(self.stack)
        ):
            raise SeggymError(f"an episode names a slice outside 0..{len(self.stack) - 1}")
        if len(episodes.budgets) and not (low <= int(episodes.budgets.min()) and int(episodes.budgets.max()) <= high):
            raise SeggymError(f"an episode has a budget outside {low}..{high}")

    # --- one step -----------------------------------------------------------------------------------------------

    def action_mask(self) -> Tensor:
        """Legal actions, a fresh bool (N, A): lines that may be measured, and stopping where it is an action.

        Where the axis of phase encoding is chosen, that is the first action, and the only ones then.
        """
        legal = self._measurable()
        if self.settings.stop_action:
            legal = torch.cat([legal, torch.ones_like(legal[:, :1])], 1)
        if self.settings.choose_axis:
            choosing = (self.decisions == 0)[:, None]
            legal = torch.cat([legal & ~choosing, choosing, choosing], 1)
        return legal

    def _measurable(self) -> Tensor:
        """Lines that may be measured, bool (N, M)."""
        acquired, available = self.acquired, self.scanner.available
        candidates = self._candidates.expand_as(acquired)
        if available is not None:
            candidates = candidates & available
        if self.settings.remeasure == "any":
            return candidates.clone()
        if self.settings.remeasure == "flagged":
            return candidates & (~acquired | self.flagged)
        return candidates & ~acquired

    def step(self, actions: Tensor, active: Tensor | None = None) -> StepResult:
        """Measure line ``actions`` int64 (N,) in every environment that is ``active`` bool (N,) (default: all).

        With ``lines_per_step`` L the L - 1 nearest lines that are missing or corrupted follow, within the budget.
        """
        rows: Rows = slice(None) if active is None else active.nonzero()[:, 0]
        active = torch.ones_like(actions, dtype=torch.bool) if active is None else active
        chosen, legal, illegal = judge(actions, self.action_mask(), active)
        if self.settings.illegal_action == "raise":
            refuse(illegal, actions, "the line is measured already or is no candidate")
        turning = self._turn(chosen, legal)
        measuring = legal & (chosen < self.num_lines)
        stopping = legal & ~measuring & ~turning
        used = self._measure(chosen, measuring, illegal)
        self.steps += used
        self.decisions += active
        self.remaining = torch.where(stopping, 0, self.remaining - used)
        exhausted = ~self._measurable().any(1) & ~turning
        terminated = active & ((self.remaining <= 0) | exhausted)
        before, expected_before = self.quality.clone(), self.expectation.clone()
        if self.scanner.needs_refresh:
            self.scanner.refresh(rows)
        # Only the last image of an episode is rewarded in terminal mode; the others need no network, unless it is seen.
        if self.settings.reward != "terminal" or self.settings.network_is_observed:
            self._score(rows)
        elif bool(terminated.any()):
            self._score(terminated.nonzero()[:, 0])
        clock = (self.steps, self.budgets, terminated)
        gain = quality_reward(self.settings, before, self.quality, self.initial_quality, *clock)
        parts = {self.part_names[0]: torch.where(active, gain, 0)}
        if "error_net" in self.part_names:
            levels = (expected_before, self.expectation, self.initial_expectation)
            gain = quality_reward(self.settings, *levels, *clock)
            parts["error_net"] = self.settings.lambda_error * torch.where(active, gain, 0)
        if "illegal" in self.part_names:
            parts["illegal"] = -self.settings.illegal_penalty * illegal.to(self.dtype)
        if "time" in self.part_names:
            parts["time"] = -self.settings.time_cost / 1000 * (self.duration(used) * active)
        return StepResult(parts, terminated, illegal)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts of a reward: "quality", a gain, or ASMR's "level"; "error_net", and prices."""
        names = ["level" if self.settings.reward == "level" else "quality"]
        names += ["error_net"] if self.expected is not None else []
        names += ["illegal"] if self.settings.illegal_action == "penalty" else []
        return (*names, "time") if self.settings.time_cost > 0 else tuple(names)

    def duration(self, lines: Tensor, decisions: Tensor | int = 1) -> Tensor:
        """Milliseconds that ``lines`` measurements after ``decisions`` decisions take, float (N,)."""
        settings = self.settings
        return (lines * settings.line_time + (lines > 0) * decisions * settings.latency).to(self.dtype)

    def _turn(self, chosen: Tensor, legal: Tensor) -> Tensor:
        """Encode phase along the axis that was chosen; bool (N,) is where an axis was chosen, which costs no budget."""
        if self.axis_index is None:
            return torch.zeros_like(legal)
        turning = legal & (chosen >= self.axis_index)
        other = turning & ((chosen - self.axis_index).bool() != self.scanner.transposed)
        self.scanner.turn(other.nonzero()[:, 0])
        return turning

    def _measure(self, chosen: Tensor, measuring: Tensor, illegal: Tensor) -> Tensor:
        """Measure line ``chosen`` where ``measuring``, and with it what belongs to the step; the budget used (N,)."""
        wanted = self.settings.lines_per_step
        line = torch.where(measuring, chosen, 0)
        used = (measuring | illegal).long()
        if wanted == 1:
            self.scanner.measure(line, measuring)
            return used
        # Nearest first; of two at the same distance the one of the higher index, as everywhere.
        number = torch.arange(self.num_lines, device=self.device)
        distance = 2 * (number - line[:, None]).abs() + (number < line[:, None])
        # A segment is filled with lines that are missing or corrupted, whatever else may be measured again.
        missing = self._measurable() & (~self.acquired | self.flagged)
        distance = torch.where(missing, distance, 4 * self.num_lines).scatter(1, line[:, None], -1)
        nearest = distance.topk(min(wanted, self.num_lines), dim=1, largest=False)
        for rank in range(nearest.values.shape[1]):
            there = measuring & (nearest.values[:, rank] < 4 * self.num_lines) & (rank < self.remaining)
            self.scanner.measure(torch.where(there, nearest.indices[:, rank], line), there)
            used = used + there if rank else used
        # An illegal action uses what a legal one would have used.
        return torch.where(illegal, self.remaining.clamp_max(wanted), used)

    def _score(self, rows: Rows) -> None:
        """Segment and score the current magnitude of ``rows``."""
        assert self.truth is not None
        for network, group in self._by_network(rows):
            for part in self._parts(group, self.piece if network is None else self.micro_batch):
                magnitude, truth = self.magnitude[part], read_rows(self.truth, part)
                prediction = None if network is None else network(magnitude)
                self.quality[part] = quality(self.settings, prediction, magnitude, truth)
                if prediction is not None:
                    assert truth.segmentation is not None
                    found = summarise(prediction, truth.segmentation, self.kept)
                    self.segmentation = write_rows(self.segmentation, part, found, self.num_envs)
                    if self.expected is not None:
                        self.expectation[part] = self.expected(magnitude, found.labels)

    def _by_network(self, rows: Rows) -> list[tuple[Segmenter | None, Rows]]:
        """``rows`` with the network that scores them, so that each network gets full batches."""
        if len(self.networks) < 2:
            return [(self.networks[0] if self.settings.needs_network else None, rows)]
        # The groups of all rows are those of the last begin: to ask a GPU for them would make a step wait for it.
        groups = self._group(rows) if isinstance(rows, Tensor) else self._scored_by
        return [(network, group) for network, group in zip(self.networks, groups, strict=True) if len(group)]

    def _group(self, rows: Tensor) -> list[Tensor]:
        """``rows`` int64 (B,), apart for each network; none where there is a single one."""
        if len(self.networks) < 2:
            return []
        route = self.routing[self.samples[rows]]
        return [rows[route == index] for index in range(len(self.networks))]

    def _parts(self, rows: Rows, size: int) -> Iterator[Rows]:
        return pieces(slice(0, self.num_envs) if isinstance(rows, slice) else rows, size)

    # --- what can be seen ---------------------------------------------------------------------------------------

    def observe(self) -> dict[str, Tensor]:
        """The parts of the observation, fresh tensors with a leading axis N."""
        return {part: make_part(self, part) for part in self.settings.observation}

    def dice(self) -> tuple[Tensor, Tensor]:
        """Hard Dice per foreground class (N, K - 1), NaN where absent, and pixels predicted for absent classes."""
        assert self.segmentation is not None
        return self.segmentation.dice.clone(), self.segmentation.absent_area.clone()

    # --- exact resume -------------------------------------------------------------------------------------------

    _STATE = ("budgets", "remaining", "steps", "decisions", "quality", "initial_quality")

    @property
    def _state(self) -> tuple[str, ...]:
        return self._STATE if self.expected is None else (*self._STATE, "expectation", "initial_expectation")

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that :meth:`load_state_dict` needs to go on exactly; copies."""
        state = {name: getattr(self, name).clone() for name in self._state}
        state.update({f"scanner.{name}": getattr(self.scanner, name).clone() for name in Scanner.STATE})
        if self.segmentation is not None:
            kept = vars(self.segmentation).items()
            state.update({f"segmentation.{key}": value.clone() for key, value in kept if value is not None})
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state`` of an engine with the same slices, settings and number of environments."""
        missing = [name for name in (*self._state, *(f"scanner.{name}" for name in Scanner.STATE)) if name not in state]
        if missing:
            raise SeggymError(
                f"the state of the environments lacks {', '.join(missing)}, so another version of seggym saved it; go "
                "on with that version, or begin anew"
            )
        if len(state["budgets"]) != self.num_envs:
            raise SeggymError(
                f"the state holds {len(state['budgets'])} environments, this engine has {self.num_envs}; make it with "
                "the same num_envs"
            )
        scans = {name: state[f"scanner.{name}"].to(self.device) for name in Scanner.STATE}
        self._check(Episodes(scans["samples"], state["budgets"], scans["keys"]))
        for rows in pieces(self._every, max(1, self.piece // 4)):
            self.scanner.load(rows, *(scans[name][rows] for name in ("samples", "keys", "transposed")))
        for name in Scanner.STATE:
            getattr(self.scanner, name).copy_(scans[name])
        for name in self._state:
            getattr(self, name).copy_(state[name])
        self._set_truth(self._every)
        self._scored_by = self._group(self._every)
        found = {key.partition(".")[2]: value for key, value in state.items() if key.startswith("segmentation.")}
        if found:
            parts = {name: found.get(name) for name in Segmentation.__dataclass_fields__}
            self.segmentation = Segmentation(**{key: _moved(value, self.device) for key, value in parts.items()})
        self.scanner.refresh(slice(None))


def _moved(value: Tensor | None, device: torch.device) -> Any:
    return None if value is None else value.to(device).clone()
