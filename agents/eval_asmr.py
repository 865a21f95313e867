"""Evaluate: ``python agents/eval_asmr.py load_from_snapshot_base_dir=DIR 'eval_range=[1,12]' role=test``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from seggym.configs.checking import plain, require_types
from seggym.errors import SeggymError, one_sentence

if TYPE_CHECKING:
    from seggym.agents.policies import Policy
    from seggym.agents.snapshots import LearnedPolicy

# Keys of the command line that are arguments of the environment.
_ENV_ARGUMENTS = {"datadir": "data_root", "split": "split", "reward_model_dir": "reward_model", "device": "device"}
_TYPES = {"threads": int, "repeats": int, "window": int, "max_slices": int, "progress_bar": bool}
# What the environments of several snapshots must have in common to be training runs of one method.
_SHARED = (
    "cohort",
    "cohort_options",
    "split",
    "acquisition",
    "reward_model",
    "candidates",
    "stop_action",
    "reconstruction",
)


@hydra.main(version_base="1.3", config_path="pkg://seggym.configs", config_name="eval_asmr")
@one_sentence
def main(config: DictConfig) -> None:
    """Evaluate what ``config`` names and write the report."""
    print(run(plain(config)))


def run(values: dict[str, Any]) -> str:
    """Evaluate and write; ``values`` are those of configs/eval_asmr.yaml. Returns the table and the report's path."""
    # Imported here so that --help does not wait for torch.
    import torch

    from seggym.agents.bench import open_bench
    from seggym.agents.evaluation import bench_baselines, check_range, evaluate_policies
    from seggym.agents.report import write_report

    require_types({key: values[key] for key in _TYPES}, _TYPES)
    torch.set_num_threads(values["threads"])
    runs, env_id, env_kwargs, output = _subject(values)
    bench = open_bench(env_id, env_kwargs, values["role"], values["net_b"])
    _, high = check_range(values["eval_range"], bench.settings)
    progress = values["progress_bar"]
    ground = bench.ground(high, progress=progress, max_slices=values["max_slices"], window=values["window"])
    baselines = bench_baselines(bench, values["baselines"], ground)
    if not runs and not baselines:
        raise SeggymError("there is nothing to evaluate: name a snapshot, a policy or baselines")
    result = evaluate_policies(
        bench,
        [*([runs] if runs else []), *baselines],
        values["eval_range"],
        protocol=values["protocol"],
        repeats=values["repeats"],
        surface_budgets=values["surface_budgets"],
        cache=output / "evaluation_cache",
        progress=progress,
    )
    write_report(result, output)
    return f"{result.table()}\n\nReport: {output / 'report.html'}"


def _subject(values: dict[str, Any]) -> "tuple[list[Policy], str, dict[str, Any], Path]":
    """What is evaluated, the environment, and the folder for the results."""
    from seggym.agents.policies import load_callable

    given = {name: values[key] for key, name in _ENV_ARGUMENTS.items() if values[key] is not None}
    if "data_root" in given:
        given["root"] = None  # a snapshot may know its folder by this name, on another machine
    snapshots, function = values["load_from_snapshot_base_dir"], values["policy"]
    if snapshots is not None and function is not None:
        raise SeggymError("load_from_snapshot_base_dir and policy are both set: evaluate one of them at a time")
    env = values.get("env") or {}
    own = {**(env.get("kwargs") or {}), **given}
    env_id, output = env.get("id"), values["output"]
    if snapshots is not None:
        return _snapshots(snapshots, env_id, own, output)
    if env_id is None:
        raise SeggymError("the environment is missing: set load_from_snapshot_base_dir, or env= as in training")
    policies: list[Policy] = [] if function is None else [load_callable(function)]
    name = "baselines" if function is None else function.replace(":", ".")
    return policies, env_id, own, Path(output or Path("runs") / env_id.rpartition(":")[2] / name)


def _snapshots(
    pattern: str | Sequence[str], env_id: str | None, own: dict[str, Any], output: str | None
) -> "tuple[list[Policy], str, dict[str, Any], Path]":
    from seggym.agents.bench import settings_of
    from seggym.agents.snapshots import load_policy, snapshot_folders
    from seggym.reward_models.frozen import resolve_device

    folders = snapshot_folders(pattern)
    learned: list[LearnedPolicy] = [load_policy(folder) for folder in folders]
    card = learned[0].card
    if env_id is not None and env_id.rpartition(":")[2] != card["env_id"].rpartition(":")[2]:
        raise SeggymError(f"snapshot {folders[0]} was trained in {card['env_id']}, not in {env_id}: leave env= out")
    env_kwargs = {**card["env_kwargs"], **own}
    settings = settings_of(card["env_id"], env_kwargs)
    for folder, policy in zip(folders, learned, strict=True):
        other = settings_of(policy.card["env_id"], {**policy.card["env_kwargs"], **own})
        different = [name for name in _SHARED if getattr(other, name) != getattr(settings, name)]
        different += ["observation"] if set(policy.observation) != set(learned[0].observation) else []
        different += ["algorithm"] if policy.card["algorithm"] != card["algorithm"] else []
        if different:
            raise SeggymError(
                f"snapshots {folders[0]} and {folder} differ in {', '.join(different)}, so they are no training "
                "runs of one method: evaluate them one by one"
            )
        policy.name = card["algorithm"]
        policy.policy.to(resolve_device(settings.device))
    if output is None:
        output = str(folders[0]) if len(folders) == 1 else os.path.commonpath([folder.resolve() for folder in folders])
    return list(learned), card["env_id"], env_kwargs, Path(output)


if __name__ == "__main__":
    main()
