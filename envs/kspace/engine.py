"""The batched simulation behind every k-space environment: states in tensors, no Gymnasium, no loop over the batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from seggym.envs.batched import Rows, pieces, read_rows, write_rows
from seggym.envs.kspace.reward import Truth, quality, quality_reward
from seggym.envs.kspace.segmentation import Segmentation, Segmenter, summarise
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.kspace import orders, simulation
from seggym.kspace.acquisition import SliceStack
from seggym.kspace.keyed_random import uniform
from seggym.reward_models import image_quality, metrics
from seggym.reward_models.frozen import micro_batch

# Streams of an episode's key beside those of seggym.kspace.simulation; part of the definition of an episode.
SAMPLE_STREAM = 0
BUDGET_STREAM = 1

# The 8-bit image shows magnitudes up to this multiple of the mean of the current reconstruction. The scale comes from
# measured samples only; 5 leaves the blood pool unclipped on ACDC.
_WHITE = 5.0

# Pixels that are worked on at a time on a processor, so that an operation finds the result of the one before in the
# cache: exact SSIM takes 0.10 ms per image of 128 x 128 for 4 of them at a time, 0.25 ms for 8 or 16.
_CACHED_PIXELS = 2**16


@dataclass(frozen=True)
class Episodes:
    """Episodes as data: slice index, budget and key of each, int64 (B,)."""

    samples: torch.Tensor
    budgets: torch.Tensor
    keys: torch.Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step did, each (N,): reward parts by name, ended episodes, illegal actions."""

    parts: dict[str, torch.Tensor]
    terminated: torch.Tensor
    illegal: torch.Tensor


