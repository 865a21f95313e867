"""``python -m benchmarks.k1 preset=tiny out=runs/k1/tiny``; see docs/protocol_k1.md."""

import sys
from pathlib import Path

import torch

from benchmarks.k1.evaluating import evaluation_tasks
from benchmarks.k1.networks import network_tasks
from benchmarks.k1.policies import policy_tasks
from benchmarks.k1.protocol import STAGES, Protocol, freeze, read_options
from benchmarks.k1.sharing import work_through
from benchmarks.k1.table import write_table
from seggym.errors import one_sentence


@one_sentence
def main(*arguments: str) -> None:
    """Run the stages that are not done, up to ``stage``, and print the table."""
    runtime, _ = read_options(arguments)
    torch.set_num_threads(runtime["threads"])
    protocol = freeze(arguments)
    last = STAGES.index(runtime["stage"])
    run_stages(protocol, last)
    if last >= STAGES.index("table"):
        print(write_table(protocol, None if runtime["docs"] is None else Path(runtime["docs"])))


def run_stages(protocol: Protocol, last: int) -> None:
    """Networks, policies and evaluations, as far as stage number ``last`` of :data:`STAGES`."""
    for number, tasks in enumerate((network_tasks, policy_tasks, evaluation_tasks)):
        if number <= last:
            work_through(tasks(protocol))


if __name__ == "__main__":
    main(*sys.argv[1:])
