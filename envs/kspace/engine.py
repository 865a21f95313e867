"""The batched simulation behind every k-space environment: states in tensors, no Gymnasium, no loop over the batch."""

from dataclasses import dataclass
from typing import Any

import torch

from seggym.envs.batched import Rows, read_rows, write_rows
from seggym.envs.kspace.reward import Segmenter, Truth, quality, quality_reward, segment
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import SeggymError
from seggym.kspace import orders, simulation
from seggym.kspace.acquisition import SliceStack
from seggym.kspace.keyed_random import uniform
from seggym.reward_models import image_quality, metrics
from seggym.reward_models.frozen import Prediction

# Streams of an episode's key beside those of seggym.kspace.simulation; part of the definition of an episode.
SAMPLE_STREAM = 0
BUDGET_STREAM = 1

# Side of the coarse grid of the observation ``probability_grid``.
GRID = 8

# The 8-bit image shows magnitudes up to this multiple of the mean of the current reconstruction. The scale comes from
# measured samples only; 5 leaves the blood pool unclipped on ACDC.
_WHITE = 5.0


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
        self._phases = simulation.line_phases(self.acquisition, dtype, self.device)
        first, last = settings.candidate_range
        line = torch.arange(self.num_lines, device=self.device)
        self._candidates = (line >= first) & (line <= last)
        self._initial = torch.zeros(self.num_lines, dtype=torch.bool, device=self.device)
        self._initial[torch.from_numpy(orders.initial_block(self.num_lines, self.acquisition.initial_lines))] = True
        self._allocate()

    def _allocate(self) -> None:
        count, crop, lines = self.num_envs, self.acquisition.crop, self.num_lines
        complex_dtype = torch.complex64 if self.dtype == torch.float32 else torch.complex128

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(count, *shape, dtype=dtype, device=self.device)

        self.samples, self.budgets, self.keys, self.remaining, self.steps = (zeros() for _ in range(5))
        self.acquired = zeros(lines, dtype=torch.bool)
        # One line of one scan is contiguous: (scan, line, readout position of the whole field of view).
        self.signal = zeros(lines, lines, dtype=complex_dtype)
        self.line_energy = zeros(lines, dtype=self.dtype)
        self.image = zeros(crop, crop, dtype=complex_dtype)
        self.magnitude = zeros(crop, crop, dtype=self.dtype)
        self.quality, self.initial_quality = zeros(dtype=self.dtype), zeros(dtype=self.dtype)
        self.truth: Truth | None = None
        self.prediction: Prediction | None = None

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
        self._load(slots, episodes)
        self.remaining[slots] = episodes.budgets
        self.steps[slots] = 0
        self.acquired[slots] = self._initial
        initial = simulation.reconstruct(self.signal[slots].transpose(1, 2), self.acquired[slots], self.acquisition)
        self.image[slots] = initial
        self._refresh_magnitude(slots)
        self._score(slots)
        self.initial_quality[slots] = self.quality[slots]

    def _load(self, slots: torch.Tensor, episodes: Episodes) -> None:
        """Put slice, key and budget into the slots, with all that follows from them alone."""
        self._check(episodes)
        self.samples[slots], self.budgets[slots], self.keys[slots] = episodes.samples, episodes.budgets, episodes.keys
        clean = simulation.encode(self.stack, episodes.samples, episodes.keys, self.acquisition, self.dtype)
        noise = simulation.thermal_noise(self.stack, episodes.samples, episodes.keys, self.acquisition)
        signal = (clean + noise).transpose(1, 2)
        self.signal[slots] = signal
        self.line_energy[slots] = torch.view_as_real(signal).square().sum((2, 3))
        reference = None
        if self.settings.lambda_recon > 0:
            every = torch.ones(len(slots), self.num_lines, dtype=torch.bool, device=self.device)
            full = simulation.reconstruct(clean, every, self.acquisition).abs()
            reference = image_quality.encode_reference(full, self.stack.data_range[episodes.samples].to(self.dtype))
        truth = Truth(metrics.encode_truth(self.stack.labels[episodes.samples], self.stack.num_classes), reference)
        self.truth = write_rows(self.truth, slots, truth, self.num_envs)

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
        first_row = self.num_lines // 2 - self.acquisition.crop // 2
        every = torch.arange(self.num_envs, device=self.device)
        signal = self.signal[every, line, first_row : first_row + self.acquisition.crop]
        simulation.add_line(self.image, signal * measuring[:, None], self._phases, line)
        self.acquired[every, line] |= measuring
        self.steps += active
        self.remaining = torch.where(stopping, 0, self.remaining - active.long())
        exhausted = ~(self._candidates & ~self.acquired).any(1)
        terminated = active & ((self.remaining <= 0) | exhausted)
        before = self.quality.clone()
        # Only the last image of an episode is rewarded in terminal mode; the others need no network, unless it is seen.
        if self.settings.reward == "terminal" and not self.settings.network_is_observed:
            self._refresh_magnitude(rows)
            if bool(terminated.any()):
                self._score(terminated.nonzero()[:, 0])
        else:
            self._refresh_magnitude(rows)
            self._score(rows)
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

    def _refresh_magnitude(self, rows: Rows) -> None:
        image = self.image[rows]
        magnitude = torch.sqrt(image.real.square() + image.imag.square())  # twice as fast as abs() on a CPU
        if self.reconstructor is not None:
            magnitude = self.reconstructor(magnitude).to(self.dtype)
        self.magnitude[rows] = magnitude

    def _score(self, rows: Rows) -> None:
        """Segment and score the current magnitude of ``rows``."""
        magnitude = self.magnitude[rows]
        if self.settings.needs_network and len(magnitude):
            prediction = segment(self.networks, self.routing[self.samples[rows]], magnitude)
            self.prediction = write_rows(self.prediction, rows, prediction, self.num_envs)
        assert self.truth is not None
        self.quality[rows] = quality(
            self.settings, read_rows(self.prediction, rows), magnitude, read_rows(self.truth, rows)
        )

    # --- what can be seen ---------------------------------------------------------------------------------------

    def observe(self) -> dict[str, torch.Tensor]:
        """The parts of the observation, fresh tensors with a leading axis N."""
        makers = {
            "image": self._image_uint8,
            "acquired": lambda: self.acquired.to(torch.int8),
            # A constant scale, so that the space does not change with the budget.
            "budget": lambda: (self.remaining / self.num_lines).to(torch.float32)[:, None],
            "energy": self._energy,
            "image_float": lambda: (self.magnitude / self._white()).to(torch.float32)[:, None],
            "probabilities": lambda: (self._seen().probabilities * 255).round().to(torch.uint8),
            "probability_grid": self._probability_grid,
            "features": lambda: self._seen().features.to(torch.float32).clone(),
            "kspace": self._kspace,
            "action_mask": lambda: self.action_mask().to(torch.int8),
        }
        return {part: makers[part]() for part in self.settings.observation}

    def _seen(self) -> Prediction:
        assert self.prediction is not None
        return self.prediction

    def _white(self) -> torch.Tensor:
        mean = self.magnitude.mean((1, 2), keepdim=True)
        return torch.where(mean > 0, _WHITE * mean, 1)

    def _image_uint8(self) -> torch.Tensor:
        return (self.magnitude * 255 / self._white()).clamp_(0, 255).round_().to(torch.uint8)[:, None]

    def _probability_grid(self) -> torch.Tensor:
        """Mean probability of each class over the blocks of a coarse grid: float32 (N, K * GRID * GRID)."""
        pooled = torch.nn.functional.adaptive_avg_pool2d(self._seen().probabilities, GRID)
        return pooled.flatten(1).to(torch.float32).clamp_(0, 1)

    def _energy(self) -> torch.Tensor:
        """Energy of each measured line on a log scale, float32 (N, M): 1 is the strongest, 0 a millionth or less."""
        energy = self.line_energy * self.acquired
        strongest = energy.amax(1, keepdim=True).clamp_min(1e-30)
        return (1 + (energy / strongest).clamp_min(1e-6).log10() / 6).to(torch.float32)

    def _kspace(self) -> torch.Tensor:
        """Measured k-space in units of the root mean square of its samples, zero elsewhere: float32 (N, 2, M, M)."""
        measured = simulation.fftc(self.signal * self.acquired[:, :, None], (-1,)).transpose(1, 2)
        samples = self.acquired.sum(1) * self.num_lines
        scale = (measured.abs().square().sum((1, 2)) / samples).sqrt().clamp_min(1e-30)
        return torch.view_as_real(measured / scale[:, None, None]).movedim(-1, 1).to(torch.float32).contiguous()

    def dice(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Hard Dice per foreground class (N, K - 1), NaN where absent, and pixels predicted for absent classes."""
        labels = metrics.most_probable(self._seen().probabilities)
        assert self.truth is not None
        return (
            metrics.dice_per_class(labels, self.truth.segmentation),
            metrics.absent_area(labels, self.truth.segmentation),
        )

    # --- exact resume -------------------------------------------------------------------------------------------

    _STATE = ("samples", "budgets", "keys", "remaining", "steps", "acquired", "image", "quality", "initial_quality")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that :meth:`load_state_dict` needs to go on exactly; copies."""
        state = {name: getattr(self, name).clone() for name in self._STATE}
        if self.prediction is not None:
            state.update({f"prediction.{key}": value.clone() for key, value in self.prediction._asdict().items()})
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from ``state`` of an engine with the same slices, settings and number of environments."""
        every = torch.arange(self.num_envs, device=self.device)
        if len(state["samples"]) != self.num_envs:
            raise SeggymError(
                f"the state holds {len(state['samples'])} environments, this engine has {self.num_envs}; make it with "
                "the same num_envs"
            )
        self._load(every, Episodes(*(state[name].to(self.device) for name in ("samples", "budgets", "keys"))))
        for name in self._STATE:
            getattr(self, name).copy_(state[name])
        prediction = {key.partition(".")[2]: value for key, value in state.items() if key.startswith("prediction.")}
        if prediction:
            self.prediction = Prediction(**{key: value.to(self.device).clone() for key, value in prediction.items()})
        self._refresh_magnitude(every)
