"""Slices that active learning works on: images in [0, 1] on one square grid, with the labels that an annotator gives.

Intensities are those of WSL4MIS (Luo et al., MICCAI 2022): each volume is cut off at its 99th percentile and scaled to
[0, 1]. In plane a slice is resampled to a given pixel size about its centre and cut or padded to ``size``; without a
pixel size the whole slice, padded to a square, is resized.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seggym.cohorts.cohort import Cohort, Volume
from seggym.errors import SeggymError
from seggym.reward_models.learners import UNLABELLED
from seggym.reward_models.slice_cache import cached_stack

# To be raised whenever the same files and settings give other slices.
PREPARATION_VERSION = 1
_CLIP_PERCENTILE = 99.0
_PHASES = {"ED": 0, "ES": 1}


@dataclass(frozen=True)
class LabelledSlices:
    """n prepared slices of a cohort.

    ``images`` are float32 (n, C, H, W) in [0, 1]; ``masks`` uint8 (n, H, W); ``scribbles`` uint8 (n, H, W) with
    :data:`~seggym.reward_models.learners.UNLABELLED` where nothing is drawn, None where nobody asked for them.
    ``patients``, ``volumes`` and ``phases`` (0 end diastole, 1 end systole, -1 unknown) are those of each slice,
    ``indices`` and ``depths`` its place in the volume and the number of slices there.
    """

    images: Tensor
    masks: Tensor
    scribbles: Tensor | None
    patients: tuple[str, ...]
    volumes: tuple[str, ...]
    phases: tuple[int, ...]
    indices: tuple[int, ...]
    depths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> tuple[str, ...]:
        """``patient003_frame01_slice_04``: unique, the same on every machine; slices count from 1."""
        return tuple(
            f"{volume}_slice_{index + 1:02d}" for volume, index in zip(self.volumes, self.indices, strict=True)
        )

    def of(self, patients: Iterable[str]) -> np.ndarray:
        """int64: the slices of ``patients``, ascending."""
        wanted = set(patients)
        return np.array([i for i, patient in enumerate(self.patients) if patient in wanted], np.int64)


def prepared(
    cohort: Cohort, patients: Iterable[str], size: int, spacing: float | None, scribbles: str | None = None
) -> LabelledSlices:
    """Every slice of ``patients``, from ``$SEGGYM_HOME/cache/slices`` where the same content was prepared before.

    ``scribbles`` says where those of the ``cohort`` come from (:func:`seggym.cohorts.scribbles.with_scribbles`); None
    leaves them out.
    """
    chosen = tuple(sorted(set(patients)))
    identity = {
        "selection": PREPARATION_VERSION,
        "cohort": cohort.name,
        "fingerprint": cohort.fingerprint,
        "num_classes": cohort.num_classes,
        "patients": chosen,
        "size": size,
        "spacing": spacing,
        "scribbles": scribbles,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    def make() -> LabelledSlices:
        return _prepare(cohort, chosen, size, spacing, scribbles is not None)

    return cached_stack(cohort, key, LabelledSlices, make) if cohort.fingerprint else make()


def _prepare(
    cohort: Cohort, patients: tuple[str, ...], size: int, spacing: float | None, scribbles: bool
) -> LabelledSlices:
    images, masks, drawn = [], [], []
    origin: list[tuple[str, str, int, int, int]] = []
    for volume in cohort.volumes(patients):
        depth = len(volume.image)
        images.append(regrid(normalised(volume.image), volume, size, spacing))
        masks.append(regrid(volume.label, volume, size, spacing))
        if scribbles:
            assert volume.scribble is not None
            drawn.append(
                regrid(
                    np.where(volume.scribble == cohort.scribble_ignore, UNLABELLED, volume.scribble).astype(np.uint8),
                    volume,
                    size,
                    spacing,
                    outside=UNLABELLED,
                )
            )
        phase = _PHASES.get(cohort.phases.get(volume.name, ""), -1)
        origin += [(volume.patient, volume.name, phase, index, depth) for index in range(depth)]
    if not images:
        raise SeggymError(f"cohort {cohort.name} at {cohort.root} has no slices of these patients; mend the data")
    names, volumes, phases, indices, depths = zip(*origin, strict=True)
    return LabelledSlices(
        torch.cat(images)[:, None],
        torch.cat(masks),
        torch.cat(drawn) if drawn else None,
        names,
        volumes,
        phases,
        indices,
        depths,
    )


def normalised(image: np.ndarray) -> np.ndarray:
    """``image`` cut off at the 99th percentile and scaled to [0, 1]; a flat one is zeros."""
    low, high = float(image.min()), float(np.percentile(image, _CLIP_PERCENTILE))
    return ((np.clip(image, low, high) - low) / max(high - low, np.finfo(np.float32).tiny)).astype(np.float32)


def regrid(array: np.ndarray, volume: Volume, size: int, spacing: float | None, outside: int | None = None) -> Tensor:
    """(Z, Y, X) on the grid of ``size`` x ``size``: float images are interpolated, labels take the nearest."""
    values = torch.from_numpy(np.ascontiguousarray(array))
    rows, columns = values.shape[-2:]
    if spacing is None:
        # The longer side fills the grid.
        scale = size / max(rows, columns)
        target = [max(1, round(rows * scale)), max(1, round(columns * scale))]
    else:
        target = [
            max(1, round(extent * step / spacing))
            for extent, step in zip((rows, columns), volume.spacing[1:], strict=True)
        ]
    flat = values[:, None]
    if array.dtype == np.float32:
        flat = functional.interpolate(flat, target, mode="bilinear", antialias=True).clamp_(0, 1)
    else:
        flat = functional.interpolate(flat, target, mode="nearest-exact")
    return _centred(flat, size, 0 if outside is None else outside)[:, 0].contiguous()


def _centred(values: Tensor, size: int, fill: int) -> Tensor:
    """The central (..., size, size) of (..., Y, X), padded with ``fill`` where that is smaller."""
    padding = []
    for extent in reversed(values.shape[-2:]):
        before = (size - extent) // 2
        padding += [before, size - extent - before]
    return functional.pad(values, padding, value=fill)
