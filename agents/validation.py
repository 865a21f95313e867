"""How good a policy is while it trains: fixed episodes on the validation patients, run on the engine itself."""

from collections.abc import Callable

import numpy as np
import torch

from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.kspace.keyed_random import key_of

# (observation, legal actions) -> actions
Choice = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]


def validation_episodes(engine: KSpaceEngine, limit: int) -> Episodes:
    """At most ``limit`` slices, or volumes where those are the episodes, evenly spaced, with the largest budget.

    The key of each is that of ``"eval:" + its name``. They depend on the data alone, so every run and every step of it
    is measured on the same episodes.
    """
    names = engine.episode_names
    count = len(names)
    samples = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64))
    return Episodes(
        torch.from_numpy(samples),
        torch.full((len(samples),), engine.settings.budget_range[1]),
        torch.tensor([key_of(f"eval:{names[sample]}") for sample in samples]),
    )


def validate(engine: KSpaceEngine, episodes: Episodes, choose: Choice) -> dict[str, float]:
    """Means over ``episodes``: ``mean_quality`` of Q_1..Q_T (the area), last ``quality``, ``lines``, ``dice_<class>``.

    Q is what the rewards are gains of: with ``lambda_error`` what the error net expects is part of it.
    Episodes are run in batches of the engine's size; slots of the last batch that are left over repeat its first one.
    """
    areas, finals, dices, lines = [], [], [], []
    slots = torch.arange(engine.num_envs, device=engine.device)
    for start in range(0, len(episodes.samples), engine.num_envs):
        index = torch.arange(start, start + engine.num_envs)
        used = int((index < len(episodes.samples)).sum())
        index = torch.where(index < len(episodes.samples), index, start)
        chunk = Episodes(*(value[index].to(engine.device) for value in vars(episodes).values()))
        engine.begin(slots, chunk)
        active = torch.ones(engine.num_envs, dtype=torch.bool, device=engine.device)
        area = torch.zeros(engine.num_envs, dtype=torch.float64, device=engine.device)
        budget = chunk.budgets
        for step in range(int(budget.max())):
            actions = choose(engine.observe(), engine.action_mask())
            active &= ~engine.step(actions, active).terminated
            # A scan that was stopped early keeps its last quality for the lines it did without.
            area += engine.rewarded.double() * (step < budget)
        areas.append((area / budget)[:used].cpu())
        finals.append(engine.rewarded[:used].double().cpu())
        lines.append(engine.lines[:used].double().cpu())
        if engine.segmentation is not None:
            dices.append(engine.dice()[0][:used].double().cpu())
    result = {
        "episodes": float(len(episodes.samples)),
        "mean_quality": float(torch.cat(areas).mean()),
        "quality": float(torch.cat(finals).mean()),
        "lines": float(torch.cat(lines).mean()),
    }
    if dices:
        per_class = torch.cat(dices).nanmean(0)
        result |= {f"dice_{index}": float(value) for index, value in enumerate(per_class, 1)}
    return result
