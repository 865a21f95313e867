"""Sampling weights of slices: rare combinations of labels are drawn more often, within a limit."""

from pathlib import Path

import numpy as np
import torch

from seggym.cohorts.cohort import Cohort
from seggym.errors import SeggymError
from seggym.files import write_atomic
from seggym.kspace.acquisition import SliceStack


def combination_weights(stack: SliceStack, cap: float) -> np.ndarray:
    """Weight of each slice, float64 (n,) with mean 1: inverse to how many slices have the same set of classes.

    The idea is ASMR's (Yen et al., ICML 2024), whose weights have no limit: a class combination of 8 slices among
    9,420 is seen a hundred times per epoch. Here no slice weighs more than ``cap`` times as much as another.
    """
    if cap < 1:
        raise SeggymError(f"cap={cap} must be at least 1: it is the largest ratio between the weights of two slices")
    if stack.num_classes < 2:
        raise SeggymError("the slices have no labels, so there is no rare combination of them: train without a sampler")
    present = torch.stack([(stack.labels == label).flatten(1).any(1) for label in range(1, stack.num_classes)], 1)
    _, combination, counts = np.unique(present.numpy(), axis=0, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[combination.reshape(-1)]
    weights = np.minimum(weights, cap * weights.min())
    return weights / weights.mean()


def save_weights(path: Path, weights: np.ndarray, cohort: Cohort, stack: SliceStack) -> Path:
    """Write ``weights`` as NPZ, bound to the slices by name and to the data by fingerprint."""
    names, fingerprint = np.array(stack.names), np.array(cohort.fingerprint)

    def write(target: Path) -> None:
        np.savez(target, names=names, weights=weights, fingerprint=fingerprint)

    return write_atomic(path, write)


def load_weights(path: Path, cohort: Cohort, stack: SliceStack) -> torch.Tensor:
    """Weights (n,) float64 in the order of ``stack``; refused when they were made for other data."""
    again = f"make it again with `bash generate_sampler.sh cohort={cohort.name}`"
    try:
        with np.load(path, allow_pickle=False) as file:
            names, weights, fingerprint = file["names"].tolist(), file["weights"], str(file["fingerprint"])
    except Exception as error:  # a damaged archive raises whatever zipfile, zlib or numpy think of it
        raise SeggymError(f"sampler {path} cannot be read ({error}): {again}") from None
    if fingerprint != cohort.fingerprint:
        raise SeggymError(
            f"sampler {path} was made for data with fingerprint {fingerprint}, the data at {cohort.root} have "
            f"{cohort.fingerprint}: {again}"
        )
    weight_of = dict(zip(names, weights, strict=True))
    missing = [name for name in stack.names if name not in weight_of]
    if missing:
        raise SeggymError(
            f"sampler {path} has no weight for {len(missing)} of {len(stack)} slices ({missing[0]}, ...), so it was "
            f"made with another split: {again}"
        )
    return torch.tensor([weight_of[name] for name in stack.names], dtype=torch.float64)
