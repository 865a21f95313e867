"""The files of one experiment: what was chosen, trained and scored, so that a kill at any moment loses nothing.

``query_NNN.json`` names the images of a round and is written before anybody annotates them; the weights of a round are
written before ``scores_NNN.json``, which ends it. All files are atomic; tables and lists are made anew from these.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seggym.agents.comparison import differences
from seggym.errors import SeggymError
from seggym.files import read_json, write_atomic, write_json

RUN = "run.json"
_CHECKPOINT = "checkpoint.pt"


class RunRecord:
    """The folders ``results`` and ``weights`` of an experiment called ``name``, which ``identity`` (plain JSON)
    describes; one that was begun with another identity is refused."""

    def __init__(self, results: Path, weights: Path, name: str, identity: Mapping[str, Any]) -> None:
        self.results, self.weights, self.name = results, weights, name
        path = results / RUN
        if path.is_file():
            known = read_json(path, "the description of the run")
            changed = differences(known, dict(identity)) if isinstance(known, dict) else ["everything"]
            if changed:
                raise SeggymError(
                    f"{results} holds a run with another {', '.join(changed[:4])}, expected the one to go on with: "
                    "choose another experiment_name, the settings of that run, or delete the folder"
                )
        else:
            write_json(path, dict(identity))

    def query(self, number: int) -> dict[str, Any] | None:
        """What was chosen for round ``number``: "selected", "certainty"; None where nobody has chosen yet."""
        return self._read(f"query_{number:03d}.json", {"selected", "certainty"})

    def write_query(self, number: int, content: Mapping[str, Any]) -> None:
        """Keep what was chosen."""
        write_json(self.results / f"query_{number:03d}.json", content)

    def scores(self, number: int) -> dict[str, Any] | None:
        """What round ``number`` scored; None where it has not ended."""
        return self._read(f"scores_{number:03d}.json", {"train_size", "map", "val_map"})

    def write_scores(self, number: int, content: Mapping[str, Any]) -> None:
        """Keep what a round scored, which ends it."""
        write_json(self.results / f"scores_{number:03d}.json", content)
        (self.weights / _CHECKPOINT).unlink(missing_ok=True)

    def model(self, number: int) -> Path:
        """The file of the weights of a round; its score is beside it."""
        return self.weights / f"best_model_{number:03d}.safetensors"

    def has_model(self, number: int) -> bool:
        """Whether the weights of a round are there."""
        return self.model(number).is_file() and self.model(number).with_suffix(".json").is_file()

    def load_model(self, number: int) -> tuple[dict[str, Tensor], float | None]:
        """Weights of a round, and their score on the validation images."""
        return load_model(self.model(number))

    def checkpoint(self, number: int) -> dict[str, Any] | None:
        """What a training of round ``number`` that was cut short left; None where there is nothing of it."""
        path = self.weights / _CHECKPOINT
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception:  # torch raises many kinds for a damaged file; the training is then done again
            return None
        return found["state"] if isinstance(found, dict) and found.get("round") == number else None

    def write_checkpoint(self, number: int, state: dict[str, Any]) -> None:
        """Keep what a training needs to go on."""
        content = {"round": number, "state": state}
        write_atomic(self.weights / _CHECKPOINT, lambda path: torch.save(content, path))

    def write_tables(self, rounds: int, classes: Sequence[str]) -> None:
        """``<name>.csv`` and ``trainfiles_iterationNNN.txt`` of all rounds that have ended, as maskAL writes them.

        mAP, AP50 and AP75 are in percent. A file list has all training images, with the certainty of the images that
        the iteration added and NaN for the others.
        """
        names = [f"mAP-{name}" for name in classes]
        rows = [",".join(["train_size", "mAP", *names, "AP50", "AP75", "instances", "vertices"])]
        before: list[str] = []
        for number in range(rounds):
            scores, query = self.scores(number), self.query(number)
            if scores is None or query is None:
                break
            values = [scores["map"], *scores["per_class"], scores["ap50"], scores["ap75"]]
            cells = ["NaN" if value is None else f"{100 * value:.4f}" for value in values]
            rows.append(
                ",".join([str(scores["train_size"]), *cells, str(scores["instances"]), str(scores["vertices"])])
            )
            lines = [f"{name}, NaN" for name in before]
            for name in query["selected"]:
                certainty = query["certainty"].get(name)
                lines.append(f"{name}, {'NaN' if certainty is None else repr(certainty)}")
            before += query["selected"]
            listing = self.results / f"trainfiles_iteration{number:03d}.txt"
            write_changed(listing, "\n".join([*lines, ""]).encode())
        write_changed(self.results / f"{self.name}.csv", "\n".join([*rows, ""]).encode())

    def _read(self, file: str, keys: set[str]) -> dict[str, Any] | None:
        path = self.results / file
        if not path.is_file():
            return None
        content = read_json(path)
        if not isinstance(content, dict) or not keys <= content.keys():
            raise SeggymError(
                f"{path} is damaged (it lacks {', '.join(sorted(keys - set(content)))}): delete it and those of later "
                "rounds, then run the same command again"
            )
        return content


def write_changed(path: Path, content: bytes) -> None:
    """Write ``content``, unless that is what the file holds."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def save_model(path: Path, state: Mapping[str, Tensor], score: float | None) -> None:
    """Write weights and their score; the score, written last, says that they are whole."""
    content = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_atomic(path, lambda temporary: save_file(content, temporary))
    write_json(path.with_suffix(".json"), {"format": 1, "val_map": score})


def load_model(path: Path) -> tuple[dict[str, Tensor], float | None]:
    """What :func:`save_model` wrote."""
    score = read_json(path.with_suffix(".json"), "the score of a model").get("val_map")
    try:
        return load_file(path), score
    except Exception as error:  # safetensors raises kinds of its own
        reason = str(error).splitlines()[0][:80]
        raise SeggymError(f"{path} is damaged ({reason}): delete it, and run the same command again") from None
