"""How fast the probe environment is: selections per second of one core, and where the time goes.

``python benchmarks/selection_throughput.py`` draws 500 slices of 128 x 128 pixels for the pool and a fifth of them for
the reward set, of random images: what an image shows does not matter to the time. Times are processor seconds of one
thread, which other programs on the machine do not lengthen (much).
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from seggym.envs.selection.engine import SelectionEngine
from seggym.envs.selection.environment import SelectionVectorEnv
from seggym.envs.selection.pool import Oracle, Pool, gather_targets, group_slices
from seggym.envs.selection.settings import SelectionSettings
from seggym.envs.selection.sources import standardised
from seggym.envs.selection.state import SampleTable
from seggym.files import write_json
from seggym.reward_models.encoder_store import encode
from seggym.reward_models.encoders import Encoder
from seggym.reward_models.learners import ScoredSet
from seggym.reward_models.probe import ProbeLearner, pooled, position_features

_SLICES_PER_VOLUME = 10
_CLASSES = 4


def random_engine(
    pool_size: int, reward_size: int, size: int, candidates: int, num_envs: int, budget: int
) -> tuple[SelectionEngine, float]:
    """An engine on random images and labels, and the seconds that its tables took."""
    generator = torch.Generator().manual_seed(0)
    count = pool_size + reward_size + 16
    images = torch.rand(count, 1, size, size, generator=generator)
    coarse = torch.randint(_CLASSES, (count, size // 8, size // 8), generator=generator, dtype=torch.uint8)
    labels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    torch.manual_seed(0)
    start = time.process_time()
    encoded = encode(Encoder(32).eval(), images)
    features = position_features(encoded, torch.arange(pool_size))
    number = np.arange(pool_size)
    table = SampleTable(
        names=tuple(f"slice{index}" for index in number),
        patient=number // (2 * _SLICES_PER_VOLUME),
        volume=number // _SLICES_PER_VOLUME,
        phase=number // _SLICES_PER_VOLUME % 2,
        position=number % _SLICES_PER_VOLUME / (_SLICES_PER_VOLUME - 1),
        slice_index=number % _SLICES_PER_VOLUME,
    )
    slices, shown = group_slices(number, number)
    pool = Pool(
        table,
        images,
        slices,
        shown,
        torch.arange(count - 16, count),
        standardised(pooled(encoded)[:pool_size]),
        tuple("abcd"[:_CLASSES]),
        torch.zeros(0, dtype=torch.int64),
        torch.ones(pool_size, dtype=torch.int64),
    )
    reward = torch.arange(pool_size, pool_size + reward_size)
    cases = torch.arange(reward_size) // _SLICES_PER_VOLUME
    scored = ScoredSet(reward, labels[reward], cases, tuple(str(case) for case in range(int(cases.max()) + 1)))
    learner = ProbeLearner(features, {"reward": scored}, _CLASSES, num_envs)
    targets = gather_targets(labels, slices)
    oracle = Oracle(targets, targets, _CLASSES, lambda given: learner.digest(slices, given))
    settings = SelectionSettings(cohort="random", size=size, candidates=candidates, budget=budget)
    return SelectionEngine(pool, oracle, learner, settings, num_envs), time.process_time() - start


def play(engine: SelectionEngine, seconds: float) -> float:
    """Processor seconds of one step of the batch, resets included, over at least ``seconds``."""
    env = SelectionVectorEnv(engine.num_envs, autoreset_mode="SameStep", engine=engine)
    _, info = env.reset(seed=0)
    rng = np.random.default_rng(0)
    steps, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        actions = [rng.choice(np.flatnonzero(mask)) for mask in info["action_mask"]]
        _, _, _, _, info = env.step(np.array(actions))
        steps += 1
    return (time.process_time() - start) / steps


def timed(call: Callable[[], object], times: int = 10) -> float:
    """Processor milliseconds of one call."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times * 1e3


def main() -> None:
    """Play episodes and print what a selection costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=500)
    parser.add_argument("--reward", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for num_envs in options.envs:
        engine, tables = random_engine(
            options.pool, options.reward, options.size, options.candidates, num_envs, options.budget
        )
        seconds = play(engine, options.seconds)
        rows = torch.arange(num_envs)
        parts = {
            "observe_ms": timed(engine.observe),
            "score_ms": timed(functools.partial(engine.learner.overlap, rows, "reward")),
            "candidates_ms": timed(functools.partial(engine._draw_candidates, rows)),
        }
        results.append(
            {
                "envs": num_envs,
                "pool": options.pool,
                "reward": options.reward,
                "size": options.size,
                "candidates": options.candidates,
                "selections_per_s": num_envs / seconds,
                "step_ms": seconds * 1e3,
                "tables_s": tables,
                **parts,
            }
        )
        print(json.dumps(results[-1]), flush=True)
    if options.out is not None:
        write_json(options.out, results)


if __name__ == "__main__":
    main()
