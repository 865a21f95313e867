"""The state of N simulated scans: what has been measured of each, and the images that follow from it."""

import torch

from seggym.envs.batched import Rows, pieces
from seggym.kspace import simulation
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.keyed_random import complex_normal
from seggym.kspace.reconstruction.methods import Reconstruction
from seggym.kspace.trajectories import Trajectory, make_trajectory


class Scanner:
    """N scans of slices of ``stack``, which lies on ``device``; ``piece`` is how many images are worked on at a time.

    ``remeasures`` says whether a view may be measured more than once, ``turns`` whether :meth:`turn` is used.

    A *view* is what one action measures: a phase-encode line, a spoke or a block of points. All measurements of an
    episode follow from its key: what a view yields when it is measured for the first, second, .. time is the same
    whoever measures it and when.

    samples, keys int64 (N,); transposed bool (N,): phase is encoded along the rows of the stored image; acquired and
    flagged bool (N, V): measured at all, and corrupted at the last time; attempts int64 (N, V): how often measured;
    energy float (N, V): of the last measurement, or of the first one to come; signal complex (N, V, J, S): what a first
    measurement yields where nothing corrupts it; planes float (N, J, 2, C, C): real and imaginary part of each coil's
    image; magnitude float (N, C, C): the image that is shown and scored.
    """

    def __init__(
        self,
        stack: SliceStack,
        acquisition: Acquisition,
        num_envs: int,
        device: torch.device,
        dtype: torch.dtype,
        piece: int,
        micro_batch: int,
        reconstruction: Reconstruction | None = None,
        remeasures: bool = False,
        turns: bool = False,
        anew: bool = False,
    ) -> None:
        self.stack, self.acquisition, self.num_envs = stack, acquisition, num_envs
        self.device, self.dtype = device, dtype
        self.trajectory: Trajectory = make_trajectory(acquisition, dtype, device)
        self.num_views = self.trajectory.num_views
        self._piece, self._micro_batch = piece, micro_batch
        self.reconstruction, self._remeasures, self._anew = reconstruction, remeasures, anew
        self._either_axis = turns or acquisition.phase_encode != "columns"
        self._noise_numbers = self.trajectory.noise_numbers()
        self._views = torch.arange(self.num_views, device=device)
        self.initial = torch.zeros(self.num_views, dtype=torch.bool, device=device)
        self.initial[torch.from_numpy(self.trajectory.initial)] = True
        self._every = torch.arange(num_envs, device=device)
        self._allocate()

    def _allocate(self) -> None:
        crop, coils, views = self.acquisition.crop, self.acquisition.coils, self.num_views
        complex_dtype = torch.complex64 if self.dtype == torch.float32 else torch.complex128

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(self.num_envs, *shape, dtype=dtype, device=self.device)

        self.samples, self.keys = zeros(dtype=torch.int64), zeros(dtype=torch.int64)
        self.transposed: torch.Tensor = zeros(dtype=torch.bool)
        self.acquired, self.flagged = zeros(views, dtype=torch.bool), zeros(views, dtype=torch.bool)
        self.attempts = zeros(views, dtype=torch.int64)
        self.energy = zeros(views, dtype=self.dtype)
        self.signal = zeros(views, coils, self.trajectory.num_samples, dtype=complex_dtype)
        self.planes = zeros(coils, 2, crop, crop, dtype=self.dtype)
        self.magnitude = zeros(crop, crop, dtype=self.dtype)

    STATE = ("samples", "keys", "transposed", "acquired", "flagged", "attempts", "energy", "planes")
    """What :meth:`load`, which makes the signal, and :meth:`refresh`, which makes the magnitude, do not restore."""

    def take(self, other: "Scanner", slots: torch.Tensor) -> None:
        """Copy the scans ``slots`` int64 (N,) of ``other``."""
        for name in (*self.STATE, "signal", "magnitude"):
            getattr(self, name).copy_(getattr(other, name)[slots])

    # --- beginning ----------------------------------------------------------------------------------------------

    def begin(self, slots: torch.Tensor, samples: torch.Tensor, keys: torch.Tensor) -> None:
        """Put slices ``samples`` with ``keys`` into the scans ``slots``, all int64 (B,); measure the initial views."""
        for part in pieces(slice(0, len(slots)), max(1, self._piece // 4)):
            rows = slots[part]
            transposed = simulation.rows_encoded(keys[part], self.acquisition)
            self.load(rows, samples[part], keys[part], transposed)
            self._measure_initial(rows)
        self.refresh(slots)

    def load(self, rows: torch.Tensor, samples: torch.Tensor, keys: torch.Tensor, transposed: torch.Tensor) -> None:
        """What the scans ``rows`` would yield, a few of them: slice, key and axis decide it. Nothing is measured."""
        self.samples[rows], self.keys[rows], self.transposed[rows] = samples, keys, transposed
        clean = self._clean(samples, keys, transposed)
        self.signal[rows] = clean + self._noise(samples, keys, self._noise_numbers.flatten()).view(clean.shape)
        self.energy[rows] = _energy(self.signal[rows])

    def _measure_initial(self, rows: torch.Tensor) -> None:
        self.acquired[rows] = self.initial
        self.attempts[rows] = self.initial.long()
        signal = self.signal[rows]
        if self.acquisition.corruption:
            corrupted, factor = simulation.corruption(self.keys[rows], self._views, self.acquisition)
            self.flagged[rows] = corrupted & self.initial
            signal = signal * factor[:, :, None, None]
        images = self.trajectory.reconstruct(signal, self.initial.expand(len(rows), -1))
        self.planes[rows] = simulation.to_planes(images)

    def turn(self, slots: torch.Tensor) -> None:
        """Encode phase along the other axis in the scans ``slots`` int64 (B,), and measure the initial views again."""
        for rows in pieces(slots, max(1, self._piece // 4)):
            self.load(rows, self.samples[rows], self.keys[rows], ~self.transposed[rows])
            self._measure_initial(rows)
        self.refresh(slots)

    def _clean(self, samples: torch.Tensor, keys: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:
        if self.stack.hybrid is not None:
            return simulation.encode(self.stack, samples, keys, self.acquisition, self.dtype).permute(0, 3, 1, 2)
        image = simulation.objects(self.stack, samples, keys, self.acquisition, self.dtype, transposed, self._anew)
        return self.trajectory.encode(image)

    def _noise(self, samples: torch.Tensor, keys: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Thermal noise of the draws ``numbers`` int64 (n,), or (B, n) for each scan: complex64 (B, n)."""
        if self.acquisition.snr is None:
            return torch.zeros(len(keys), numbers.shape[-1], dtype=torch.complex64, device=self.device)
        sigma = self.stack.signal[samples] / self.acquisition.snr
        return complex_normal(keys, simulation.NOISE_STREAM, numbers).mul_(sigma[:, None])

    # --- measuring ----------------------------------------------------------------------------------------------

    def measure(self, views: torch.Tensor, measuring: torch.Tensor) -> None:
        """Measure view ``views[i]`` int64 (N,) in every scan that is ``measuring`` bool (N,)."""
        yielded, corrupted, change = self.attempt(self._every, views)
        change = change * measuring[:, None, None]
        self.acquired[self._every, views] |= measuring
        for part in pieces(slice(0, self.num_envs), self._piece):
            self.trajectory.add(self.planes[part], change[part], views[part])
            if self.reconstruction is None:  # while the planes are in the cache
                self._combine(part)
        self.attempts[self._every, views] += measuring
        if corrupted is not None:
            self.flagged[self._every, views] = torch.where(measuring, corrupted, self.flagged[self._every, views])
        if self._remeasures:
            energy = torch.where(measuring, _energy(yielded), self.energy[self._every, views])
            self.energy[self._every, views] = energy

    def attempt(
        self, slots: torch.Tensor, views: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """What measuring ``views[i]`` in scan ``slots[i]`` now would yield, both int64 (B,); nothing changes.

        Returns its samples complex (B, J, S); whether it is corrupted, bool (B,), None where nothing ever is; and the
        samples to be added to the image, which replace those of the view's last measurement.
        """
        count = self.attempts[slots, views]
        yielded, corrupted = self._yield(slots, views, count)
        if not self._remeasures:
            return yielded, corrupted, yielded
        before, _ = self._yield(slots, views, (count - 1).clamp_min(0))
        return yielded, corrupted, yielded - torch.where((count > 0)[:, None, None], before, 0)

    def _yield(
        self, slots: torch.Tensor, views: torch.Tensor, count: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Samples (B, J, S) of a view that was measured ``count`` times before, and whether they are corrupted."""
        signal, keys = self.signal[slots, views], self.keys[slots]
        if self._remeasures:
            samples, first = self.samples[slots], self._noise_numbers[views].flatten(1)
            again = first + count[:, None] * self._noise_numbers.numel()
            other = self._noise(samples, keys, again) - self._noise(samples, keys, first)
            signal = signal + other.view(signal.shape)
        if not self.acquisition.corruption:
            return signal, None
        number = (views + count * self.num_views)[:, None]
        corrupted, factor = simulation.corruption(keys, number, self.acquisition)
        return signal * factor[:, :, None], corrupted[:, 0]

    @property
    def available(self) -> torch.Tensor | None:
        """Views that can be measured at all, bool (N, V); None where all can, as in every simulated scan."""
        return None if self.stack.available is None else self.stack.available[self.samples]

    @property
    def needs_refresh(self) -> bool:
        """Whether images are not sums of what is measured, so that measuring leaves them to :meth:`refresh`."""
        return self.reconstruction is not None

    # --- images -------------------------------------------------------------------------------------------------

    def refresh(self, rows: Rows) -> None:
        """Recompute the magnitude of the scans ``rows``."""
        size = self._piece if self.reconstruction is None else self._micro_batch
        for part in pieces(slice(0, self.num_envs) if isinstance(rows, slice) else rows, size):
            self._combine(part)

    def _combine(self, part: Rows) -> None:
        if self.reconstruction is not None:
            self.magnitude[part] = self._reconstructed(self.measured(part), self.acquired[part], self.transposed[part])
            return
        if isinstance(part, slice) and not self._either_axis:
            magnitude = simulation.root_sum_of_squares(self.planes[part], out=self.magnitude[part])  # saves a copy
            scale = self.trajectory.scale(self.acquired[part])
            if scale is not None:
                magnitude.mul_(scale[:, None, None])
            return
        self.magnitude[part] = self.image_of(self.planes[part], self.acquired[part], self.transposed[part])

    def image_of(self, planes: torch.Tensor, acquired: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:
        """The zero-filled image (B, C, C) from planes (B, J, 2, C, C) of the views that are ``acquired``.

        acquired bool (B, V), transposed bool (B,).
        """
        magnitude = simulation.root_sum_of_squares(planes)
        scale = self.trajectory.scale(acquired)
        if scale is not None:
            magnitude.mul_(scale[:, None, None])
        return self._upright(magnitude, transposed)

    def _reconstructed(self, samples: torch.Tensor, acquired: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:
        """The image (B, C, C) that the reconstruction makes of lines: samples complex (B, V, J, S)."""
        assert self.reconstruction is not None
        magnitude = self.reconstruction(samples.permute(0, 2, 3, 1), acquired, self.acquisition)
        return self._upright(magnitude.to(self.dtype), transposed)

    def _upright(self, magnitude: torch.Tensor, transposed: torch.Tensor) -> torch.Tensor:
        return simulation.upright(magnitude, transposed) if self._either_axis else magnitude

    def tried(self, slots: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """The images (B, C, C) that scans ``slots`` would show with ``views`` measured now, both int64 (B,)."""
        yielded, _, change = self.attempt(slots, views)
        acquired = self.acquired[slots] | (self._views == views[:, None])
        if self.reconstruction is not None:
            samples = self.measured(slots)
            samples[torch.arange(len(slots), device=self.device), views] = yielded
            return self._reconstructed(samples, acquired, self.transposed[slots])
        planes = self.planes[slots]
        self.trajectory.add(planes, change, views)
        return self.image_of(planes, acquired, self.transposed[slots])

    def full(self, rows: torch.Tensor) -> torch.Tensor:
        """Images (B, C, C) of all views of the scans ``rows`` with the noise of a first measurement, uncorrupted."""
        every, available = torch.ones_like(self.acquired[rows]), self.available
        if self.reconstruction is not None:
            lines = every if available is None else available[rows]
            return self._reconstructed(self.signal[rows], lines, self.transposed[rows])
        planes = simulation.to_planes(self.trajectory.reconstruct(self.signal[rows], None))
        return self.image_of(planes, every, self.transposed[rows])

    def noise_free(self, rows: torch.Tensor) -> torch.Tensor:
        """Images (B, C, C) of the whole Cartesian k-space without noise and corruption: what others are compared with.

        It is the object at the resolution of the matrix, whatever the trajectory: all spokes still leave streaks.
        """
        samples, keys, transposed = self.samples[rows], self.keys[rows], self.transposed[rows]
        hybrid = simulation.encode(self.stack, samples, keys, self.acquisition, self.dtype, transposed, self._anew)
        return simulation.zero_filled(hybrid, None, self.acquisition, transposed)

    def measured(self, rows: Rows) -> torch.Tensor:
        """The samples of the last measurement of every view, complex (B, V, J, S); zero where there is none."""
        acquired = self.acquired[rows]
        kept = self.signal[rows] * acquired[:, :, None, None]
        if self.acquisition.corruption or self._remeasures:
            scans = self._every[rows]
            scan, view = acquired.nonzero(as_tuple=True)
            kept[scan, view] = self._yield(scans[scan], view, self.attempts[scans[scan], view] - 1)[0]
        return kept


def _energy(samples: torch.Tensor) -> torch.Tensor:
    """Sum of the squares over coils and samples: (...,) of complex (..., J, S)."""
    return torch.view_as_real(samples).square().sum((-3, -2, -1))
