"""What runs of RL4Seg have written about themselves, read again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seggym.agents.rl4seg.scoring import scores_from_json
from seggym.errors import SeggymError
from seggym.files import read_json

EVALUATION, METRICS, EXAMPLE = "evaluation.json", "metrics.csv", "example.png"
# The subject of every comparison: the policy of the last iteration; those of all have its name and their number.
SUBJECT = "rl4seg"
# Scores of label maps as the corrector leaves them, beside those of the part "test".
CORRECTED = "test_corrected"
FORMAT = 2


def read_evaluations(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """``evaluation.json`` of every folder, which must be of one experiment, its seeds apart."""
    found = []
    for folder in folders:
        path = folder / EVALUATION
        content = read_json(path, "evaluation")
        if not isinstance(content, dict) or content.get("format") != FORMAT or "methods" not in content:
            raise SeggymError(f"{path} is no evaluation of RL4Seg: run agents/train_rl4seg.py stage=evaluate again")
        found.append(content)
    first = found[0]
    for folder, content in zip(folders, found, strict=True):
        if content["class_names"] != first["class_names"] or content["name"] != first["name"]:
            raise SeggymError(
                f"{folder} is a run of {content['name']} ({', '.join(content['class_names'])}), {folders[0]} one of "
                f"{first['name']} ({', '.join(first['class_names'])}): report them apart"
            )
        differing = [key for key in ("iterations", "domains") if _experiment(content)[key] != _experiment(first)[key]]
        if differing:
            raise SeggymError(
                f"{folder} and {folders[0]} differ in {' and '.join(differing)}, expected seeds of one experiment that "
                "are all finished: finish the run, or report them apart"
            )
    seeds = [content["seed"] for content in found]
    if len(set(seeds)) < len(seeds):
        raise SeggymError(f"the runs have seeds {seeds}, expected different ones: leave the doubles out")
    return found


def _experiment(content: Mapping[str, Any]) -> dict[str, Any]:
    """What seeds of one experiment share: how far they went, and their domains but for seeds."""
    domains = {key: value for key, value in content["domains"].items() if key != "domain_seed"}
    options = {key: value for key, value in (domains.get("cohort_options") or {}).items() if key != "seed"}
    return {"iterations": content["iterations"], "domains": {**domains, "cohort_options": options}}


def pooled(
    evaluations: Sequence[Mapping[str, Any]], method: str, metric: str, part: str = "test"
) -> tuple[np.ndarray, list[str], list[int]]:
    """Values (n,) of a ``method`` on test (or :data:`CORRECTED`) in all runs, and the patient and the seed of each.

    Runs of one experiment split the same patients in other ways, so the same patient may be tested in several.
    """
    values, patients, seeds = [], [], []
    for content in evaluations:
        scores = scores_from_json(content["methods"][method][part])
        values.append(scores.values(metric))
        patients += list(scores.patients)
        seeds += [content["seed"]] * len(scores.patients)
    return np.concatenate(values), patients, seeds
