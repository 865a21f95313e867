"""Do rewards without labels rank policies as the one with labels does? "A reward without labels" of docs/results.md.

python benchmarks/reward_reference.py KSpaceSeg-Phantom-Hard-v0 'kwargs={"reward_model": "phantom-hard"}' budget=24

Every label-free baseline, tuned with labels on training patients, runs once on every test slice. Its area (mean quality
over lines) is measured against the labels, against what the network makes of full k-space, and, with ``error_net=`` the
folder of a net that agents/train_error_net.py made, by the Dice that this expects.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import kendalltau

from seggym.agents.baselines import make_baselines, offered
from seggym.agents.bench import Bench, open_bench
from seggym.agents.greedy import episode_key
from seggym.agents.policies import Policy
from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.envs.kspace.settings import KSpaceSettings
from seggym.errors import one_sentence
from seggym.reward_models.statistics import bootstrap_interval

Level = Callable[[KSpaceEngine], torch.Tensor]


def levels_of(bench: Bench, error_net: str | None) -> dict[str, tuple[KSpaceSettings, Level]]:
    """By name of a reward the settings of its environment, and what it says of the current images of the scans."""
    settings = replace(bench.settings, reward="dense", observation=("acquired",))
    found: dict[str, tuple[KSpaceSettings, Level]] = {
        "labels": (settings, lambda engine: engine.quality),
        "full prediction": (replace(settings, reward_reference="full_prediction"), lambda engine: engine.quality),
    }
    if error_net is not None:
        expecting = replace(settings, lambda_seg=0.0, lambda_error=1.0, error_net=error_net)
        found["error net"] = expecting, lambda engine: engine.expectation
    return found


def areas(engine: KSpaceEngine, policy: Policy, budget: int, level: Level) -> np.ndarray:
    """Mean over lines of the ``level`` of every slice of ``engine``, (n,)."""
    names = engine.stack.names
    keys = torch.tensor([episode_key("eval", name) for name in names], device=engine.device)
    samples = torch.arange(len(names), device=engine.device)
    engine.begin(samples, Episodes(samples, torch.full_like(samples, budget), keys))
    policy.begin(engine)
    total = torch.zeros_like(level(engine))
    for _ in range(budget):
        engine.step(policy.act(engine, {}, engine.action_mask()))
        total += level(engine)
    return (total / budget).cpu().numpy()


@one_sentence
def main(env_id: str, *arguments: str) -> None:
    """Print both areas of every baseline, and how far the rankings agree."""
    options = dict(argument.split("=", 1) for argument in arguments)
    torch.set_num_threads(1)
    budget = int(options.get("budget", 24))
    bench = open_bench(env_id, {**json.loads(options.get("kwargs", "{}")), "budget": budget})
    names = [name for name in offered(bench.settings.scan.trajectory) if name != "one_step_greedy"]
    ground = bench.ground(budget, progress=False, max_slices=int(options.get("max_slices", 24)))
    policies = [policy for policy in make_baselines(names, ground) if not policy.privileged]
    found = {}
    for name, (settings, level) in levels_of(bench, options.get("error_net")).items():
        engine = bench.make_engine(settings, len(bench.stack))
        found[name] = np.array([areas(engine, policy, budget, level) for policy in policies])
    patients = list(bench.stack.patients)
    print(f"{env_id}, {len(set(patients))} test patients, budgets 1..{budget}, mean [95 % interval over patients]\n")
    print(f"| policy | {' | '.join(found)} |\n|---{'|---' * len(found)}|")
    for row, policy in enumerate(policies):
        cells = [bootstrap_interval(values[row], patients) for values in found.values()]
        print(f"| {policy.name} | " + " | ".join(f"{c.mean:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in cells) + " |")
    labels = found.pop("labels")
    for name, values in found.items():
        whole = kendalltau(labels.mean(1), values.mean(1))
        by_slice = [kendalltau(*columns).statistic for columns in zip(labels.T, values.T, strict=True)]
        agreement = bootstrap_interval(by_slice, patients)
        print(f"\n{name} and labels, Kendall's tau of the {len(policies)} policies: {whole.statistic:.2f} ", end="")
        print(
            f"(p = {whole.pvalue:.3f}); within a slice {agreement.mean:.2f} [{agreement.low:.2f}, {agreement.high:.2f}]"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
