"""What an active-learning run leaves behind: ``selection.json``, one strategy with all its seeds.

The file is written atomically, holds nothing but JSON (NaN as null) and is all that ``seggym compare`` reads. Its keys:

=================  ==========================================================================================
format, kind       1 and "selection"
strategy           name, options (plain JSON) and whether it is privileged
seeds              S different integers; the runs of two strategies with the same seed share their start
samples            (R,) annotated samples when the network of round r was trained, all labels that any part of the
                   method saw included; ``samples[0]`` is the start
pool               samples that could be annotated; ``samples / pool`` is the fraction
pixels             (S, R) annotated pixels so far (a scribble annotates the pixels that it covers)
foreground         (S, R) share, 0 to 1, of the pool's foreground pixels that is annotated
cost, cost_unit    (S, R) what the annotation has cost so far, and in what ("minutes", "slices")
volumes, patients  (V,) names of the volumes that are scored, and of their patients
dice               (S, R, V) Dice of each volume in 3-D, mean over classes; null for a failure
full               (V,) Dice with the whole pool annotated, null where nobody trained that
selected           (S, R) lists of the names of the samples that were added before training r, in order of choice
key                all that a Dice depends on beside strategy and seed: identity of data, split, learner, annotation
=================  ==========================================================================================
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seggym.errors import SeggymError
from seggym.files import read_json, write_json

FILE = "selection.json"
FORMAT = 1


@dataclass(frozen=True)
class SelectionResult:
    """One strategy on one pool; the fields and their shapes are those of the file (see the module)."""

    strategy: str
    options: dict[str, Any]
    privileged: bool
    seeds: tuple[int, ...]
    samples: np.ndarray
    pool: int
    pixels: np.ndarray
    foreground: np.ndarray
    cost: np.ndarray
    cost_unit: str
    volumes: tuple[str, ...]
    patients: tuple[str, ...]
    dice: np.ndarray
    full: np.ndarray
    selected: tuple[tuple[tuple[str, ...], ...], ...]
    key: dict[str, Any]

    def __post_init__(self) -> None:
        """Raise :class:`SeggymError` where shapes or values do not fit each other."""
        seeds, rounds, volumes = len(self.seeds), len(self.samples), len(self.volumes)
        shapes = {
            "pixels": (seeds, rounds),
            "foreground": (seeds, rounds),
            "cost": (seeds, rounds),
            "dice": (seeds, rounds, volumes),
            "full": (volumes,),
        }
        for name, shape in shapes.items():
            found = np.shape(getattr(self, name))
            if found != shape:
                raise SeggymError(
                    f"{name} of a selection result has shape {found}, expected {shape} for {seeds} seeds, {rounds} "
                    f"rounds and {volumes} volumes; write one value for each"
                )
        problems = {
            "seeds": seeds == 0 or len(set(self.seeds)) < seeds,
            "samples": rounds == 0 or bool((np.diff(self.samples) <= 0).any()) or self.samples[-1] > self.pool,
            "foreground": bool(((self.foreground < 0) | (self.foreground > 1)).any()),
            "dice": bool(((self.dice < 0) | (self.dice > 1)).any()),
            "volumes": volumes == 0 or len(set(self.volumes)) < volumes,
            "patients": len(self.patients) != volumes,
            "selected": len(self.selected) != seeds or any(len(seed) != rounds for seed in self.selected),
        }
        for name, wrong in problems.items():
            if wrong:
                raise SeggymError(
                    f"{name} of a selection result is {_short(getattr(self, name))}, expected {_EXPECTED[name]}; "
                    "mend it"
                )

    @property
    def fraction(self) -> np.ndarray:
        """Annotated share of the pool by round, (R,)."""
        return self.samples / self.pool

    @property
    def curves(self) -> np.ndarray:
        """Mean Dice over volumes of a patient, then over patients: (S, R)."""
        names = list(dict.fromkeys(self.patients))
        rows = np.asarray([names.index(patient) for patient in self.patients])
        with np.errstate(invalid="ignore"):
            known = ~np.isnan(self.dice)
            sums = np.stack([np.where(known, self.dice, 0)[..., rows == row].sum(-1) for row in range(len(names))], -1)
            counts = np.stack([known[..., rows == row].sum(-1) for row in range(len(names))], -1)
            means = sums / counts
        seen = counts > 0
        return np.where(seen, means, 0).sum(-1) / np.maximum(seen.sum(-1), 1)

    def save(self, folder: Path) -> Path:
        """Write ``selection.json`` to ``folder``, atomically."""
        return write_json(
            folder / FILE,
            {
                "format": FORMAT,
                "kind": "selection",
                "strategy": {"name": self.strategy, "options": self.options, "privileged": self.privileged},
                "seeds": list(self.seeds),
                "samples": self.samples.tolist(),
                "pool": self.pool,
                "pixels": self.pixels.tolist(),
                "foreground": self.foreground.tolist(),
                "cost": self.cost.tolist(),
                "cost_unit": self.cost_unit,
                "volumes": list(self.volumes),
                "patients": list(self.patients),
                "dice": self.dice.tolist(),
                "full": self.full.tolist(),
                "selected": [[list(names) for names in rounds] for rounds in self.selected],
                "key": self.key,
            },
        )


_EXPECTED = {
    "seeds": "at least one, each once",
    "samples": "growing numbers up to the pool",
    "foreground": "shares from 0 to 1",
    "dice": "values from 0 to 1, null for a failure",
    "volumes": "at least one, each once",
    "patients": "one for each volume",
    "selected": "a list of names for each seed and round",
}


def load_selection(path: Path) -> SelectionResult:
    """Read a ``selection.json``; raises :class:`SeggymError` where it is missing, damaged or of another format."""
    content = read_json(path, "selection result")
    try:
        if content["kind"] != "selection" or content["format"] != FORMAT:
            raise SeggymError(
                f"{path} is {content['kind']!r} of format {content['format']}, expected 'selection' of format "
                f"{FORMAT}: run the experiment again with this seggym"
            )
        numbers = {
            name: np.asarray(content[name], dtype=np.float64)
            for name in ("pixels", "foreground", "cost", "dice", "full")
        }
        return SelectionResult(
            strategy=str(content["strategy"]["name"]),
            options=dict(content["strategy"]["options"]),
            privileged=bool(content["strategy"]["privileged"]),
            seeds=tuple(int(seed) for seed in content["seeds"]),
            samples=np.asarray(content["samples"], dtype=np.int64),
            pool=int(content["pool"]),
            cost_unit=str(content["cost_unit"]),
            volumes=tuple(content["volumes"]),
            patients=tuple(content["patients"]),
            selected=tuple(tuple(tuple(names) for names in rounds) for rounds in content["selected"]),
            key=dict(content["key"]),
            **numbers,
        )
    except SeggymError as error:
        raise SeggymError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise SeggymError(f"{path} is damaged ({error!r}): run the experiment again") from None


def joined_seeds(first: SelectionResult, second: SelectionResult) -> SelectionResult:
    """Two results of the same strategy with different seeds as one."""
    both = sorted(set(first.seeds) & set(second.seeds))
    if both:
        raise SeggymError(f"seed {both[0]} of {first.strategy} is there twice, expected every seed once; name it once")
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("pixels", "foreground", "cost", "dice")
    }
    return replace(first, seeds=first.seeds + second.seeds, selected=first.selected + second.selected, **arrays)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
