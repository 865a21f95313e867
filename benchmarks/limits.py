"""What the simulation and the choice of the network do to the Dice of two fixed orders: the table of docs/limits.md.

python benchmarks/limits.py cohort=phantom reward_model=phantom
python benchmarks/limits.py cohort=acdc datadir=/data/acdc reward_model=DIR split=FILE acquisition='{"corruption": 0}'

``split`` says who is tested (the cohort's own split by default), ``acquisition`` what differs from the scan that the
networks were trained with.
"""

import json
import sys
from collections.abc import Iterable
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
from seggym.reward_models.training_scans import simulate

LINES = 15


def cropped_first(volume: Volume, acquisition: Acquisition) -> Volume:
    """The volume without its surroundings: what "crop, then transform" pretends was measured."""
    side = round(max(volume.image.shape[1:]) * acquisition.crop / acquisition.matrix)
    window = tuple(
        slice(max(0, length // 2 - side // 2), length // 2 - side // 2 + side) for length in volume.image.shape[1:]
    )
    rows, columns = window
    return replace(volume, image=volume.image[:, rows, columns], label=volume.label[:, rows, columns])


def clipped(volume: Volume, quantile: float) -> Volume:
    """The volume with its brightest intensities cut off, as a conversion to 8 bits does."""
    return replace(volume, image=np.minimum(volume.image, np.quantile(volume.image, quantile)))


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
    patients = split_cohort(cohort, options.get("split")).test
    model = open_reward_model(options["reward_model"])
    networks = {}
    for name in ("full", "independent"):
        if name in model.cards:
            model.require_unseen(name, patients, cohort.name)
            networks[f"{name} ({model.cards[name].architecture})"] = load_frozen(model.path(name))
    base = replace(Acquisition(**model.acquisition), **json.loads(options.get("acquisition", "{}")))
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
    headings = [f"{way}, {name}" for name in networks for way in ("centre-out", "one-sided")]
    print(f"| simulation | {' | '.join(headings)} |\n|{'---|' * (1 + len(headings))}")

    def row(name: str, volumes: Iterable[Volume], scan: Acquisition) -> None:
        stack = prepare(volumes, scan, cohort.num_classes)
        ways = (orders.centre_out(scan.matrix), orders.partial_fourier(scan.matrix, side=1, ratio=scan.matrix))
        cells = [score(stack, network, scan, way) for network in networks.values() for way in ways]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    for name, acquisition in variants.items():
        row(name, cohort.volumes(patients), acquisition)
    for quantile in (0.99, 0.95):
        cut = (clipped(volume, quantile) for volume in cohort.volumes(patients))
        row(f"intensities above the {quantile:.0%} quantile clipped", cut, base)
    # The network's input must cover the same anatomy, so the matrix shrinks with the field of view.
    smaller = (cropped_first(volume, base) for volume in cohort.volumes(patients))
    row("cropped before the transform", smaller, replace(base, matrix=base.crop))


if __name__ == "__main__":
    main(*sys.argv[1:])
