"""What a stop action is worth: lines saved at equal quality. The second table of docs/headroom.md.

python -m benchmarks.stopping cohort=phantom reward_model=phantom-hard
python -m benchmarks.stopping cohort=acdc reward_model=acdc-hard split=split.json policies=runs/stop/seed0/last

A policy that stops each slice by itself uses some lines and reaches some volume Dice. The same policy without stopping
reaches that Dice with some fixed budget, the same for all slices; what it needs more is what was saved. The scans are
those of "all together" in benchmarks/headroom; the order is ``echo_following``, a trained policy's its own. Options
as there; ``policies`` are folders of policies that were trained with stop_action=true (each is a row).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.headroom.measuring import Ground
from benchmarks.headroom.scans import Options, environment, kept, key_of, parsed
from benchmarks.k1.evaluating import greedy_volumes
from seggym.agents.bench import Bench, open_bench
from seggym.agents.echo_baselines import EchoFollowing, OracleStop, tuned_entropy_stop
from seggym.agents.learned_stop import tuned_learned_stop
from seggym.agents.policies import Baseline, Policy
from seggym.agents.pooling import DRAWS, Estimate
from seggym.agents.results import PolicyResult
from seggym.agents.snapshots import LearnedPolicy, load_policy
from seggym.envs.kspace.engine import KSpaceEngine
from seggym.errors import SeggymError, one_sentence
from seggym.files import write_atomic

SCAN = "all together"
FRACTIONS = (0.85, 0.9, 0.95)
"""Of the quality of the whole budget, that a threshold of the entropy keeps on training patients."""


@dataclass(frozen=True)
class StoppingOptions(Options):
    """The command line; ``policies`` are folders, separated by commas."""

    policies: str = ""

    @property
    def learned(self) -> dict[str, LearnedPolicy]:
        """The trained policies by folder."""
        device = "cpu" if not torch.cuda.is_available() else self.device
        return {folder: load_policy(folder, device) for folder in self.policies.split(",") if folder}


class NeverStopping:
    """``policy`` where it may not stop."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, f"{policy.name} without stopping"
        self.privileged, self.anytime = policy.privileged, policy.anytime

    def begin(self, engine: KSpaceEngine) -> None:
        """New episodes."""
        self.policy.begin(engine)

    def act(self, engine: KSpaceEngine, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
        """Actions int64 (N,), lines only."""
        assert engine.stop_index is not None
        legal = legal.clone()
        legal[:, engine.stop_index] = False
        return self.policy.act(engine, observation, legal)


@dataclass(frozen=True)
class Saving:
    """Lines used, Dice reached, the fixed budget of equal Dice, and the difference in lines."""

    used: Estimate
    dice: Estimate
    budget: Estimate
    saved: Estimate


def fixed_budget(points: np.ndarray, curve: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """The number of lines at which each curve (B, points) first reaches ``quality`` (B,), linear between the points.

    The largest of ``points`` where it never does, so that nobody is said to save more than there is.
    """
    best = np.maximum.accumulate(curve, axis=1)
    reached = best >= quality[:, None]
    index = np.where(reached.any(1), reached.argmax(1), len(points) - 1)
    before = np.maximum(index - 1, 0)
    row = np.arange(len(best))
    low, high = best[row, before], best[row, index]
    step = np.divide(quality - low, high - low, out=np.ones(len(best)), where=high > low)
    between = points[before] + (points[index] - points[before]) * np.clip(step, 0, 1)
    return np.where(reached[:, 0], points[0], np.where(reached.any(1), between, points[-1]))


def saving(
    points: Sequence[int], curves: np.ndarray, dice: np.ndarray, used: np.ndarray, patients: Sequence[str]
) -> Saving:
    """What stopping saves; every number of a bootstrap draw comes from the same patients.

    ``curves`` (points, V) without stopping, ``dice`` (V,) and ``used`` (V,) lines per slice of the policy that stops.
    """
    names = list(dict.fromkeys(patients))
    member = np.asarray(patients)[None] == np.asarray(names)[:, None]
    mean = member / member.sum(1, keepdims=True)
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS) / len(names)
    weights = np.concatenate([np.full((1, len(names)), 1 / len(names)), draws]) @ mean  # the sample itself comes first
    quality, lines = weights @ dice, weights @ used
    budget = fixed_budget(np.asarray(points, dtype=float), weights @ curves.T, quality)

    def estimate(values: np.ndarray) -> Estimate:
        low, high = np.quantile(values[1:], [0.025, 0.975])
        return Estimate(float(values[0]), float(low), float(high), len(names))

    return Saving(estimate(lines), estimate(quality), estimate(budget), estimate(budget - lines))


def measure(ground: Ground, policy: Policy, free: Policy) -> dict[str, Any]:
    """Lines used, Dice reached, and the curve without stopping, by volume and net: plain JSON."""
    stopped, unstopped = ground.run(policy), ground.run(free)
    lines = (stopped.runs[0]["lines"] >= 0).sum(1)
    return {
        "used": [float(lines[rows].mean()) for rows in ground.cases.volumes.values()],
        "points": list(ground.plan.points),
        "patients": ground.cases.volume_patients,
        "slices": len(ground.cases),
        "privileged": policy.privileged,
        "dice": {net: _dice(stopped, net)[-1].tolist() for net in _nets(ground)},
        "curves": {net: _dice(unstopped, net).tolist() for net in _nets(ground)},
    }


def _nets(ground: Ground) -> tuple[str, ...]:
    return ("A",) if ground.bench.independent is None else ("A", "B")


def _dice(result: PolicyResult, net: str) -> np.ndarray:
    return result.values(net, "volume", "dice")[0].round(5)


def contestants(bench: Bench, options: Options, learned: Mapping[str, Policy]) -> dict[str, tuple[Policy, Policy]]:
    """Policies that stop, and the same without: the oracle, entropies, trained ones."""
    order: Baseline = EchoFollowing()
    tuning = bench.ground(options.budget, max_slices=options.slices)
    found: dict[str, tuple[Policy, Policy]] = {}
    for fraction in FRACTIONS:
        found[f"entropy, {fraction:.0%}"] = (tuned_entropy_stop(tuning, order, fraction), order)
        found[f"learned, {fraction:.0%}"] = (tuned_learned_stop(tuning, order, fraction), order)
    found["oracle, 95 % \\*"] = (OracleStop(order), order)
    for folder, policy in learned.items():
        found[f"trained, {folder}"] = (policy, NeverStopping(policy))
    return found


def table(contents: dict[str, dict[str, Any]], net: str) -> str:
    """One row per policy that stops."""
    head = ["policy", "lines per slice", "volume Dice", "fixed budget of equal Dice", "lines saved"]
    rows = [head, ["---"] * len(head)]
    for name, content in contents.items():
        found = saving(
            content["points"],
            np.asarray(content["curves"][net]),
            np.asarray(content["dice"][net]),
            np.asarray(content["used"]),
            content["patients"],
        )
        cells = [_cell(found.used, 1), _cell(found.dice, 3), _cell(found.budget, 1), _cell(found.saved, 1, "+")]
        rows.append([name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(found: Estimate, digits: int, sign: str = "") -> str:
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in found[:3])
    return f"{mean} [{low}, {high}]"


def markdown(contents: dict[str, dict[str, Any]], command: str) -> str:
    """The tables by both networks."""
    first = next(iter(contents.values()))
    lines = [
        f"`{command}`",
        "",
        f"{len(set(first['patients']))} test patients, {first['slices']} slices; intervals resample patients for the "
        "whole computation. \\* privileged: compares with the labels.",
    ]
    for net in sorted(first["dice"], reverse=True):
        lines += ["", f"Network {net}:", "", table(contents, net)]
    return "\n".join(lines) + "\n"


@one_sentence
def main(*arguments: str) -> None:
    """Run the policies that are missing and print the tables."""
    options: StoppingOptions = parsed(arguments, StoppingOptions)
    if options.features is not None:
        raise SeggymError(f"features={options.features}: stopping is measured on {SCAN!r} alone, leave it out")
    torch.set_num_threads(1)
    learned = options.learned
    observation = next(iter(learned.values())).observation if learned else ("acquired",)
    bench = open_bench(*environment(options, SCAN, observation, stop_action=True))
    ground = Ground(bench, options, "test", greedy_volumes(bench.stack, options.volumes))
    folder = Path(options.out)
    contents: dict[str, dict[str, Any]] = {}
    for name, (policy, free) in contestants(bench, options, learned).items():
        key = {**key_of(options, SCAN), "policies": getattr(policy, "identity", None)}
        path = folder / f"{options.cohort}-stopping-{len(contents)}.json"
        contents[name] = kept(path, key, lambda policy=policy, free=free: measure(ground, policy, free))
        text = markdown(contents, " ".join(["python -m benchmarks.stopping", *arguments]))
        write_atomic(folder / f"{options.cohort}-stopping.md", text.encode())
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
