"""Volumes scanned slice by slice: every slot of an episode is a scan of a :class:`KSpaceEngine`, scored together."""

from collections.abc import Callable
from typing import Any

import torch

from seggym.envs.batched import StepResult, judge, refuse
from seggym.envs.kspace.engine import BUDGET_STREAM, SAMPLE_STREAM, Episodes, KSpaceEngine
from seggym.envs.kspace.reward import quality_reward
from seggym.envs.kspace.segmentation import Segmentation
from seggym.envs.kspace.volumes.settings import OVERLAP, VolumeSettings
from seggym.envs.kspace.volumes.table import VolumeTable
from seggym.errors import SeggymError
from seggym.kspace.keyed_random import random_bits, uniform
from seggym.reward_models import metrics
from seggym.reward_models.function import ejection_fraction

# Stream of an episode's key from which its slices get keys of their own; part of the definition of an episode.
SLICE_STREAM = 2


class VolumeEngine:
    """N volumes in parallel, each with its own slices, budget and clock.

    ``slices`` is an engine with N * Z scans, Z = ``settings.slots``: scan ``n * Z + z`` is slot z of volume n. Slots
    beyond the depth of a volume are never begun, measured or scored, and are zero in every observation. ``table`` says
    which slices an episode has; ``left_ventricle`` is the label whose volume gives the ejection fraction of a pair.

    A volume's key gives slot z the z-th draw of stream :data:`SLICE_STREAM` as its key, so slices have noise and shape
    of the phase of their own; amplitude and echo shift belong to the patient.
    """

    def __init__(
        self,
        slices: KSpaceEngine,
        settings: VolumeSettings,
        table: VolumeTable,
        num_envs: int,
        left_ventricle: int | None = None,
    ) -> None:
        self.slices, self.settings, self.num_envs = slices, settings, num_envs
        self.acquisition, self.device, self.dtype = slices.acquisition, slices.device, slices.dtype
        self.stack, self.networks = slices.stack, slices.networks
        self.num_slots, self.num_lines = settings.slots, slices.num_lines
        self.num_actions = self.num_lines * (self.num_slots if settings.slices == "allocate" else 1)
        self.table, self.left_ventricle = table, left_ventricle
        self._members, self._frame_numbers = table.members.to(self.device), table.frames.to(self.device)
        self._every = torch.arange(num_envs, device=self.device)
        self._slot = torch.arange(self.num_slots, device=self.device)
        self._frames = 2 if settings.pair else 1
        slices.kept = {*slices.settings.observation, OVERLAP}
        # A slot that no volume has reached yet must be one that a saved state can be loaded into.
        slices.budgets.fill_(settings.lines_per_slice)
        self._check_budget()
        self._allocate()

    def _check_budget(self) -> None:
        """The range that budgets are drawn from must suit the shallowest volume."""
        if self.settings.slices != "shared":
            most = int(self.table.depths.min()) * self.settings.lines_per_slice
            if self.settings.budget_range[1] > most:
                name = self.table.names[int(self.table.depths.argmin())]
                raise SeggymError(
                    f"budget={self.settings.budget} counts lines of all slices, and {name} has {most} to measure after "
                    "the initial ones: choose a smaller budget"
                )

    def _allocate(self) -> None:
        count, slots, classes = self.num_envs, self.num_slots, self.stack.num_classes - 1

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(count, *shape, dtype=dtype, device=self.device)

        self.samples, self.budgets, self.keys, self.remaining, self.steps = (zeros() for _ in range(5))
        self.quality, self.initial_quality = zeros(dtype=self.dtype), zeros(dtype=self.dtype)
        # Slots that hold a slice; the volume they belong to, one-hot; what sequential scanning may and did spend there.
        self.real = zeros(slots, dtype=torch.bool)
        self.frames = zeros(slots, self._frames, dtype=self.dtype)
        self.share, self.spent = zeros(slots), zeros(slots)
        # Per volume of the episode: true area of each class and number of pixels; per slot: millilitres of a voxel.
        self._areas = zeros(self._frames, classes, dtype=self.dtype)
        self._pixels = torch.ones(count, self._frames, dtype=self.dtype, device=self.device)
        self._voxels = zeros(slots, dtype=self.dtype)

    # --- episodes -----------------------------------------------------------------------------------------------

    @property
    def episode_names(self) -> list[str]:
        """What each sample is called: the volume, or of a pair the patient."""
        return list(self.table.names)

    def draw(self, keys: torch.Tensor) -> Episodes:
        """The episodes that belong to ``keys`` int64 (B,): volume and budget uniform."""
        keys = keys.to(self.device)
        count, (low, high) = len(self.table), self.settings.budget_range
        samples = (uniform(keys, SAMPLE_STREAM, 1)[:, 0] * count).long().clamp_(max=count - 1)
        budgets = low + (uniform(keys, BUDGET_STREAM, 1)[:, 0] * (high - low + 1)).long().clamp_(max=high - low)
        return Episodes(samples, budgets, keys)

    def slice_keys(self, keys: torch.Tensor) -> torch.Tensor:
        """Keys of the slots of volumes with ``keys`` int64 (B,): int64 (B, Z), whatever Z is."""
        return random_bits(keys, SLICE_STREAM, self.num_slots)

    def begin(self, slots: torch.Tensor, episodes: Episodes) -> None:
        """Start ``episodes`` in the environments ``slots`` int64 (B,): measure the initial lines and score them."""
        self._check(episodes)
        self._place(slots, episodes)
        members, real = self._members[episodes.samples], self.real[slots]
        scans = (slots[:, None] * self.num_slots + self._slot)[real]
        budgets = torch.full_like(scans, self.settings.lines_per_slice)
        self.slices.begin(scans, Episodes(members[real], budgets, self.slice_keys(episodes.keys)[real]))
        self.remaining[slots] = episodes.budgets
        self.steps[slots], self.spent[slots] = 0, 0
        self._measure_truth()
        self._score()
        self.initial_quality[slots] = self.quality[slots]

    def _place(self, slots: torch.Tensor, episodes: Episodes) -> None:
        """Put volume, key and budget into ``slots``, with all that follows from them alone."""
        self.samples[slots], self.budgets[slots], self.keys[slots] = episodes.samples, episodes.budgets, episodes.keys
        members = self._members[episodes.samples]
        real = members >= 0
        self.real[slots] = real
        numbers = self._frame_numbers[episodes.samples]
        self.frames[slots] = torch.stack([real & (numbers == frame) for frame in range(self._frames)], 2).to(self.dtype)
        depth = real.sum(1, keepdim=True)
        budget = episodes.budgets[:, None]
        # What an equal share leaves over goes to the first slices.
        self.share[slots] = torch.where(real, budget // depth + (self._slot < budget % depth), 0)
        voxels = self.stack.spacing[members.clamp_min(0)].prod(2) / 1000
        self._voxels[slots] = torch.where(real, voxels, 0).to(self.dtype)

    def _measure_truth(self) -> None:
        assert self.slices.truth is not None
        assert self.slices.truth.segmentation is not None
        areas = self.slices.truth.segmentation.areas.to(self.dtype).view(self.num_envs, self.num_slots, 1, -1)
        self._areas = (areas * self.frames[..., None]).sum(1)
        self._pixels = self.frames.sum(1).clamp_min(1) * self.acquisition.crop**2

    def _check(self, episodes: Episodes) -> None:
        if not len(episodes.samples):
            return
        if not (int(episodes.samples.min()) >= 0 and int(episodes.samples.max()) < len(self.table)):
            raise SeggymError(f"an episode names a volume outside 0..{len(self.table) - 1}")
        depths = self.table.depths.to(self.device)[episodes.samples]
        most = self.settings.lines_per_slice * (1 if self.settings.slices == "shared" else depths)
        if not bool(((episodes.budgets >= 1) & (episodes.budgets <= most)).all()):
            raise SeggymError(
                f"an episode has a budget below 1 or above the lines to measure, {self.settings.lines_per_slice} in "
                f"each slice; budgets count {self.budget_unit}"
            )

    @property
    def budget_unit(self) -> str:
        """What a budget counts."""
        return "lines of every slice" if self.settings.slices == "shared" else "lines of all slices together"

    # --- one step -----------------------------------------------------------------------------------------------

    def action_mask(self) -> torch.Tensor:
        """Legal actions, a fresh bool (N, A): candidate lines not yet measured, of the slices that may be chosen."""
        legal = self._legal()
        if self.settings.slices == "shared":
            return legal[:, 0]
        if self.settings.slices == "sequential":
            return legal[self._every, self.current()]
        return legal.flatten(1)

    def _legal(self) -> torch.Tensor:
        """Lines that may be measured, a fresh bool (N, Z, M)."""
        legal = self.slices.action_mask().view(self.num_envs, self.num_slots, self.num_lines)
        may = self.real & (self.spent < self.share) if self.settings.slices == "sequential" else self.real
        return legal & may[:, :, None]

    def current(self) -> torch.Tensor:
        """The slot that is being scanned, int64 (N,): the first with lines left of its share (0 at the end)."""
        return self._legal().any(2).byte().argmax(1)

    def step(self, actions: torch.Tensor, active: torch.Tensor | None = None) -> StepResult:
        """Do ``actions`` int64 (N,) in every environment that is ``active`` bool (N,) (default: all)."""
        active = torch.ones_like(actions, dtype=torch.bool) if active is None else active
        chosen, legal, illegal = judge(actions, self.action_mask(), active)
        if self.settings.illegal_action == "raise":
            refuse(illegal, actions, "the line is measured already, is no candidate, or belongs to no slice")
        scanned = self._scanned(chosen) & active[:, None]
        lines = (chosen % self.num_lines)[:, None].expand(-1, self.num_slots)
        self.slices.step(lines.flatten(), (scanned & legal[:, None]).flatten())
        self.spent += scanned
        self.steps += active
        self.remaining -= active.long()
        terminated = active & ((self.remaining <= 0) | ~self.action_mask().any(1))
        before = self.quality.clone()
        self._score()
        gain = quality_reward(
            self.settings, before, self.quality, self.initial_quality, self.steps, self.budgets, terminated
        )
        parts = {"quality": torch.where(active, gain, 0)}
        if "illegal" in self.part_names:
            parts["illegal"] = -self.settings.illegal_penalty * illegal.to(self.dtype)
        return StepResult(parts, terminated, illegal)

    def _scanned(self, actions: torch.Tensor) -> torch.Tensor:
        """The slots in which ``actions`` int64 (N,) measure, bool (N, Z)."""
        if self.settings.slices == "shared":
            return self.real.clone()
        chosen = self.current() if self.settings.slices == "sequential" else actions // self.num_lines
        return self.real & (self._slot == chosen[:, None])

    @property
    def decisions(self) -> torch.Tensor:
        """Actions of the episode so far, int64 (N,)."""
        return self.steps

    def duration(self, lines: torch.Tensor, decisions: torch.Tensor | int = 1) -> torch.Tensor:
        """Milliseconds that ``lines`` units of budget and ``decisions`` take, float (N,): one slice after the other."""
        return self.slices.duration(lines * (self.real.sum(1) if self.is_shared else 1), decisions)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts of a reward."""
        return ("quality", "illegal") if self.settings.illegal_action == "penalty" else ("quality",)

    def _overlaps(self) -> tuple[metrics.Overlap, metrics.Overlap]:
        """Soft and hard overlap of every volume with its truth, (N, F, K - 1) each."""
        assert self.slices.segmentation is not None
        assert self.slices.segmentation.overlap is not None
        found = self.slices.segmentation.overlap.to(self.dtype)
        found = found.view(self.num_envs, self.num_slots, 1, *found.shape[1:])
        # Rather than a product with zero, which is no zero for what is not finite.
        used = self.frames[..., None, None] > 0
        soft_shared, soft_area, hard_shared, hard_area = torch.where(used, found, 0).sum(1).unbind(2)
        return (
            metrics.Overlap(soft_shared, soft_area, self._areas),
            metrics.Overlap(hard_shared, hard_area, self._areas),
        )

    def _score(self) -> None:
        """Quality of all volumes, from the overlaps of their slices."""
        soft, hard = self._overlaps()
        overlap = soft if self.settings.seg_metric == "soft_dice" else hard
        union = self.settings.seg_metric == "iou"
        each = metrics.overlap_quality(overlap, self._pixels, self.settings.absent_weight, union)
        self.quality.copy_(self.settings.lambda_seg * each.mean(1))

    # --- what can be seen ---------------------------------------------------------------------------------------

    @property
    def rewarded(self) -> torch.Tensor:
        """What the rewards are gains of (N,), as of a slice."""
        return self.quality

    @property
    def truth(self) -> Any:
        """Ground-truth terms of the slices, None before the first episode."""
        return self.slices.truth

    @property
    def segmentation(self) -> Segmentation | None:
        """What the networks make of the slices, None before the first episode."""
        return self.slices.segmentation

    @property
    def acquired(self) -> torch.Tensor:
        """Lines measured, of those that an action can be about, bool: (N, M), or (N, Z * M) with "allocate"."""
        return self._chosen(self._by_volume(self.slices.acquired)).flatten(1)

    @property
    def lines(self) -> torch.Tensor:
        """Lines measured in the unit of the budget, the initial ones included, int64 (N,)."""
        measured = self.lines_per_slice()
        return measured[:, 0] if self.is_shared else measured.sum(1)

    def _by_volume(self, values: torch.Tensor) -> torch.Tensor:
        """(N * Z, ...) as (N, Z, ...)."""
        return values.view(self.num_envs, self.num_slots, *values.shape[1:])

    def observe(self) -> dict[str, torch.Tensor]:
        """The parts of the observation, fresh tensors with a leading axis N."""
        seen = {part: self._by_volume(value) for part, value in self.slices.observe().items()}
        makers: dict[str, Callable[[], torch.Tensor]] = {
            "acquired": lambda: self._chosen(seen["acquired"]),
            "energy": lambda: self._mean(seen["energy"]) if self.is_shared else self._chosen(seen["energy"]),
            "budget": lambda: (self.remaining / self._budget_scale).to(torch.float32)[:, None],
            "slices": lambda: self._slices(seen["acquired"]),
            "slice_probabilities": lambda: self._shares_of_classes(seen["probability_grid"]).flatten(1),
            "probability_grid": lambda: self._grid(seen["probability_grid"]),
            "images": lambda: seen["image"][:, :, 0] * self.real[:, :, None, None],
            "action_mask": lambda: self.action_mask().to(torch.int8),
        }
        return {part: makers[part]() for part in self.settings.observation}

    @property
    def is_shared(self) -> bool:
        """Whether all slices are measured alike."""
        return self.settings.slices == "shared"

    @property
    def _budget_scale(self) -> int:
        # A constant, so that the space does not change with the budget.
        return self.num_lines * (1 if self.is_shared else self.num_slots)

    def _chosen(self, values: torch.Tensor) -> torch.Tensor:
        """Values (N, Z, M) of the slices that an action can be about: of any, of the current one (N, M), or of all."""
        if self.is_shared:
            return values[:, 0].clone()
        if self.settings.slices == "sequential":
            return values[self._every, self.current()]
        return values * self.real[:, :, None]

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the slices of values (N, Z, ...) in 0..1."""
        real = self.real[:, :, None]
        # An environment in which no episode has begun has no slice.
        return (torch.where(real, values, 0).sum(1) / real.sum(1).clamp_min(1)).clamp_(0, 1)

    def _grid(self, grids: torch.Tensor) -> torch.Tensor:
        if self.settings.slices == "sequential":
            return grids[self._every, self.current()]
        return self._mean(grids)

    def _shares_of_classes(self, grids: torch.Tensor) -> torch.Tensor:
        """Mean probability of every class in every slice, float32 (N, Z, K)."""
        mean = grids.view(*grids.shape[:2], self.stack.num_classes, -1).mean(3).clamp_(0, 1)
        return mean * self.real[:, :, None]

    def _slices(self, acquired: torch.Tensor) -> torch.Tensor:
        """Per slot: is there a slice, share of its lines measured, is it the current one; float32 (N, Z * 3)."""
        measured = acquired.sum(2) / self.num_lines
        sequential = self.settings.slices == "sequential"
        current = self._slot == self.current()[:, None] if sequential else torch.zeros_like(self.real)
        return (torch.stack([torch.ones_like(measured), measured, current], 2) * self.real[:, :, None]).flatten(1)

    def lines_per_slice(self) -> torch.Tensor:
        """Lines measured in every slot, int64 (N, Z)."""
        return self._by_volume(self.slices.acquired).sum(2) * self.real

    def dice(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Hard Dice of the volume per foreground class (N, K - 1), NaN where absent, and voxels of absent classes.

        Of a pair: the mean Dice of its volumes, and the sum of their voxels.
        """
        dice, absent = metrics.overlap_scores(self._overlaps()[1])
        return dice.nanmean(1), absent.sum(1)

    def ejection_fractions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-ventricular ejection fraction of a pair in per cent, predicted and true, (N,) each."""
        assert self.settings.pair
        assert self.left_ventricle is not None
        assert self.slices.segmentation is not None
        assert self.slices.segmentation.overlap is not None
        predicted = self.slices.segmentation.overlap[:, 3]
        true = self.slices.truth.segmentation.areas  # type: ignore[union-attr]
        found = []
        for areas in (predicted, true):
            volumes = self._by_volume(areas[:, self.left_ventricle - 1].to(self.dtype)) * self._voxels
            diastole, systole = torch.where(self.frames > 0, volumes[..., None], 0).sum(1).unbind(1)
            found.append(ejection_fraction(diastole, systole))
        return found[0], found[1]

    # --- exact resume -------------------------------------------------------------------------------------------

    _STATE = ("samples", "budgets", "keys", "remaining", "steps", "spent", "quality", "initial_quality")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that :meth:`load_state_dict` needs to go on exactly; copies."""
        slices = {f"slices.{name}": value for name, value in self.slices.state_dict().items()}
        return {**slices, **{name: getattr(self, name).clone() for name in self._STATE}}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from ``state`` of an engine with the same slices, settings and number of environments."""
        missing = [name for name in self._STATE if name not in state]
        if missing or len(state["samples"]) != self.num_envs:
            found = f"lacks {', '.join(missing)}" if missing else f"holds {len(state['samples'])} environments"
            raise SeggymError(
                f"the state of the environments {found}, expected that of {self.num_envs} volumes: make the "
                "environment as it was when it was saved"
            )
        episodes = Episodes(*(state[name].to(self.device) for name in ("samples", "budgets", "keys")))
        prefix = "slices."
        self.slices.load_state_dict(
            {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        )
        self._place(self._every, episodes)
        self._measure_truth()
        for name in self._STATE:
            getattr(self, name).copy_(state[name])
