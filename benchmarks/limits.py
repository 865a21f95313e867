"""What each part of the simulation does to the Dice of two fixed orders: the table of docs/limits.md.

python benchmarks/limits.py cohort=phantom reward_model=phantom
"""

import sys
from dataclasses import replace

import numpy as np
import torch

from seggym.cohorts.cohort import Cohort, Volume, open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.errors import one_sentence
from seggym.kspace import orders
from seggym.kspace.acquisition import Acquisition, SliceStack, prepare
from seggym.kspace.keyed_random import key_of
from seggym.reward_models.checkpoints import open_reward_model
from seggym.reward_models.frozen import FrozenNetwork, load_frozen
from seggym.reward_models.metrics import dice_per_class, encode_truth, most_probable
from seggym.reward_models.statistics import bootstrap_interval
from seggym.reward_models.training import simulate

LINES = 15


def cropped_first(volume: Volume, acquisition: Acquisition) -> Volume:
    """The volume without its surroundings: what "crop, then transform" pretends was measured."""
    side = round(max(volume.image.shape[1:]) * acquisition.crop / acquisition.matrix)
    window = tuple(
        slice(max(0, length // 2 - side // 2), length // 2 - side // 2 + side) for length in volume.image.shape[1:]
    )
    rows, columns = window
    return replace(volume, image=volume.image[:, rows, columns], label=volume.label[:, rows, columns])


def score(stack: SliceStack, network: FrozenNetwork, acquisition: Acquisition, order: np.ndarray) -> str:
    """Dice per slice with its interval over patients after the first lines of ``order``."""
    acquired = torch.zeros(1, acquisition.matrix, dtype=torch.bool)
    acquired[0, torch.from_numpy(order[:LINES].copy())] = True
    dice = []
    for part in torch.arange(len(stack)).split(32):
        keys = torch.tensor([key_of(f"eval:{stack.names[i]}:0") for i in part.tolist()])
        magnitude = simulate(stack, part, keys, acquired.expand(len(part), -1), acquisition)
        labels = most_probable(network(magnitude).probabilities)
        dice.append(dice_per_class(labels, encode_truth(stack.labels[part], stack.num_classes)).nanmean(1))
    found = bootstrap_interval(torch.cat(dice).numpy(), list(stack.patients))
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


@one_sentence
def main(*arguments: str) -> None:
    """Print one row per variant of the simulation."""
    options = dict(argument.split("=", 1) for argument in arguments)
    torch.set_num_threads(1)
    cohort: Cohort = open_cohort(options["cohort"], options.get("datadir"))
    patients = split_cohort(cohort).test
    model = open_reward_model(options["reward_model"])
    model.require_unseen("full", patients, cohort.name)
    network = load_frozen(model.full)
    base = Acquisition(**model.acquisition)
    variants = {
        "default": base,
        "no phase, no echo shift": replace(base, phase=(0.0, 0.0), echo_shift=0.0),
        "phase 0.5 rad, no echo shift": replace(base, phase=(0.5, 0.5), echo_shift=0.0),
        "phase 3 rad, no echo shift": replace(base, phase=(3.0, 3.0), echo_shift=0.0),
        "phase as default, no echo shift": replace(base, echo_shift=0.0),
        "no noise": replace(base, snr=None),
        "SNR 10": replace(base, snr=10.0),
    }
    print(f"Dice per slice of {len(patients)} test patients after {LINES} lines of simulated k-space, {cohort.name}")
    print(f"| simulation | centre-out | one-sided |\n|{'---|' * 3}")
    ways = (orders.centre_out(base.matrix), orders.partial_fourier(base.matrix, side=1, ratio=base.matrix))
    for name, acquisition in variants.items():
        stack = prepare(cohort.volumes(patients), acquisition, cohort.num_classes)
        print(f"| {name} | " + " | ".join(score(stack, network, acquisition, way) for way in ways) + " |", flush=True)
    # The network's input must cover the same anatomy, so the matrix shrinks with the field of view.
    small = replace(base, matrix=base.crop)
    stack = prepare((cropped_first(volume, base) for volume in cohort.volumes(patients)), small, cohort.num_classes)
    ways = (orders.centre_out(small.matrix), orders.partial_fourier(small.matrix, side=1, ratio=small.matrix))
    print("| cropped before the transform | " + " | ".join(score(stack, network, small, way) for way in ways) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
