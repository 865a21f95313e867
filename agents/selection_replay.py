"""What the samples that policies chose with the probe are worth to a network: final sets taught to a U-Net."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seggym.agents.comparison import differences
from seggym.agents.selection_evaluation import SelectionBench
from seggym.agents.selection_results import SelectionResult
from seggym.envs.selection.sources import build_engine
from seggym.errors import SeggymError
from seggym.files import read_json, write_json
from seggym.reward_models import statistics

FILE = "replay.json"


def replay(
    bench: SelectionBench,
    results: Sequence[SelectionResult],
    episodes: int,
    options: Mapping[str, Any],
    folder: Path,
    say: Any = print,
) -> dict[str, Any]:
    """Dice of a U-Net with ``options`` that is taught the final set of each of ``results`` in the first ``episodes``.

    It is scored on the volumes of the bench; in one episode all networks have the same initial weights and batches as
    far as their samples allow. Every network is kept in ``folder`` as a number when it is trained, so that the same
    call goes on where it was stopped. Returns the rows of :func:`replay_rows` with what they were made of.
    """
    if not 1 <= episodes <= len(bench.keys):
        raise SeggymError(f"replay_episodes={episodes}, expected 1 to {len(bench.keys)}, the episodes evaluated")
    settings = replace(bench.settings, learner="unet", learner_options=dict(options), budget=1)
    engine = build_engine(settings, 1)
    place = {name: sample for sample, name in enumerate(engine.pool.table.names)}
    key = {**bench.key, "learner": "unet", "learner_options": dict(options)}
    path = folder / FILE
    known: dict[str, Any] = read_json(path, "the networks so far") if path.is_file() else {}
    if not isinstance(known, dict) or differences(known.get("key"), key):
        known = {"key": key, "networks": {}}
    for number in range(episodes):
        for result in results:
            chosen = [place[name] for names in result.selected[number] for name in names]
            # Who chose the same samples gets the same network.
            name = f"{number}: {','.join(map(str, chosen))}"
            if name not in known["networks"]:
                samples = torch.tensor([chosen], device=engine.device)
                quality = engine.quality_of(samples, bench.keys[number : number + 1].to(engine.device))
                known["networks"][name] = float(quality[0])
                write_json(path, known)
                say(f"U-Net, episode {number}, {result.strategy}: {known['networks'][name]:.4f}")
    found = {
        result.strategy: [
            known["networks"][f"{n}: {','.join(str(place[name]) for names in result.selected[n] for name in names)}"]
            for n in range(episodes)
        ]
        for result in results
    }
    return {"episodes": episodes, "options": dict(options), "dice": found, "rows": replay_rows(found)}


def replay_rows(dice: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Mean Dice of each policy over episodes, and that of the first minus it with a 95 % interval over episodes."""
    subject = np.array(next(iter(dice.values())))
    rows = []
    for name, values in dice.items():
        difference = statistics.paired_difference(subject, np.array(values), list(range(len(values))))
        rows.append({"policy": name, "dice": float(np.mean(values)), **difference._asdict()})
    return rows
