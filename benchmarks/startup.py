"""Seconds until the first observation, in fresh processes: imports, and an environment on a thousand slices.

python benchmarks/startup.py [results.json]

Every figure is the median of five processes, as wall-clock time and as processor time (the one to compare where others
use the machine). "cold" has neither prepared slices nor content hashes on disk, "warm" has both. The caches lie in a
temporary folder; the phantoms are those of the user and are generated where there are none.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from seggym.cohorts.cohort import cohort_root
from seggym.files import write_json

RUNS = 5
ENV_ID = "KSpaceSeg-Phantom-v0"
# 53 of them are train patients by the default split, with 1,004 slices.
PATIENTS = 79

PROCESS = f"""
import json, time
seconds = {{}}
def lap(name):
    global clocks
    now = time.perf_counter(), time.process_time()
    seconds[name] = [after - before for after, before in zip(now, clocks)]
    clocks = time.perf_counter(), time.process_time()
clocks = time.perf_counter(), time.process_time()
import seggym
lap("import seggym")
import torch
lap("import torch")
import gymnasium
env = gymnasium.make("{ENV_ID}", cohort_options={{"patients": {PATIENTS}}}, device="cpu")
env.reset(seed=0)
lap("make and first reset")
print(json.dumps({{"seconds": seconds, "slices": len(env.unwrapped.engine.stack), "torch": torch.__version__}}))
"""


def run_process(environment: dict[str, str]) -> dict[str, Any]:
    """What one fresh process measured."""
    result = subprocess.run([sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout)


def measure() -> dict[str, Any]:
    """Medians of :data:`RUNS` processes, [wall-clock, processor] seconds by step."""
    with tempfile.TemporaryDirectory(prefix="seggym-startup-") as home:
        environment = {
            **os.environ,
            "SEGGYM_PHANTOM_ROOT": str(cohort_root("phantom").resolve()),
            "SEGGYM_HOME": home,
            "OMP_NUM_THREADS": "1",
        }
        run_process(environment)  # generates the phantoms, and brings what is imported into the disk's cache
        cold, warm = [], []
        for _ in range(RUNS):
            shutil.rmtree(Path(home) / "cache")
            cold.append(run_process(environment))
            warm.append(run_process(environment))
    last = "make and first reset"
    seconds = {name: _median([run["seconds"][name] for run in warm]) for name in ("import seggym", "import torch")}
    for state, runs in (("cold", cold), ("warm", warm)):
        seconds[f"{last}, {state}"] = _median([run["seconds"][last] for run in runs])
    seconds["all of it, warm"] = _median(
        [[sum(clock) for clock in zip(*run["seconds"].values(), strict=True)] for run in warm]
    )
    return {
        "id": ENV_ID,
        "slices": warm[0]["slices"],
        "runs": RUNS,
        "python": platform.python_version(),
        "torch": warm[0]["torch"],
        "seconds": seconds,
    }


def _median(runs: list[list[float]]) -> list[float]:
    """Medians over processes of each clock."""
    return [statistics.median(clock) for clock in zip(*runs, strict=True)]


def main(*arguments: str) -> None:
    """Print the table, and write it as JSON where a path is given."""
    result = measure()
    print(f"{result['id']}, {result['slices']} slices, median of {RUNS} fresh processes, one thread")
    print(f"{'':32}{'wall s':>10}{'CPU s':>10}")
    for step, (wall, processor) in result["seconds"].items():
        print(f"{step:32}{wall:10.2f}{processor:10.2f}")
    if arguments:
        write_json(arguments[0], result)


if __name__ == "__main__":
    main(*sys.argv[1:])
