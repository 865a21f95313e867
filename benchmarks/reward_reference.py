"""Does a reward without labels rank policies as the one with labels does? ``reward_reference`` of docs/results.md.

python benchmarks/reward_reference.py KSpaceSeg-Phantom-Hard-v0 'kwargs={"reward_model": "phantom-hard"}' budget=24

Every label-free baseline, tuned with labels on training patients, runs once on every test slice. Its area (mean quality
over lines) is measured against the labels and against what the network makes of full k-space.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import kendalltau

from seggym.agents.baselines import make_baselines, offered
from seggym.agents.bench import open_bench
from seggym.agents.greedy import episode_key
from seggym.agents.policies import Policy
from seggym.envs.kspace.engine import Episodes, KSpaceEngine
from seggym.errors import one_sentence
from seggym.reward_models.statistics import bootstrap_interval

REFERENCES = ("labels", "full_prediction")


def areas(engine: KSpaceEngine, policy: Policy, budget: int) -> np.ndarray:
    """Mean quality over lines of every slice of ``engine``, (n,)."""
    names = engine.stack.names
    keys = torch.tensor([episode_key("eval", name) for name in names], device=engine.device)
    samples = torch.arange(len(names), device=engine.device)
    engine.begin(samples, Episodes(samples, torch.full_like(samples, budget), keys))
    policy.begin(engine)
    total = torch.zeros_like(engine.quality)
    for _ in range(budget):
        engine.step(policy.act(engine, {}, engine.action_mask()))
        total += engine.quality
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
    found: dict[str, list[np.ndarray]] = {reference: [] for reference in REFERENCES}
    for reference in REFERENCES:
        settings = replace(bench.settings, reward="dense", observation=("acquired",), reward_reference=reference)
        engine = bench.make_engine(settings, len(bench.stack))
        found[reference] = [areas(engine, policy, budget) for policy in policies]
    patients = list(bench.stack.patients)
    print(f"{env_id}, {len(set(patients))} test patients, budgets 1..{budget}, mean [95 % interval over patients]")
    print("| policy | labels | full prediction |\n|---|---|---|")
    for row, policy in enumerate(policies):
        cells = [bootstrap_interval(found[reference][row], patients) for reference in REFERENCES]
        print(f"| {policy.name} | " + " | ".join(f"{c.mean:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in cells) + " |")
    means = [np.array([values.mean() for values in found[reference]]) for reference in REFERENCES]
    whole = kendalltau(*means)
    by_slice = [kendalltau(*(np.array(found[r])[:, i] for r in REFERENCES)).statistic for i in range(len(patients))]
    agreement = bootstrap_interval(by_slice, patients)
    print(f"Kendall's tau of the {len(policies)} policies: {whole.statistic:.2f} (p = {whole.pvalue:.3f});")
    print(f"within a slice: {agreement.mean:.2f} [{agreement.low:.2f}, {agreement.high:.2f}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
