"""One file, several experiments: what differs between them, and what each is called."""

from dataclasses import dataclass
from typing import Any

from seggym.agents.maskal.settings import MaskalSettings
from seggym.errors import SeggymError

_MANY = ("strategies", "mode", "dropout_probability", "mcd_iterations", "pool_size", "loops")


@dataclass(frozen=True)
class Experiment:
    """One strategy with one seed: ``queries`` says how many images are annotated after each training."""

    name: str
    strategy: str
    mode: str
    dropout: float
    passes: int
    queries: tuple[int, ...]
    seed: int


def experiments(settings: MaskalSettings) -> list[Experiment]:
    """The experiments of ``settings``, those of a seed one after the other.

    Of strategies, mode, dropout_probability, mcd_iterations, pool_size and loops a list has a value for each
    experiment, and a single value is for all. Without equal_pool_size, pool_size and loops are schedules: pool_size
    [50, 100] with loops [8, 4] is 8 queries of 50 images and then 4 of 100; lists of lists have one for each.
    """
    given: dict[str, Any] = {key: getattr(settings, key) for key in _MANY}
    if not settings.equal_pool_size:
        for key in ("pool_size", "loops"):
            given[key] = _schedules(key, given[key])
    lengths = {key: len(value) for key, value in given.items() if isinstance(value, list)}
    count = max(lengths.values(), default=1)
    wrong = {key: length for key, length in lengths.items() if length not in (1, count)}
    if wrong or 0 in lengths.values():
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise SeggymError(f"lists must have one value for each experiment, or one for all, found other numbers: {told}")
    rows = {
        key: value * (count // len(value)) if isinstance(value, list) else [value] * count
        for key, value in given.items()
    }
    found: list[Experiment] = []
    for seed in settings.seed if isinstance(settings.seed, list) else [settings.seed]:
        for number in range(count):
            one = {key: row[number] for key, row in rows.items()}
            queries = _queries(one["pool_size"], one["loops"], settings.equal_pool_size)
            name = _name(number, one, settings.equal_pool_size)
            found.append(
                Experiment(
                    name,
                    one["strategies"],
                    one["mode"],
                    one["dropout_probability"],
                    one["mcd_iterations"],
                    queries,
                    seed,
                )
            )
    if len({(one.name, one.seed) for one in found}) < len(found):
        raise SeggymError("two experiments are the same, expected each once: change strategies, or the seeds")
    return found


def _schedules(key: str, value: Any) -> list[list[int]]:
    """One schedule for each experiment."""
    if not isinstance(value, list):
        return [[value]]
    if not any(isinstance(part, list) for part in value):
        return [value]
    if not all(isinstance(part, list) for part in value):
        raise SeggymError(f"{key}={value} mixes numbers and lists, expected a list of schedules, or one schedule")
    return value


def _queries(sizes: Any, loops: Any, equal: bool) -> tuple[int, ...]:
    if equal:
        if isinstance(sizes, list) or isinstance(loops, list):
            raise SeggymError("pool_size or loops hold lists of lists, expected numbers: set equal_pool_size to False")
        return (sizes,) * loops
    if len(sizes) != len(loops):
        raise SeggymError(f"pool_size={sizes} and loops={loops} are one schedule, expected equally many entries")
    return tuple(size for size, times in zip(sizes, loops, strict=True) for _ in range(times))


def _name(number: int, one: dict[str, Any], equal: bool) -> str:
    """The folder of an experiment: what maskAL tells apart by name."""
    pool = one["pool_size"] if equal else f"hybrid{number + 1:02d}"
    if one["strategies"] not in ("uncertainty", "certainty"):
        return f"{one['strategies']}_{pool}"
    return f"{one['strategies']}_{one['mode']}_{one['dropout_probability']:g}_{one['mcd_iterations']}_{pool}"