class KSpaceEngine:
    """N scans in parallel, each with its own slice, budget and clock.

    ``stack`` holds the slices that episodes draw from; ``networks`` scores them and ``routing`` int64 (n,) says which
    network scores which slice, so that no slice is scored by a network that was trained on its patient. ``weights``
    (n,) are the probabilities of the slices in the draw (uniform by default). ``reconstructor`` maps zero-filled
    magnitude (B, C, C) to (B, C, C). ``dtype`` is float32, or float64 for tests.

    Whatever takes memory per image is done for a few images at a time, so that a step takes no more of it, and no more
    time per image, for a thousand scans than for sixteen; what grows with N is the state of the episodes.
    """

    def __init__(
        self,
        stack: SliceStack,
        settings: KSpaceSettings,
        num_envs: int,
        networks: list[Segmenter] | None = None,
        routing: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        reconstructor: Any = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings, self.acquisition = settings, settings.scan
        self.device, self.dtype, self.num_envs = torch.device(device), dtype, num_envs
        self.stack = stack.to(self.device)
        self.networks, self.reconstructor = networks or [], reconstructor
        self.routing = torch.zeros(len(stack), dtype=torch.int64) if routing is None else routing
        self.routing = self.routing.to(self.device)
        weights = torch.ones(len(stack)) if weights is None else weights
        self._cumulative = (weights.double().cumsum(0) / weights.double().sum()).to(self.device)
        self.num_lines = self.acquisition.matrix
        self.num_actions = self.num_lines + settings.stop_action
        self.line_phases = simulation.line_phases(self.acquisition, dtype, self.device)
        first, last = settings.candidate_range
        line = torch.arange(self.num_lines, device=self.device)
        self._candidates = (line >= first) & (line <= last)
        self._initial = torch.zeros(self.num_lines, dtype=torch.bool, device=self.device)
        self._initial[torch.from_numpy(orders.initial_block(self.num_lines, self.acquisition.initial_lines))] = True
        self._every = torch.arange(num_envs, device=self.device)
        # Images at a time: through a network, and through everything else.
        self.micro_batch = settings.micro_batch or micro_batch(self.device)
        cached = _CACHED_PIXELS // self.acquisition.crop**2 if self.device.type == "cpu" else self.micro_batch
        self._piece = max(1, min(self.micro_batch, cached))
        self._allocate()

    def _allocate(self) -> None:
        count, crop, lines, coils = self.num_envs, self.acquisition.crop, self.num_lines, self.acquisition.coils
        complex_dtype = torch.complex64 if self.dtype == torch.float32 else torch.complex128

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(count, *shape, dtype=dtype, device=self.device)

        self.samples, self.budgets, self.keys, self.remaining, self.steps = (zeros() for _ in range(5))
        self.acquired = zeros(lines, dtype=torch.bool)
        # One line of one scan is contiguous: (scan, line, coil, readout position of the whole field of view).
        self.signal = zeros(lines, coils, lines, dtype=complex_dtype)
        self.line_energy = zeros(lines, dtype=self.dtype)
        # Real and imaginary part of each coil's image.
        self.planes = zeros(coils, 2, crop, crop, dtype=self.dtype)
        self.magnitude = zeros(crop, crop, dtype=self.dtype)
        self.quality, self.initial_quality = zeros(dtype=self.dtype), zeros(dtype=self.dtype)
        self.truth: Truth | None = None
        self.segmentation: Segmentation | None = None
        self._scored_by: list[torch.Tensor] = []

    # --- episodes -----------------------------------------------------------------------------------------------

    def draw(self, keys: torch.Tensor) -> Episodes:
        """The episodes that belong to ``keys`` int64 (B,): slice by weight, budget uniform in its range."""
        keys = keys.to(self.device)
        chosen = uniform(keys, SAMPLE_STREAM, 1)[:, 0].double()
        samples = torch.searchsorted(self._cumulative, chosen).clamp_(max=len(self.stack) - 1)
        low, high = self.settings.budget_range
        budgets = low + (uniform(keys, BUDGET_STREAM, 1)[:, 0] * (high - low + 1)).long().clamp_(max=high - low)
        return Episodes(samples, budgets, keys)

    def begin(self, slots: torch.Tensor, episodes: Episodes) -> None:
        """Start ``episodes`` in the environments ``slots`` int64 (B,): measure the initial lines and score them."""
        self._check(episodes)
        for rows, few in self._few(slots, episodes):
            self._load(rows, few)
            initial = self._initial.expand(len(rows), -1)
            images = simulation.reconstruct(self.hybrid(rows), initial, self.acquisition)
            self.planes[rows] = simulation.to_planes(images)
        self.remaining[slots] = episodes.budgets
        self.steps[slots] = 0
        self.acquired[slots] = self._initial
        self._scored_by = self._group(self._every)
        self._refresh_magnitude(slots)
        self._score(slots)
        self.initial_quality[slots] = self.quality[slots]

    def _few(self, slots: torch.Tensor, episodes: Episodes) -> Iterator[tuple[torch.Tensor, Episodes]]:
        """Slots and their episodes in pieces: to measure a whole scan takes several arrays of the size of k-space."""
        for part in pieces(slice(0, len(slots)), max(1, self._piece // 4)):
            yield slots[part], Episodes(episodes.samples[part], episodes.budgets[part], episodes.keys[part])

    def _load(self, slots: torch.Tensor, episodes: Episodes) -> None:
        """Put slice, key and budget into the slots, with all that follows from them alone."""
        self.samples[slots], self.budgets[slots], self.keys[slots] = episodes.samples, episodes.budgets, episodes.keys
        clean = simulation.encode(self.stack, episodes.samples, episodes.keys, self.acquisition, self.dtype)
        noise = simulation.thermal_noise(self.stack, episodes.samples, episodes.keys, self.acquisition)
        signal = (clean + noise).permute(0, 3, 1, 2)
        self.signal[slots] = signal
        self.line_energy[slots] = torch.view_as_real(signal).square().sum((2, 3, 4))
        reference = None
        if self.settings.lambda_recon > 0:
            full = simulation.zero_filled(clean, None, self.acquisition)
            reference = image_quality.encode_reference(full, self.stack.data_range[episodes.samples].to(self.dtype))
        segmentation = None
        if self.settings.needs_network:
            segmentation = metrics.encode_truth(self.stack.labels[episodes.samples], self.stack.num_classes)
        truth = Truth(segmentation, reference)
        self.truth = write_rows(self.truth, slots, truth, self.num_envs)

    def hybrid(self, rows: Rows) -> torch.Tensor:
        """Hybrid space complex (B, J, M, M) as in :mod:`seggym.kspace.simulation`: all lines, the unmeasured too."""
        return self.signal[rows].permute(0, 2, 3, 1)

    def _check(self, episodes: Episodes) -> None:
        low, high = 1, self.num_lines - self.acquisition.initial_lines
        if len(episodes.samples) and not (
            int(episodes.samples.min()) >= 0 and int(episodes.samples.max()) < len(self.stack)
        ):
            raise SeggymError(f"an episode names a slice outside 0..{len(self.stack) - 1}")
        if len(episodes.budgets) and not (low <= int(episodes.budgets.min()) and int(episodes.budgets.max()) <= high):
            raise SeggymError(f"an episode has a budget outside {low}..{high}")

    # --- one step -----------------------------------------------------------------------------------------------

    def action_mask(self) -> torch.Tensor:
        """Legal actions, a fresh bool (N, A): candidate lines not yet measured, and stopping where it is an action."""
        legal = self._candidates & ~self.acquired
        if self.settings.stop_action:
            legal = torch.cat([legal, torch.ones_like(legal[:, :1])], 1)
        return legal

    def step(self, actions: torch.Tensor, active: torch.Tensor | None = None) -> StepResult:
        """Measure line ``actions`` int64 (N,) in every environment that is ``active`` bool (N,) (default: all)."""
        rows: Rows = slice(None) if active is None else active.nonzero()[:, 0]
        active = torch.ones_like(actions, dtype=torch.bool) if active is None else active
        inside = (actions >= 0) & (actions < self.num_actions)
        chosen = torch.where(inside, actions, 0)
        legal = self.action_mask().gather(1, chosen[:, None])[:, 0] & inside & active
        illegal = active & ~legal
        if self.settings.illegal_action == "raise" and bool(illegal.any()):
            slot = int(illegal.nonzero()[0])
            raise SeggymError(
                f"action {int(actions[slot])} of environment {slot} is illegal: the line is measured already or is no "
                "candidate; choose among info['action_mask']"
            )
        stopping = legal & (chosen == self.num_lines)
        measuring = legal & ~stopping
        line = torch.where(measuring, chosen, self.acquisition.dc)
        self._measure(line, measuring)
        self.acquired[self._every, line] |= measuring
        self.steps += active
        self.remaining = torch.where(stopping, 0, self.remaining - active.long())
        exhausted = ~(self._candidates & ~self.acquired).any(1)
        terminated = active & ((self.remaining <= 0) | exhausted)
        before = self.quality.clone()
        if self.reconstructor is not None:
            self._refresh_magnitude(rows)
        # Only the last image of an episode is rewarded in terminal mode; the others need no network, unless it is seen.
        if self.settings.reward != "terminal" or self.settings.network_is_observed:
            self._score(rows)
        elif bool(terminated.any()):
            self._score(terminated.nonzero()[:, 0])
        gain = quality_reward(
            self.settings, before, self.quality, self.initial_quality, self.steps, self.budgets, terminated
        )
        parts = {self.part_names[0]: torch.where(active, gain, 0)}
        if "illegal" in self.part_names:
            parts["illegal"] = -self.settings.illegal_penalty * illegal.to(self.dtype)
        return StepResult(parts, terminated, illegal)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts of a reward: "quality", a gain, or ASMR's "level"; and "illegal" where it has a price."""
        first = "level" if self.settings.reward == "level" else "quality"
        return (first, "illegal") if self.settings.illegal_action == "penalty" else (first,)

    def _measure(self, line: torch.Tensor, measuring: torch.Tensor) -> None:
        """Add line ``line`` int64 (N,) to the images of the scans that are ``measuring`` bool (N,)."""
        signal = self.signal_of(self._every, line) * measuring[:, None, None]
        left, right = simulation.line_factors(signal, self.line_phases[line])
        for part in pieces(slice(0, self.num_envs), self._piece):
            simulation.add_lines(self.planes[part], left[part], right[part])
            if self.reconstructor is None:  # while the planes are in the cache
                simulation.root_sum_of_squares(self.planes[part], out=self.magnitude[part])

    def signal_of(self, slots: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
        """Line ``lines[i]`` of scan ``slots[i]`` as its coils see it, at the rows of the crop: complex (B, J, C)."""
        first_row = self.num_lines // 2 - self.acquisition.crop // 2
        return self.signal[slots, lines, :, first_row : first_row + self.acquisition.crop]

    def _refresh_magnitude(self, rows: Rows) -> None:
        for part in self._parts(rows, self._piece if self.reconstructor is None else self.micro_batch):
            self.magnitude[part] = self.magnitude_of(self.planes[part])

    def magnitude_of(self, planes: torch.Tensor) -> torch.Tensor:
        """The image (B, C, C) that is shown and scored, from planes (B, J, 2, C, C)."""
        magnitude = simulation.root_sum_of_squares(planes)
        return magnitude if self.reconstructor is None else self.reconstructor(magnitude).to(self.dtype)

    def _score(self, rows: Rows) -> None:
        """Segment and score the current magnitude of ``rows``."""
        assert self.truth is not None
        for network, group in self._by_network(rows):
            for part in self._parts(group, self._piece if network is None else self.micro_batch):
                magnitude, truth = self.magnitude[part], read_rows(self.truth, part)
                prediction = None if network is None else network(magnitude)
                self.quality[part] = quality(self.settings, prediction, magnitude, truth)
                if prediction is not None:
                    assert truth.segmentation is not None
                    found = summarise(prediction, truth.segmentation, self.settings.observation)
                    self.segmentation = write_rows(self.segmentation, part, found, self.num_envs)

    def _by_network(self, rows: Rows) -> list[tuple[Segmenter | None, Rows]]:
        """``rows`` with the network that scores them, so that each network gets full batches."""
        if len(self.networks) < 2:
            return [(self.networks[0] if self.settings.needs_network else None, rows)]
        # The groups of all rows are those of the last begin: to ask a GPU for them would make a step wait for it.
        groups = self._group(rows) if isinstance(rows, torch.Tensor) else self._scored_by
        return [(network, group) for network, group in zip(self.networks, groups, strict=True) if len(group)]

    def _group(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """``rows`` int64 (B,), apart for each network; none where there is a single one."""
        if len(self.networks) < 2:
            return []
        route = self.routing[self.samples[rows]]
        return [rows[route == index] for index in range(len(self.networks))]

    def _parts(self, rows: Rows, size: int) -> Iterator[Rows]:
        return pieces(slice(0, self.num_envs) if isinstance(rows, slice) else rows, size)

    # --- what can be seen ---------------------------------------------------------------------------------------

    def observe(self) -> dict[str, torch.Tensor]:
        """The parts of the observation, fresh tensors with a leading axis N."""
        makers = {
            "image": lambda: self._each(self._image_of_255, torch.uint8),
            "acquired": lambda: self.acquired.to(torch.int8),
            # A constant scale, so that the space does not change with the budget.
            "budget": lambda: (self.remaining / self.num_lines).to(torch.float32)[:, None],
            "energy": self._energy,
            "image_float": lambda: self._each(self._image_float),
            "probabilities": lambda: self._seen("probabilities"),
            "probability_grid": lambda: self._seen("probability_grid"),
            "features": lambda: self._seen("features"),
            "kspace": lambda: self._each(self._kspace),
            "action_mask": lambda: self.action_mask().to(torch.int8),
        }
        return {part: makers[part]() for part in self.settings.observation}

    def _each(self, make: Callable[[slice], torch.Tensor], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``make`` of all scans, a few at a time, as ``dtype``."""
        joined: torch.Tensor | None = None
        for part in pieces(slice(0, self.num_envs), self._piece):
            made = make(part)
            if joined is None:
                joined = torch.empty(self.num_envs, *made.shape[1:], dtype=dtype, device=self.device)
            joined[part] = made
        assert joined is not None
        return joined

    def _seen(self, part: str) -> torch.Tensor:
        return getattr(self.segmentation, part).clone()

    def _image_float(self, rows: slice, white: float = 1.0) -> torch.Tensor:
        magnitude = self.magnitude[rows]
        mean = magnitude.mean((1, 2), keepdim=True)
        return (magnitude * torch.where(mean > 0, white / (_WHITE * mean), 1))[:, None]

    def _image_of_255(self, rows: slice) -> torch.Tensor:
        return self._image_float(rows, 255.0).clamp_(max=255).round_()

    def _energy(self) -> torch.Tensor:
        """Energy of each measured line on a log scale, float32 (N, M): 1 is the strongest, 0 a millionth or less."""
        energy = self.line_energy * self.acquired
        strongest = energy.amax(1, keepdim=True).clamp_min(1e-30)
        return (1 + (energy / strongest).clamp_min(1e-6).log10() / 6).to(torch.float32)

    def _kspace(self, rows: slice) -> torch.Tensor:
        """Measured k-space in units of the root mean square of its samples, zero elsewhere: float32 (B, 2 J, M, M)."""
        acquired = self.acquired[rows]
        measured = simulation.fftc(self.hybrid(rows) * acquired[:, None, None, :], (-2,))
        samples = acquired.sum(1) * self.num_lines * self.acquisition.coils
        scale = (measured.abs().square().sum((1, 2, 3)) / samples).sqrt().clamp_min(1e-30)
        return simulation.to_planes(measured / scale[:, None, None, None]).flatten(1, 2)

    def dice(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Hard Dice per foreground class (N, K - 1), NaN where absent, and pixels predicted for absent classes."""
        assert self.segmentation is not None
        return self.segmentation.dice.clone(), self.segmentation.absent_area.clone()

    # --- exact resume -------------------------------------------------------------------------------------------

    _STATE = ("samples", "budgets", "keys", "remaining", "steps", "acquired", "planes", "quality", "initial_quality")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that :meth:`load_state_dict` needs to go on exactly; copies."""
        state = {name: getattr(self, name).clone() for name in self._STATE}
        if self.segmentation is not None:
            kept = vars(self.segmentation).items()
            state.update({f"segmentation.{key}": value.clone() for key, value in kept if value is not None})
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from ``state`` of an engine with the same slices, settings and number of environments."""
        missing = [name for name in self._STATE if name not in state]
        if missing:
            raise SeggymError(
                f"the state of the environments lacks {', '.join(missing)}, so another version of seggym saved it; go "
                "on with that version, or begin anew"
            )
        if len(state["samples"]) != self.num_envs:
            raise SeggymError(
                f"the state holds {len(state['samples'])} environments, this engine has {self.num_envs}; make it with "
                "the same num_envs"
            )
        episodes = Episodes(*(state[name].to(self.device) for name in ("samples", "budgets", "keys")))
        self._check(episodes)
        for rows, few in self._few(self._every, episodes):
            self._load(rows, few)
        for name in self._STATE:
            getattr(self, name).copy_(state[name])
        self._scored_by = self._group(self._every)
        found = {key.partition(".")[2]: value for key, value in state.items() if key.startswith("segmentation.")}
        if found:
            parts = {name: found.get(name) for name in Segmentation.__dataclass_fields__}
            self.segmentation = Segmentation(**{key: _moved(value, self.device) for key, value in parts.items()})
        self._refresh_magnitude(slice(None))


def _moved(value: torch.Tensor | None, device: torch.device) -> Any:
    return None if value is None else value.to(device).clone()
