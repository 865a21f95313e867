"""Does the probe rank sets of samples as the full network does? Rank correlation over random sets of one size.

``python benchmarks/probe_agreement.py --out runs/agreement`` draws ``--subsets`` random sets of each of ``--sizes``
samples, teaches the probe and ``--seeds`` U-Nets with each, and scores all of them on the reward set. What is done is
in ``--out`` and is not done again, so the command may be interrupted and repeated. The ceiling of any surrogate is how
well the network agrees with itself under another seed. Correlations are Spearman's, over the sets of one size (over
sets of several sizes everything agrees, because more samples are better), with intervals from resampled sets.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy.stats import spearmanr

import seggym  # noqa: F401  registers the ids
from seggym.envs.selection.engine import SelectionEngine
from seggym.files import read_json, write_json
from seggym.kspace.keyed_random import key_of, random_bits

_RESAMPLES = 1000


def open_engine(options: argparse.Namespace, learner: str) -> SelectionEngine:
    """The engine with ``learner``; pool, encoder and reward set are the same for both."""
    network = {"iterations": options.iterations, "widths": options.widths} if learner == "unet" else {}
    kwargs: dict[str, Any] = {"learner": learner, "learner_options": network, "ann_type": options.ann_type}
    kwargs |= json.loads(options.kwargs)
    return gymnasium.make(options.id, **{"initial": 1, "budget": 1, **kwargs}).unwrapped.engine


def random_set(engine: SelectionEngine, size: int, number: int) -> torch.Tensor:
    """Samples int64 (1, size) of set ``number``, the same for every learner."""
    key = torch.tensor([key_of(f"agreement {size} {number}")])
    return random_bits(key, 0, len(engine.pool)).topk(size, dim=1).indices


def measure(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Quality by learner ("probe", "unet0", ...) and size, a list over sets; kept after every set."""
    path = options.out / "qualities.json"
    settings = {
        name: value for name, value in vars(options).items() if name not in ("out", "subsets", "seeds", "sizes")
    }
    known = read_json(path, "the qualities so far") if path.is_file() else {"settings": settings, "qualities": {}}
    if known["settings"] != settings:
        raise SystemExit(f"{path} was made with {known['settings']}, not {settings}: choose another --out")
    learners = ["probe", *(f"unet{seed}" for seed in range(options.seeds))]
    engines = {kind: open_engine(options, kind) for kind in ("probe", "unet")}
    for number in range(options.subsets):
        for size in options.sizes:
            for name in learners:
                done = known["qualities"].setdefault(name, {}).setdefault(str(size), [])
                if len(done) > number:
                    continue
                engine = engines["probe" if name == "probe" else "unet"]
                key = torch.tensor([key_of(f"{name} {size} {number}")])
                done.append(float(engine.quality_of(random_set(engine, size, number), key)[0]))
                write_json(path, known)
    return known["qualities"]


def correlation(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Spearman's correlation with a 95 % interval over resampled sets."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(one), size=len(one)) for _ in range(_RESAMPLES)]
    with np.errstate(invalid="ignore"):
        spread = [spearmanr(one[draw], other[draw])[0] for draw in draws if len(set(draw.tolist())) > 2]
    return [float(spearmanr(one, other)[0]), *np.nanquantile(spread, [0.025, 0.975]).tolist()]


def summarise(qualities: dict[str, dict[str, list[float]]], sizes: list[int], seeds: int) -> list[dict[str, Any]]:
    """For each size: the probe against one network and against the mean of all, and networks against each other."""
    table = []
    for size in sizes:
        values = {name: np.array(found[str(size)]) for name, found in qualities.items() if str(size) in found}
        count = min(map(len, values.values()))
        probe = values["probe"][:count]
        networks = np.stack([values[f"unet{seed}"][:count] for seed in range(seeds)])
        pairs = [(one, other) for one in range(seeds) for other in range(one)]
        row: dict[str, Any] = {
            "size": size,
            "sets": count,
            "probe_dice": float(probe.mean()),
            "unet_dice": float(networks.mean()),
            "probe_against_mean": correlation(probe, networks.mean(0)),
            "probe_against_one": float(np.mean([correlation(probe, network)[0] for network in networks])),
        }
        if pairs:
            row["unet_against_unet"] = float(np.mean([correlation(networks[a], networks[b])[0] for a, b in pairs]))
        table.append(row)
    return table


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", default="ALSelect-Phantom-v0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 15, 40])
    parser.add_argument("--subsets", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--ann-type", default="mask")
    parser.add_argument("--kwargs", default="{}", help="further keyword arguments of the environment, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = summarise(measure(options), options.sizes, options.seeds)
    write_json(options.out / "agreement.json", table)
    for row in table:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
