"""What each reconstruction does to the image and to its segmentation: the tables of docs/reconstruction.md.

python benchmarks/reconstructions.py cohort=phantom reward_model=phantom networks=phantom-unet,phantom-unrolled
python benchmarks/reconstructions.py cohort=phantom reward_model=phantom coils=4 methods=zero_filled,sense,grappa

Every slice of the test patients is measured with the initial lines and then the first ones of an order. SSIM compares
with all lines without noise. Dice is that of the reward model's network, per slice, mean over present classes. The unit
that is resampled is the patient. Further keys: methods, coils, lines (both separated by commas), crop and matrix.
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from seggym.cohorts.cohort import open_cohort
from seggym.cohorts.splits import split_cohort
from seggym.errors import SeggymError, one_sentence
from seggym.kspace import orders, simulation
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.keyed_random import key_of
from seggym.kspace.reconstruction.methods import METHODS, Reconstruction, make_reconstruction
from seggym.reward_models.checkpoints import open_reward_model
from seggym.reward_models.frozen import FrozenNetwork, load_frozen
from seggym.reward_models.image_quality import encode_reference, ssim
from seggym.reward_models.metrics import dice_per_class, encode_truth, most_probable
from seggym.reward_models.slices import prepared_slices
from seggym.reward_models.statistics import bootstrap_interval, paired_difference
from seggym.reward_models.training_scans import measure

_AT_A_TIME = 8
_DEFAULTS = {"cohort": "phantom", "datadir": "", "reward_model": "phantom", "networks": "", "methods": "", "coils": "1"}
_DEFAULTS |= {"lines": "15,31", "matrix": "128", "crop": "96"}


@dataclass(frozen=True)
class Scores:
    """Of one method, per slice, and its time."""

    ssim: np.ndarray
    dice: np.ndarray
    seconds: float


def masks(acquisition: Acquisition, lines: int) -> dict[str, torch.Tensor]:
    """The initial block and the first lines of each order, bool (M,)."""
    matrix, initial = acquisition.matrix, acquisition.initial_lines
    found = {
        "centre-out": orders.centre_out(matrix),
        "partial Fourier 4:1": orders.partial_fourier(matrix, 1, 4),
        "one-sided": orders.partial_fourier(matrix, 1, 10**6),
    }
    if acquisition.coils > 1:
        # What parallel imaging is made for: a calibration block of 9 lines, then every other line outwards.
        block, centre = orders.initial_block(matrix, 9), orders.centre_out(matrix)
        skipped = centre[(centre - matrix // 2) % 2 == 0]
        found["every other line"] = np.concatenate([block, skipped[~np.isin(skipped, block)]])
    result = {}
    for name, order in found.items():
        mask = np.zeros(matrix, bool)
        mask[orders.initial_block(matrix, initial)] = True
        mask[order[~mask[order]][: lines - initial]] = True
        result[name] = torch.from_numpy(mask)
    return result


def score(
    stack: SliceStack,
    network: FrozenNetwork,
    acquisition: Acquisition,
    mask: torch.Tensor,
    reconstruction: Reconstruction,
) -> Scores:
    """SSIM and Dice of every slice measured with ``mask`` bool (M,)."""
    similarity, dice, seconds = [], [], 0.0
    for part in torch.arange(len(stack)).split(_AT_A_TIME):
        keys = torch.tensor([key_of(f"eval:{stack.names[i]}:0") for i in part.tolist()])
        hybrid = measure(stack, part, keys, acquisition).permute(0, 2, 3, 1).contiguous()
        clean = simulation.encode(stack, part, keys, acquisition, torch.float32)
        started = time.process_time()
        image = reconstruction(hybrid, mask.expand(len(part), -1), acquisition)
        seconds += time.process_time() - started
        full = simulation.zero_filled(clean, None, acquisition)
        similarity.append(ssim(image, encode_reference(full, stack.data_range[part])))
        labels = most_probable(network(image).probabilities)
        dice.append(dice_per_class(labels, encode_truth(stack.labels[part], stack.num_classes)).nanmean(1))
    return Scores(torch.cat(similarity).numpy(), torch.cat(dice).double().numpy(), seconds / len(stack))


def reconstructions(names: list[str], networks: list[str], acquisition: Acquisition) -> dict[str, Reconstruction]:
    """The methods, by default all that fit the acquisition, and the networks in their folders."""
    chosen = names or [name for name in METHODS if acquisition.coils > 1 or name not in ("sense", "grappa")]
    found = {name: make_reconstruction(name, {}, acquisition) for name in chosen}
    for folder in networks:
        found[folder] = load_frozen(open_reward_model(folder).full, task="reconstruction").reconstruct
    return found


def row(name: str, scores: Scores, plain: Scores, patients: list[str]) -> str:
    """One line of the table."""
    similarity, dice = (bootstrap_interval(values, patients) for values in (scores.ssim, scores.dice))
    better = paired_difference(scores.dice, plain.dice, patients)
    cells = [f"{each.mean:.3f} [{each.low:.3f}, {each.high:.3f}]" for each in (similarity, dice)]
    gain = f"{better.mean:+.3f} [{better.low:+.3f}, {better.high:+.3f}]" if scores is not plain else ""
    return f"| {name} | {' | '.join(cells)} | {gain} | {1000 * scores.seconds:.1f} |"


@one_sentence
def main(*arguments: str) -> None:
    """Print a table for every order and number of lines."""
    options = {**_DEFAULTS, **dict(argument.split("=", 1) for argument in arguments)}
    unknown = sorted(set(options) - set(_DEFAULTS))
    if unknown:
        raise SeggymError(f"{', '.join(unknown)} is unknown, expected some of {', '.join(_DEFAULTS)}")
    torch.set_num_threads(1)
    acquisition = Acquisition(int(options["matrix"]), int(options["crop"]), coils=int(options["coils"]))
    cohort = open_cohort(options["cohort"], options["datadir"] or None)
    patients = split_cohort(cohort).test
    listed = {name: [part for part in options[name].split(",") if part] for name in ("methods", "networks", "lines")}
    for folder in (options["reward_model"], *listed["networks"]):
        open_reward_model(folder).require_unseen("full", patients, cohort.name)
    network = load_frozen(open_reward_model(options["reward_model"]).full)
    stack = prepared_slices(cohort, patients, acquisition)
    found = reconstructions(listed["methods"], listed["networks"], acquisition)
    print(f"{len(stack)} slices of {len(patients)} test patients, {acquisition.coils} coil(s)")
    every = torch.ones(acquisition.matrix, dtype=torch.bool)
    cases = {f"all {acquisition.matrix} lines": every}
    for lines in listed["lines"]:
        cases |= {f"{lines} lines, {name}": mask for name, mask in masks(acquisition, int(lines)).items()}
    for title, mask in cases.items():
        print(f"\n{title}\n\n| method | SSIM | Dice | Dice - zero-filled | ms/image |\n|---|---|---|---|---|")
        plain = score(stack, network, acquisition, mask, simulation.zero_filled)
        print(row("zero_filled", plain, plain, list(stack.patients)))
        for name, reconstruction in found.items():
            if name != "zero_filled":
                scores = score(stack, network, acquisition, mask, reconstruction)
                print(row(name, scores, plain, list(stack.patients)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
