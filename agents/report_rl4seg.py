"""One report of several seeds of RL4Seg: ``python agents/report_rl4seg.py runs/rl4seg/phantom``."""

import argparse
from pathlib import Path

from seggym.agents.rl4seg.report import finished_runs, write_report
from seggym.errors import one_sentence


@one_sentence
def main() -> None:
    """Write ``report.html``, ``comparison.json`` and ``figures/`` into the first folder, or into ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run folder, or a folder of run folders")
    parser.add_argument("--out", type=Path, help="where the report goes (default: the first DIR)")
    options = parser.parse_args()
    runs = [run for folder in options.folders for run in finished_runs(folder)]
    print(write_report(list(dict.fromkeys(runs)), options.out or options.folders[0]))


if __name__ == "__main__":
    main()
