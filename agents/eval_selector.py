"""Evaluate a selector: ``python agents/eval_selector.py load_from_snapshot_base_dir=DIR role=test``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from seggym.configs.checking import plain, require_types
from seggym.errors import SeggymError, one_sentence

if TYPE_CHECKING:
    from seggym.agents.snapshots import LearnedPolicy

_TYPES = {"threads": int, "episodes": int, "budget": int, "replay_episodes": int, "replay": str | None}
# What a selector has learned to look at, wherever it is evaluated.
_ITS_OWN = ("candidates", "class_slots", "observation", "samples_per_query", "unit", "ann_type")


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="eval_selector")
@one_sentence
def main(config: DictConfig) -> None:
    """Evaluate what ``config`` names and write the report."""
    print(run(plain(config)))


def run(values: dict[str, Any]) -> str:
    """Evaluate and write; ``values`` are those of configs/eval_selector.yaml. Returns the table and the report's path.

    Every policy is kept when it is done, so that the same command goes on where it was stopped.
    """
    # Imported here so that --help does not wait for torch.
    import torch

    from seggym.agents.figures import file_name
    from seggym.agents.selection_evaluation import (
        kept_result,
        mean_result,
        named_strategies,
        open_selection_bench,
        ranked_table,
    )
    from seggym.agents.selection_replay import replay
    from seggym.agents.selection_report import chosen_for_replay, table_text, write_selection_report

    require_types({key: values[key] for key in _TYPES}, _TYPES)
    if values["replay"] not in (None, "unet"):
        raise SeggymError(f"replay={values['replay']!r} is unknown, expected unet, or null for none")
    torch.set_num_threads(values["threads"])
    learned, env_id, env_kwargs, output = _subject(values)
    strategies = named_strategies(values["strategies"])
    if len(strategies) + bool(learned) < 2:
        raise SeggymError("there is nothing to compare: name a snapshot and a strategy, or two strategies")
    bench = open_selection_bench(env_id, env_kwargs, values["role"], values["budget"], values["episodes"])
    found = []
    for number, policy in enumerate(learned):
        found.append(kept_result(bench, policy, output / "policies" / f"{policy.name}_{number}"))
    results = [mean_result(found) if len(found) > 1 else found[0]] if found else []
    for strategy in strategies:
        results.append(kept_result(bench, strategy, output / "policies" / file_name(strategy.name)))
        print(f"{strategy.name}: final Dice {results[-1].curves[:, -1].mean():.4f}", flush=True)
    table = ranked_table(results[0], results[1:])
    replayed = None
    if values["replay"] == "unet":
        names = chosen_for_replay(table, values["replay_policies"])
        unknown = sorted(set(names) - set(table.names))
        if unknown:
            raise SeggymError(f"replay_policies names {unknown[0]}, expected some of {', '.join(table.names)}")
        chosen = [table.results[table.names.index(name)] for name in names]
        replayed = replay(bench, chosen, values["replay_episodes"], values["replay_options"] or {}, output)
    path = write_selection_report(bench, table, replayed, output)
    return f"{table_text(bench, table, replayed)}\n\nReport: {path}"


def _subject(values: dict[str, Any]) -> "tuple[list[LearnedPolicy], str, dict[str, Any], Path]":
    """Trained policies, the environment, and the folder for the results."""
    from seggym.agents.snapshots import load_policy, snapshot_folders

    env, pattern, output = values.get("env") or {}, values["load_from_snapshot_base_dir"], values["output"]
    own = {**(env.get("kwargs") or {}), **(values["env_kwargs"] or {})}
    own |= {"data_root": values["datadir"]} if values["datadir"] is not None else {}
    if pattern is None:
        if "id" not in env:
            raise SeggymError("the environment is missing: set load_from_snapshot_base_dir, or env= as in training")
        return [], env["id"], own, Path(output or Path("runs") / env["id"] / "strategies")
    folders = snapshot_folders(pattern)
    learned = [load_policy(folder) for folder in folders]
    card = learned[0].card
    for folder, policy in zip(folders, learned, strict=True):
        different = [
            name for name in ("algorithm", "env_id", "env_kwargs", "network") if policy.card[name] != card[name]
        ]
        if different:
            raise SeggymError(
                f"snapshots {folders[0]} and {folder} differ in {', '.join(different)}, so they are no training "
                "runs of one method: evaluate them one by one"
            )
        policy.name = f"selector_{card['algorithm']}"
    its_own = {name: card["env_kwargs"][name] for name in _ITS_OWN if name in card["env_kwargs"]}
    kwargs = {**own, **its_own} if env.get("id") else {**card["env_kwargs"], **own, **its_own}
    env_id = env.get("id") or card["env_id"]
    if output is None:
        base = str(folders[0]) if len(folders) == 1 else os.path.commonpath([folder.resolve() for folder in folders])
        output = Path(base) / f"evaluation_{env_id}"
    return learned, env_id, kwargs, Path(output)


if __name__ == "__main__":
    main()
