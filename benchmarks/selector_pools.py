"""Evaluations of a selector in several pools as one table (docs/selector.md, "Several pools").

``python benchmarks/selector_pools.py FOLDER FOLDER ...`` reads folders that agents/eval_selector.py left, each of
another pool with the same selector. One pool has one set of patients to choose from and one to score on, and a strategy
may suit it by chance; over several it has to suit most. Intervals resample patients and episodes of all pools, p is
that of sign flips of episodes with Holm's correction over the strategies without privilege.
"""

import sys
from pathlib import Path

import numpy as np

from seggym.agents.selection_evaluation import mean_result
from seggym.agents.selection_results import FILE, SelectionResult, load_selection
from seggym.agents.selection_statistics import aubc
from seggym.errors import SeggymError, one_sentence
from seggym.reward_models import statistics

SUBJECT = "selector"


def results_of(folder: Path) -> dict[str, SelectionResult]:
    """The policies of an evaluation by name; training runs of the selector count as one."""
    found = [load_selection(path) for path in sorted(folder.glob(f"policies/*/{FILE}"))]
    runs = [result for result in found if result.strategy.startswith(SUBJECT)]
    if not runs:
        raise SeggymError(f"{folder} holds no evaluation of a selector: name folders that agents/eval_selector.py left")
    others = {result.strategy: result for result in found if not result.strategy.startswith(SUBJECT)}
    return {SUBJECT: mean_result(runs) if len(runs) > 1 else runs[0], **others}


def areas(result: SelectionResult) -> np.ndarray:
    """Area under the learning curve by episode and volume, (S, V)."""
    return aubc(np.moveaxis(result.dice, 1, -1), result.samples)


def table(pools: list[dict[str, SelectionResult]]) -> list[str]:
    """Rows of the table in Markdown: the selector, then the strategies that all pools have, best first."""
    names = [name for name in pools[0] if all(name in pool for pool in pools)]
    found = {name: [areas(pool[name]) for pool in pools] for name in names}
    patients, runs = [], []
    for number, pool in enumerate(pools):
        subject = pool[SUBJECT]
        patients += [f"{number}/{patient}" for _ in subject.seeds for patient in subject.patients]
        runs += [f"{number}/{seed}" for seed in subject.seeds for _ in subject.volumes]
    flat = {name: np.concatenate([area.ravel() for area in values]) for name, values in found.items()}
    minus = {name: flat[SUBJECT] - values for name, values in flat.items() if name != SUBJECT}
    p = {
        name: statistics.paired_difference(cells, np.zeros(len(cells)), runs, draws=1).p_value
        for name, cells in minus.items()
    }
    free = [name for name in minus if not pools[0][name].privileged]
    adjusted = statistics.holm({name: p[name] for name in free})
    rows = ["| policy | AUBC | selector minus it | p (Holm) | by pool |", "|---|---|---|---|---|"]
    order = sorted(minus, key=lambda name: (pools[0][name].privileged, -float(np.nanmean(flat[name]))))
    for name in [SUBJECT, *order]:
        own = statistics.bootstrap_interval(flat[name], patients, runs=runs)
        cells = [f"{own.mean:.4f} [{own.low:.4f}, {own.high:.4f}]", "", "", ""]
        if name != SUBJECT:
            gap = statistics.bootstrap_interval(minus[name], patients, runs=runs)
            by_pool = (np.nanmean(one - other) for one, other in zip(found[SUBJECT], found[name], strict=True))
            cells[1:] = [
                f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]",
                f"{adjusted[name]:.2g}" if name in adjusted else "",
                " ".join(f"{value:+.4f}" for value in by_pool),
            ]
        label = f"**{name}**" if name == SUBJECT else f"{name}{' *' if pools[0][name].privileged else ''}"
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return rows


@one_sentence
def main(*folders: str) -> None:
    """Print the table of ``folders``."""
    if len(folders) < 2:
        raise SeggymError("name at least two folders of evaluations, each of another pool")
    print("\n".join(table([results_of(Path(folder)) for folder in folders])))


if __name__ == "__main__":
    main(*sys.argv[1:])
