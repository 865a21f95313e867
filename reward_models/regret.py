"""What reduced precision costs: the lines that a label-using greedy choice picks in bf16 instead of fp32.

A network's error in bf16 says little, because a policy lives on differences between lines that are nearly equal. So the
choices themselves are compared, and what the other choice would have brought by the fp32 network.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from seggym.kspace import simulation, trajectories, view_orders
from seggym.kspace.acquisition import Acquisition, SliceStack
from seggym.kspace.keyed_random import key_of
from seggym.reward_models.checkpoints import load_network
from seggym.reward_models.frozen import FrozenNetwork, Prediction
from seggym.reward_models.metrics import encode_truth, soft_quality
from seggym.reward_models.precision import PrecisionRecord, native_precision, write_record

SCANS = 24
"""Slices, spread evenly over those given."""
STAGES = (0, 4, 8, 16)
"""Lines measured after the initial ones when a choice is made."""
WINDOW = 24
"""Lines on either side of DC that may be chosen, as many as the greedy reference tries."""
ABSENT_WEIGHT = 10.0
"""Of the quality, as in the environments."""
MAX_SECONDS = 300.0
"""Of processor time per thread: where bf16 is not native, it can be many times slower."""

_DRAWS = 2000
_DENSITY_POWER = 6.0


class Choices(NamedTuple):
    """Compared choices, one entry per scan and stage.

    Attributes:
        changed: bool (n,), the reduced precision chose another line.
        regret: float64 (n,), quality lost by its choice, >= 0.
        gain: float64 (n,), quality gained by the reference's choice over measuring nothing.
        patients: the patient of each.
    """

    changed: NDArray[np.bool_]
    regret: NDArray[np.float64]
    gain: NDArray[np.float64]
    patients: list[str]


def record_precision(
    folder: str | os.PathLike[str], stack: SliceStack, acquisition: Acquisition, device: torch.device
) -> PrecisionRecord | None:
    """Measure what bf16 loses on the slices of ``stack`` and write it beside the network in ``folder``.

    Returns None, and writes nothing, where it would take longer than :data:`MAX_SECONDS`.
    """
    network, card = load_network(folder)
    reference, reduced = (FrozenNetwork(network, device, precision) for precision in ("fp32", "bf16"))
    choices = compare_choices(reference, reduced, stack.to(device), acquisition, Path(folder).name)
    if choices is None:
        return None
    record = summarise(choices, card.weights, _describe(device))
    write_record(folder, record)
    return record


def compare_choices(
    reference: Callable[[torch.Tensor], Prediction],
    reduced: Callable[[torch.Tensor], Prediction],
    stack: SliceStack,
    acquisition: Acquisition,
    title: str = "network",
) -> Choices | None:
    """Let two versions of a network choose the next line of the same scans; None if it would take too long.

    ``stack`` is on the device of both. Scans are measured in plain order (centre-out, spokes by the golden angle) and
    with variable density in turn, up to each of :data:`STAGES`; of the lines left within :data:`WINDOW` of DC each
    version chooses the one after which the soft Dice with the true labels is largest, a tie going to the line nearer to
    DC.
    """
    device = stack.images.device
    scans = torch.arange(min(len(stack), SCANS), device=device) * len(stack) // min(len(stack), SCANS)
    keys = torch.tensor([key_of(f"precision:{stack.names[index]}") for index in scans.tolist()], device=device)
    samples = trajectories.first_measurements(stack, scans, keys, acquisition)
    transposed = simulation.rows_encoded(keys, acquisition)
    cases = [(scan, mask) for scan in range(len(scans)) for mask in _masks(acquisition, scan)]
    rows: list[tuple[bool, float, float]] = []
    started = 0.0
    for scan, mask in tqdm(cases, desc=f"{title}: choices in bf16 against fp32", unit="choice", mininterval=5):
        tried = torch.from_numpy(_tried(acquisition, mask)).to(device)
        images = trajectories.zero_filled(samples[scan : scan + 1], tried, acquisition)
        images = simulation.upright(images, transposed[scan : scan + 1])
        labels = stack.labels[scans[scan]].expand(len(tried), -1, -1)
        truth = encode_truth(labels, stack.num_classes)
        exact, rounded = (
            soft_quality(network(images).probabilities, truth, ABSENT_WEIGHT).double().cpu().numpy()
            for network in (reference, reduced)
        )
        # The first image is the one without a further line.
        best, chosen = 1 + int(exact[1:].argmax()), 1 + int(rounded[1:].argmax())
        rows.append((chosen != best, exact[best] - exact[chosen], exact[best] - exact[0]))
        # Processor time, because another program's load says nothing about bf16; the first choice also sets things up.
        now = time.process_time() / torch.get_num_threads()
        if len(rows) == 1:
            started = now
        elif len(rows) > len(STAGES) and (now - started) / (len(rows) - 1) * len(cases) > MAX_SECONDS:
            return None
    changed, regret, gain = (np.array(column) for column in zip(*rows, strict=True))
    return Choices(changed, regret, gain, [stack.patients[scans[scan]] for scan, _ in cases])


def summarise(choices: Choices, weights: str, device: str) -> PrecisionRecord:
    """The record of ``choices`` of the network whose weights have the hash ``weights``."""
    regret, gain = float(choices.regret.mean()), float(choices.gain.mean())
    return PrecisionRecord(
        weights=weights,
        choices=len(choices.regret),
        changed=float(choices.changed.mean()),
        regret=regret,
        gain=gain,
        relative=regret / gain if gain > 0 else None,
        interval=_ratio_interval(choices.regret, choices.gain, choices.patients),
        device=device,
        torch=torch.__version__,
    )


def _masks(acquisition: Acquisition, scan: int) -> list[NDArray[np.bool_]]:
    """Lines measured at each stage of a scan, bool (V,); stages that leave no line to choose within the window fall."""
    first = acquisition.initial_views
    order = view_orders.plain_order(acquisition)
    if scan % 2:
        order = view_orders.random_order(acquisition, _DENSITY_POWER, np.random.default_rng(scan))
    rest = order[~np.isin(order, first)]
    masks = []
    for stage in STAGES:
        mask = np.zeros(acquisition.num_views, bool)
        mask[first] = mask[rest[:stage]] = True
        if len(_tried(acquisition, mask)) > 1:
            masks.append(mask)
    return masks


def _tried(acquisition: Acquisition, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``mask`` and, row by row, with each line added that may be chosen, nearest to DC first: bool (1 + lines, V)."""
    order = view_orders.near_centre(acquisition, WINDOW)
    lines = order[~mask[order]]
    tried = np.repeat(mask[None], 1 + len(lines), axis=0)
    tried[np.arange(1, len(tried)), lines] = True
    return tried


def _ratio_interval(
    regret: NDArray[np.float64], gain: NDArray[np.float64], patients: Sequence[str]
) -> tuple[float | None, float | None]:
    """Percentile interval of mean regret / mean gain from resampling patients."""
    names = sorted(set(patients))
    if len(names) < 2:
        return None, None
    member = np.array(patients)[None] == np.array(names)[:, None]
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=_DRAWS)
    lost, won = drawn @ (member @ regret), drawn @ (member @ gain)
    if (won <= 0).any():
        return None, None
    low, high = np.quantile(lost / won, (0.025, 0.975))
    return float(low), float(high)


def _describe(device: torch.device) -> str:
    native = "native" if native_precision(device) == "bf16" else "emulated"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} ({name}, {native} bf16)"
