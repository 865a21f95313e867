"""What each feature of the Hard scans leaves to win, and what simple and trained policies get of it: docs/headroom.md.

python -m benchmarks.headroom cohort=phantom reward_model=phantom-hard
python -m benchmarks.headroom cohort=acdc reward_model=acdc-hard split=split.json steps=6144

Every feature is switched on alone over a plain scan, last all of them together. Finished features are kept in ``out``
and not run again. Options: ``datadir``, ``split``, ``features`` (some of them), ``budget`` (24), ``every`` (1: network
images after every so many lines; the curve between them is interpolated), ``volumes`` (of the test patients; default
all), ``slices`` (64, of the training patients that choose the best fixed order), ``population_greedy`` (false: search
for that order as well), ``greedy_window`` (0 is without; lines on either side of DC that the label-using greedy tries),
``steps`` (0: of PPO, with which a policy is trained for each feature; 0 trains none), ``generations`` (24, of the
search before PPO), ``seeds`` (1, such trainings), ``out``, ``device``.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.headroom.measuring import measure
from benchmarks.headroom.scans import Options, kept, key_of, parsed
from benchmarks.headroom.tables import markdown
from seggym.errors import one_sentence
from seggym.files import write_atomic


@one_sentence
def main(*arguments: str) -> None:
    """Run the features that are missing and print the tables."""
    options: Options = parsed(arguments, Options)
    torch.set_num_threads(1)
    folder = Path(options.out)
    contents: dict[str, dict[str, Any]] = {}
    for name in options.chosen:
        path = folder / f"{options.cohort}-{name.replace(' ', '_')}.json"
        contents[name] = kept(path, key_of(options, name), lambda name=name: measure(options, name))
        text = markdown(contents, options, " ".join(["python -m benchmarks.headroom", *arguments]))
        write_atomic(folder / f"{options.cohort}.md", text.encode())
        print(f"{name}: {contents[name]['seconds']:.0f} s", file=sys.stderr)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
