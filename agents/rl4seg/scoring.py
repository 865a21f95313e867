"""What label maps are worth: Dice, HD95 in pixels and validity per image, means per patient, paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seggym.errors import SeggymError
from seggym.reward_models import statistics
from seggym.reward_models.metrics import dice_per_class, encode_truth, surface_distances


@dataclass(frozen=True)
class Scores:
    """Scores of n images: ``dice`` and ``hd95`` (n, K-1) in pixels, NaN where undefined, and ``valid`` (n,).

    A structure that is there and not found has Dice 0 and no distance; ``failed`` (n, K-1) counts those.
    """

    patients: tuple[str, ...]
    names: tuple[str, ...]
    structures: tuple[str, ...]
    dice: np.ndarray
    hd95: np.ndarray
    failed: np.ndarray
    valid: np.ndarray

    @property
    def image_dice(self) -> np.ndarray:
        """(n,): mean over the structures present."""
        return _row_means(self.dice)

    def values(self, metric: str) -> np.ndarray:
        """(n,) of ``metric``: dice, hd95, valid, or one of the first two of a structure, as in ``dice/LV``."""
        name, _, structure = metric.partition("/")
        if name == "valid":
            return self.valid.astype(np.float64)
        table = {"dice": self.dice, "hd95": self.hd95, "failed": self.failed.astype(np.float64)}[name]
        return table[:, self.structures.index(structure)] if structure else _row_means(table)

    def mean(self, metric: str) -> float:
        """Mean of patient means."""
        return statistics.bootstrap_interval(self.values(metric), self.patients, draws=1).mean

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN becomes null."""
        return {
            "patients": list(self.patients),
            "names": list(self.names),
            "structures": list(self.structures),
            "dice": self.dice.tolist(),
            "hd95": self.hd95.tolist(),
            "failed": self.failed.astype(int).tolist(),
            "valid": self.valid.astype(int).tolist(),
        }


def scores_from_json(content: Mapping[str, Any]) -> Scores:
    """What :meth:`Scores.to_json` wrote."""
    try:
        return Scores(
            patients=tuple(content["patients"]),
            names=tuple(content["names"]),
            structures=tuple(content["structures"]),
            dice=np.array(content["dice"], dtype=np.float64),
            hd95=np.array(content["hd95"], dtype=np.float64),
            failed=np.array(content["failed"], dtype=bool),
            valid=np.array(content["valid"], dtype=bool),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SeggymError(f"the scores of a run are damaged ({error}): run it again") from None


def score(
    masks: Tensor,
    truth: Tensor,
    valid: np.ndarray,
    patients: Sequence[str],
    names: Sequence[str],
    class_names: Sequence[str],
) -> Scores:
    """Score label maps ``masks`` (n, H, W) by ``truth`` (n, H, W); ``valid`` (n,) is what the rules say of them.

    Raises:
        SeggymError: the label maps hold a class that ``class_names`` (background first) does not have.
    """
    classes = len(class_names)
    if int(masks.max()) >= classes:
        raise SeggymError(
            f"the label maps hold class {int(masks.max())}, expected 0 to {classes - 1} ({', '.join(class_names)}): "
            "use a network with as many outputs"
        )
    masks, truth = masks.cpu(), truth.cpu()
    distances = [surface_distances(mask, true, classes, (1.0, 1.0)) for mask, true in zip(masks, truth, strict=True)]
    dice = dice_per_class(masks, encode_truth(truth.long(), classes)).double().numpy()
    return Scores(
        tuple(patients),
        tuple(names),
        tuple(class_names[1:]),
        dice,
        torch.stack([entry.hd95 for entry in distances]).double().numpy(),
        # A structure that is drawn and not there has no distance either, but nothing failed to be found.
        torch.stack([entry.failed for entry in distances]).numpy() & ~np.isnan(dice),
        np.asarray(valid, dtype=bool),
    )


def _row_means(table: np.ndarray) -> np.ndarray:
    there = ~np.isnan(table)
    counts = there.sum(axis=1)
    return np.where(counts > 0, np.nan_to_num(table).sum(axis=1) / np.maximum(counts, 1), np.nan)
