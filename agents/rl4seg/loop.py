"""The whole of RL4Seg, or one stage of it."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from seggym.agents.al.folders import locked
from seggym.agents.rl4seg import stages
from seggym.agents.rl4seg.baselines.registry import run_baseline
from seggym.agents.rl4seg.evaluation import evaluate, watch
from seggym.agents.rl4seg.settings import RunSettings
from seggym.agents.rl4seg.test_time import run_test_time
from seggym.agents.rl4seg.trial import ACTOR, Trial, open_trial
from seggym.errors import SeggymError

Say = Callable[[str], Any]
_STEPS: dict[str, Callable[[Trial, int], None]] = {
    "predict": stages.predict, "reward": stages.reward, "ppo": stages.ppo
}  # fmt: skip


def run(settings: RunSettings, stage: str = "all", iteration: int | None = None, say: Say = print) -> Trial:
    """Run ``stage`` of ``settings``, or what is left of all; a stage that is finished is not run again.

    ``iteration`` (from 1) is that of predict, reward or ppo; None is the first that is not finished.
    """
    torch.set_num_threads(settings.threads)
    with locked(Path(settings.out)):
        trial = open_trial(settings)
        say(describe(trial))
        if stage in _STEPS:
            _step(trial, stage, _which(trial, stage, iteration), say)
            return trial
        if iteration is not None:
            raise SeggymError(f"iteration={iteration} is for stage=predict, reward or ppo, found stage={stage}")
        if stage in ("all", "pretrain"):
            _timed(say, "pretrain", lambda: stages.pretrain(trial))
        if stage == "all":
            for number in range(1, settings.loop.iterations + 1):
                for step in _STEPS:
                    _step(trial, step, number, say)
                say(_progress(watch(trial, number), number))
        if stage in ("all", "baselines"):
            for name in settings.baselines:
                _timed(say, f"baselines/{name}", partial(run_baseline, trial, name))
        if stage in ("all", "evaluate"):
            last = finished(trial)
            if settings.tto != "off" and last:
                _timed(say, "test-time optimisation", lambda: run_test_time(trial, last, settings.tto))
            evaluate(trial, last)
        return trial


def describe(trial: Trial) -> str:
    """The run in a sentence."""
    pair, settings = trial.pair, trial.settings
    counts = ", ".join(
        f"{len(getattr(pair, part).images)} {part.replace('_', ' ')}"
        for part in ("source_train", "source_val", "target_train", "target_val", "target_test")
    )
    return f"{settings.name}, seed {settings.seed}: images {counts}; {', '.join(pair.class_names[1:])}"


def finished(trial: Trial) -> int:
    """The last iteration whose policy is there; 0 is the supervised network."""
    if trial.folder.facts(ACTOR) is None:
        raise SeggymError(f"{trial.folder.root} has no supervised network yet: run stage=pretrain first")
    number = 0
    while trial.folder.facts(stages.actor(number + 1)) is not None:
        number += 1
    return number


def _which(trial: Trial, stage: str, iteration: int | None) -> int:
    """The iteration that a single stage is meant for."""
    last = trial.settings.loop.iterations
    if iteration is not None:
        if not 1 <= iteration <= last:
            raise SeggymError(f"iteration={iteration}, expected 1 to loop.iterations={last}")
        return iteration
    place = {"predict": "rewards", "reward": "reward_net", "ppo": "actor"}[stage]
    for number in range(1, last + 1):
        if trial.folder.facts(f"{number}/{place}") is None:
            return number
    return last


def _step(trial: Trial, stage: str, number: int, say: Say) -> None:
    _timed(say, f"{stage}, iteration {number}", lambda: _STEPS[stage](trial, number))


def _timed(say: Say, what: str, do: Callable[[], Any]) -> None:
    started = time.perf_counter()
    do()
    say(f"{what}: {time.perf_counter() - started:.0f} s")


def _progress(monitors: list[dict[str, Any]], number: int) -> str:
    rows = [row for row in monitors if row["iteration"] == number and row["part"] == "val"]
    before, after = ({name: row[name] for name in ("dice", "validity", "reward_region")} for row in rows)
    return f"iteration {number} on validation: " + ", ".join(
        f"{name.replace('_', ' ')} {before[name]:.3f} -> {after[name]:.3f}" for name in before
    )
