"""maskAL, active learning of instances: ``python agents/run_maskal.py --config maskAL.yaml [key=value ...]``."""

import argparse
import os
import sys
from pathlib import Path

from seggym.errors import one_sentence


@one_sentence
def main(arguments: list[str] | None = None) -> None:
    """Run, or go on with, what the file describes."""
    parser = argparse.ArgumentParser(
        description="Active learning for instance segmentation. The same command goes on where it was stopped.",
        epilog="docs/maskal.md says what every key does.",
    )
    parser.add_argument("--config", required=True, type=Path, help="a maskAL.yaml")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="keys that count more than the file's")
    given = parser.parse_args(arguments)
    from seggym.agents.maskal.settings import read_settings

    settings, notes = read_settings(given.config, given.changes)
    for note in notes:
        print(note, flush=True)
    if settings.cuda_visible_devices is not None:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(settings.cuda_visible_devices))
    from seggym.agents.maskal.loop import run
    from seggym.agents.maskal.report import write_report
    from seggym.agents.maskal.workflow import AnnotationsPending

    try:
        run(settings, say=lambda line: print(line, flush=True))
    except AnnotationsPending as pending:
        print(f"Annotations are needed: {pending}")
        return
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.")
        sys.exit(130)
    root = Path(settings.resultsroot) / settings.experiment_name
    print(f"Results: {root}; report: {write_report(root)}")


if __name__ == "__main__":
    main()
