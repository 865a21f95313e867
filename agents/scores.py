"""The cases of an evaluation and their raw scores: arrays over budgets and cases, before any averaging.

Scores are a flat dict of arrays, so that they fit an NPZ. A key is ``net/level/metric``: net is ``A`` (the
environment's), ``B`` (the independent one) or ``image``; level is ``slice`` or ``volume``; the arrays are float32 with
axes (points, cases, classes), or (points, cases) for ``image``. ``lines`` int16 (cases, T) are the lines of the longest
run, -1 where none was measured; ``illegal`` int64 () counts illegal actions.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seggym.agents.greedy import episode_key
from seggym.errors import SeggymError
from seggym.kspace.acquisition import SliceStack
from seggym.reward_models import metrics

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Cases:
    """What is scored: n episodes, one for each slice and repeat, and the volumes they make up.

    samples, keys int64 (n,); labels uint8 (n, C, C) and spacing float32 (n, 3) (z, y, x in mm) on the CPU; patients of
    the slices; volumes maps the name of each volume (of each repeat) to the rows of its slices, in anatomical order.
    """

    samples: torch.Tensor
    keys: torch.Tensor
    labels: torch.Tensor
    spacing: torch.Tensor
    names: list[str]
    patients: list[str]
    volumes: dict[str, list[int]]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def volume_patients(self) -> list[str]:
        """The patient of each volume."""
        return [self.patients[rows[0]] for rows in self.volumes.values()]

    def patients_at(self, level: str) -> list[str]:
        """The patient of each case of ``level`` (slice or volume)."""
        return self.patients if level == "slice" else self.volume_patients


def plan_cases(
    stack: SliceStack, class_names: Sequence[str], repeats: int = 1, only: Collection[str] | None = None
) -> Cases:
    """Every slice of ``stack`` (of the volumes ``only``) ``repeats`` times.

    Keys depend on slice and repeat alone: policies share the noise.
    """
    chosen = [index for index, volume in enumerate(stack.volumes) if only is None or volume in only]
    if not chosen:
        raise SeggymError(
            f"none of the volumes {sorted(only or ())} is there, expected some of {sorted(set(stack.volumes))}"
        )
    samples = torch.tensor(chosen).repeat(repeats)
    slice_names = stack.names
    keys, names = [], []
    volumes: dict[str, list[int]] = {}
    for row, sample in enumerate(samples.tolist()):
        repeat = row // len(chosen)
        suffix = f"#{repeat}" if repeats > 1 else ""
        keys.append(episode_key("eval", slice_names[sample], repeat))
        names.append(slice_names[sample] + suffix)
        volumes.setdefault(stack.volumes[sample] + suffix, []).append(row)
    for rows in volumes.values():
        rows.sort(key=lambda row: stack.positions[int(samples[row])])
    return Cases(
        samples=samples,
        keys=torch.tensor(keys),
        labels=stack.labels.cpu()[samples],
        spacing=stack.spacing.cpu()[samples],
        names=names,
        patients=[stack.patients[sample] for sample in samples.tolist()],
        volumes=volumes,
        class_names=tuple(class_names),
    )


def segmentation_scores(predicted: torch.Tensor, cases: Cases, surface_points: Sequence[int]) -> Scores:
    """Scores of the label maps ``predicted`` uint8 (points, n, C, C), keys without the net.

    ``area`` is what is predicted of each class, in pixels, which volumes and ejection fractions follow from.
    Dice is NaN where the truth lacks the class. Surface distances, the slow part, are computed at ``surface_points``
    only and NaN at the others, as is ``failed`` (1 where exactly one of truth and prediction has the class).
    """
    points, classes = len(predicted), len(cases.class_names)
    truth = metrics.encode_truth(cases.labels, classes)
    rows = list(cases.volumes.values())

    def table(number: int) -> np.ndarray:
        return np.full((points, number, classes - 1), np.nan, np.float32)

    scores = {f"slice/{name}": table(len(cases)) for name in ("dice", "area", "absent_area", "hd95", "failed")}
    scores |= {f"volume/{name}": table(len(rows)) for name in ("dice", "hd95", "assd", "failed")}
    for point in range(points):
        maps = predicted[point]
        overlap = metrics.hard_overlap(maps, truth)
        dice, absent_area = metrics.overlap_scores(overlap)
        scores["slice/area"][point] = overlap.predicted.numpy()
        scores["slice/dice"][point], scores["slice/absent_area"][point] = dice.numpy(), absent_area.numpy()
        for number, members in enumerate(rows):
            per_class = metrics.volume_dice(maps[members], cases.labels[members], classes)
            scores["volume/dice"][point, number] = per_class.numpy()
        if point in surface_points:
            _add_surfaces(scores, point, maps, cases)
    return scores


def volume_image_scores(scores: Scores, cases: Cases) -> Scores:
    """SSIM and PSNR of volumes, from those of their slices, (points, volumes).

    SSIM is the mean over slices, as fastMRI has it; PSNR comes from the mean squared error of the whole volume, whose
    maximum is the data range of every slice.
    """
    members = list(cases.volumes.values())
    error = 10 ** (-scores["image/slice/psnr"].astype(np.float64) / 10)
    psnr = np.stack([-10 * np.log10(error[:, rows].mean(1)) for rows in members], 1)
    ssim = np.stack([scores["image/slice/ssim"][:, rows].mean(1) for rows in members], 1)
    return {"image/volume/ssim": ssim.astype(np.float32), "image/volume/psnr": psnr.astype(np.float32)}


def _add_surfaces(scores: Scores, point: int, maps: torch.Tensor, cases: Cases) -> None:
    classes = len(cases.class_names)
    for row, (predicted, true) in enumerate(zip(maps, cases.labels, strict=True)):
        spacing = cases.spacing[row, 1:].tolist()
        found = metrics.surface_distances(predicted, true, classes, spacing)
        scores["slice/hd95"][point, row] = found.hd95.numpy()
        scores["slice/failed"][point, row] = _failure(found)
    for number, members in enumerate(cases.volumes.values()):
        spacing = cases.spacing[members[0]].tolist()
        found = metrics.surface_distances(maps[members], cases.labels[members], classes, spacing)
        scores["volume/hd95"][point, number] = found.hd95.numpy()
        scores["volume/assd"][point, number] = found.assd.numpy()
        scores["volume/failed"][point, number] = _failure(found)


def _failure(found: metrics.SurfaceDistances) -> np.ndarray:
    """1 where a distance failed, 0 where there is one, NaN where neither side has the class."""
    return torch.where(found.failed | ~found.hd95.isnan(), found.failed.float(), torch.nan).numpy()


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(-1, dtype=np.float64)
    count = known.sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
