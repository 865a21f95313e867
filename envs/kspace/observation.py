"""What a policy may see of a scan: functions of the measured samples, as tensors with a leading axis N."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seggym.envs.batched import pieces
from seggym.kspace import simulation

if TYPE_CHECKING:
    from seggym.envs.kspace.engine import KSpaceEngine

# The 8-bit image shows magnitudes up to this multiple of the mean of the current reconstruction. The scale comes from
# measured samples only; 5 leaves the blood pool unclipped on ACDC.
_WHITE = 5.0

# Decades of the energy of lines between 0 and 1.
_DECADES = 6


def make_part(engine: KSpaceEngine, part: str) -> Tensor:
    """The part ``part`` of the observation of all scans of ``engine``, a fresh tensor."""
    return _MAKERS[part](engine)


def _each(
    engine: KSpaceEngine, make: Callable[[KSpaceEngine, slice], Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``make`` of all scans, a few at a time, as ``dtype``."""
    joined: Tensor | None = None
    for part in pieces(slice(0, engine.num_envs), engine.piece):
        made = make(engine, part)
        if joined is None:
            joined = torch.empty(engine.num_envs, *made.shape[1:], dtype=dtype, device=engine.device)
        joined[part] = made
    assert joined is not None
    return joined


def _image_float(engine: KSpaceEngine, rows: slice, white: float = 1.0) -> Tensor:
    magnitude = engine.magnitude[rows]
    mean = magnitude.mean((1, 2), keepdim=True)
    return (magnitude * torch.where(mean > 0, white / (_WHITE * mean), 1))[:, None]


def _image_of_255(engine: KSpaceEngine, rows: slice) -> Tensor:
    return _image_float(engine, rows, 255.0).clamp_(max=255).round_()


def _energy(engine: KSpaceEngine) -> Tensor:
    """Energy of each measured line on a log scale, float32 (N, M): 1 is the strongest, 0 a millionth or less."""
    energy = engine.scanner.energy * engine.acquired
    strongest = energy.amax(1, keepdim=True).clamp_min(1e-30)
    return (1 + (energy / strongest).clamp_min(10.0**-_DECADES).log10() / _DECADES).to(torch.float32)


def _kspace(engine: KSpaceEngine, rows: slice) -> Tensor:
    """Measured k-space in units of the root mean square of its samples, zero elsewhere: float32 (B, 2 J, ., .)."""
    trajectory = engine.scanner.trajectory
    measured = trajectory.kspace(engine.scanner.measured(rows))
    samples = engine.acquired[rows].sum(1) * trajectory.num_samples * engine.acquisition.coils
    scale = (measured.abs().square().sum((1, 2, 3)) / samples).sqrt().clamp_min(1e-30)
    return simulation.to_planes(measured / scale[:, None, None, None]).flatten(1, 2)


def _kept(name: str) -> Callable[[KSpaceEngine], Tensor]:
    """A part of the last segmentation."""
    return lambda engine: getattr(engine.segmentation, name).clone()


_MAKERS: dict[str, Callable[[KSpaceEngine], Tensor]] = {
    "image": lambda engine: _each(engine, _image_of_255, torch.uint8),
    "acquired": lambda engine: engine.acquired.to(torch.int8),
    # A constant scale, so that the space does not change with the budget.
    "budget": lambda engine: (engine.remaining / engine.num_lines).to(torch.float32)[:, None],
    "energy": _energy,
    "corrupted": lambda engine: engine.flagged.to(torch.int8),
    "axis": lambda engine: engine.scanner.transposed.to(torch.int8)[:, None],
    "image_float": lambda engine: _each(engine, _image_float),
    "probabilities": _kept("probabilities"),
    "probability_grid": _kept("probability_grid"),
    "features": _kept("features"),
    "kspace": lambda engine: _each(engine, _kspace),
    "action_mask": lambda engine: engine.action_mask().to(torch.int8),
}
