"""Which patients train, validate and test: drawn by patient, stratified by pathology group, or read from a file.

The draw depends on the patient names, their groups and the seed alone, not on the order in which they are given.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seggym.cohorts.cohort import Cohort
from seggym.errors import SeggymError
from seggym.files import read_json, write_json

ROLES = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Patients by role. ``seed`` and ``fold`` say how it was drawn; both are None for a split made by hand."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    seed: int | None = None
    fold: int | None = None


@dataclass(frozen=True)
class SelectionRoles:
    """Patients by what they do in active learning; nobody is in two roles.

    A learner's predictions on ``state`` are what an agent sees of it, ``pool`` is where samples are annotated,
    ``reward`` is what the learner is scored on while it is taught; ``val`` and ``test`` stay out of all that.
    """

    state: tuple[str, ...]
    pool: tuple[str, ...]
    reward: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def make_split(groups: Mapping[str, str], fractions: Sequence[float] = (0.67, 0.13, 0.20), seed: int = 0) -> Split:
    """Split the patients of ``groups`` (patient -> group) into train, val and test.

    The size of each role is its fraction of all patients, rounded by largest remainder; with as many patients as roles
    no role with a positive fraction is empty. Each group is spread in proportion: its number of patients in a role is
    the exact share rounded up or down.
    """
    fractions = _valid_fractions(fractions)
    sizes = largest_remainder(len(groups), fractions)
    wanted = [role for role, fraction in enumerate(fractions) if fraction > 0]
    for role in wanted:
        if sizes[role] == 0 and len(groups) >= len(wanted):
            sizes[int(np.argmax(sizes))] -= 1
            sizes[role] = 1
    train, val, test = _draw(groups, sizes, seed)
    return Split(train, val, test, seed=seed)


def make_folds(patients: Iterable[str], groups: Mapping[str, str], k: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Deal ``patients`` into ``k`` folds whose sizes differ by at most one, each group spread in proportion."""
    chosen = {patient: groups[patient] for patient in patients}
    if not 2 <= k <= len(chosen):
        raise SeggymError(f"the number of folds is {k}, expected 2 to {len(chosen)}, the number of patients")
    return _draw(chosen, largest_remainder(len(chosen), [1 / k] * k), seed)


def cross_validation(groups: Mapping[str, str], k: int, fold: int, seed: int = 0, val_fraction: float = 0.15) -> Split:
    """Fold ``fold`` of ``k`` (from 0) is the test set; ``val_fraction`` of the other patients validate."""
    if not 0 <= fold < k:
        raise SeggymError(f"the fold is {fold}, expected 0 to {k - 1} for {k} folds")
    if not 0 <= val_fraction < 1:
        raise SeggymError(f"the validation fraction is {val_fraction:g}, expected 0 or more and less than 1")
    test = make_folds(groups, groups, k, seed)[fold]
    rest = {patient: group for patient, group in groups.items() if patient not in test}
    inner = make_split(rest, (1 - val_fraction, val_fraction, 0.0), seed)
    return Split(inner.train, inner.val, test, seed=seed, fold=fold)


def split_cohort(cohort: Cohort, path: str | os.PathLike[str] | None = None, seed: int = 0) -> Split:
    """The roles of a cohort's patients: those of the split file at ``path``, else drawn by ``seed``.

    Where the cohort sets patients apart for testing, they are the test role and the others are drawn; where it also
    sets some apart for validation, nothing is drawn.
    """
    if path is not None:
        return load_split(path, cohort.patients)
    if not cohort.official_test:
        return make_split(cohort.groups, seed=seed)
    test, val = cohort.official_test, cohort.official_val
    rest = {patient: group for patient, group in cohort.groups.items() if patient not in test | val}
    if val:
        return Split(tuple(sorted(rest)), tuple(sorted(val)), tuple(sorted(test)))
    drawn = make_split(rest, (0.83, 0.17, 0.0), seed)
    return Split(drawn.train, drawn.val, tuple(sorted(test)), seed=seed)


def selection_roles(
    split: Split,
    groups: Mapping[str, str],
    role: str = "train",
    shares: Sequence[float] = (0.1, 0.6, 0.3),
    seed: int = 0,
) -> SelectionRoles:
    """Deal the ``role`` patients of ``split`` (train, val, test, or all) into state, pool and reward.

    ``shares`` are those of state, pool and reward, with sum 1. An agent learns among the train patients and is
    evaluated among the test patients, of whom neither it nor a network has seen anything. Without a share of their own
    the ``reward`` patients are those of val, who then are not ``val`` any more.
    """
    named = {name: getattr(split, name) for name in ROLES}
    chosen = [patient for name in (ROLES if role == "all" else (role,)) for patient in named[name]]
    needed = sum(share > 0 for share in shares)
    if len(chosen) < needed:
        raise SeggymError(
            f"role={role} has {len(chosen)} patients ({', '.join(chosen) or 'none'}), expected at least {needed}, one "
            "for each of state, pool and reward; choose another role or another split"
        )
    dealt = make_split({patient: groups[patient] for patient in chosen}, shares, seed)
    val, test = (() if role in (name, "all") else named[name] for name in ("val", "test"))
    reward = dealt.test
    if not reward:
        reward, val = val, ()
    return SelectionRoles(dealt.train, dealt.val, reward, val, test)


def save_split(split: Split, path: str | os.PathLike[str]) -> Path:
    """Write ``split`` as JSON, atomically."""
    content = {role: list(getattr(split, role)) for role in ROLES}
    return write_json(path, {**content, "seed": split.seed, "fold": split.fold})


def load_split(path: str | os.PathLike[str], patients: Iterable[str]) -> Split:
    """Read a split made by :func:`save_split` or by hand, ``{"train": [...], "val": [...], "test": [...]}``.

    ``patients`` are those of the cohort; some of them may be in no role. A patient named twice or unknown to the
    cohort raises :class:`SeggymError`.
    """
    content = read_json(path, "split file")
    if not isinstance(content, dict) or not all(_is_names(content.get(role)) for role in ROLES):
        raise SeggymError(
            f'split file {path} is not of the form {{"train": [...], "val": [...], "test": [...]}} with lists of '
            "patient names; write it so, with an empty list for a role without patients"
        )
    named = [(patient, role) for role in ROLES for patient in content[role]]
    first: dict[str, str] = {}
    for patient, role in named:
        if patient in first:
            raise SeggymError(
                f"split file {path} names patient {patient} in {first[patient]} and again in {role}, expected every "
                "patient in one role; remove one of them"
            )
        first[patient] = role
    unknown = sorted(first.keys() - set(patients))
    if unknown:
        raise SeggymError(
            f"split file {path} names {', '.join(unknown)}, which the cohort does not have; remove the names or point "
            "data_root at the cohort that the split was made for"
        )
    seed, fold = (value if isinstance(value := content.get(key), int) else None for key in ("seed", "fold"))
    train, val, test = (tuple(content[role]) for role in ROLES)
    return Split(train, val, test, seed=seed, fold=fold)


def largest_remainder(total: int, fractions: Sequence[float]) -> list[int]:
    """Integers that sum to ``total`` in proportion to ``fractions`` (which sum to 1), by largest remainder."""
    # Rounded, so that 0.2 * 30 = 6.000000000000001 and the like neither gain nor lose a patient.
    exact = np.round(np.asarray(fractions, float) * total, 9)
    sizes = np.floor(exact).astype(int)
    for index in np.argsort(sizes - exact, kind="stable")[: total - int(sizes.sum())]:
        sizes[index] += 1
    return [int(size) for size in sizes]


def _draw(groups: Mapping[str, str], sizes: Sequence[int], seed: int) -> list[tuple[str, ...]]:
    """Deal the patients into sets of the given ``sizes``, each group in proportion; every set is sorted."""
    rng = np.random.default_rng(seed)
    members: dict[str, list[str]] = {}
    for patient in sorted(groups):
        members.setdefault(groups[patient], []).append(patient)
    names = sorted(members)
    table = _proportional_table([len(members[name]) for name in names], sizes, rng)
    sets: list[list[str]] = [[] for _ in sizes]
    for name, counts in zip(names, table, strict=True):
        shuffled = [members[name][index] for index in rng.permutation(len(members[name]))]
        for chosen, end, count in zip(sets, np.cumsum(counts), counts, strict=True):
            chosen += shuffled[end - count : end]
    return [tuple(sorted(chosen)) for chosen in sets]


def _proportional_table(rows: Sequence[int], columns: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Integers with the given row and column sums, each its proportional share rounded up or down.

    Such a table always exists (Bacharach, Management Science 1966). Which shares are rounded up is a transport problem
    whose linear programme has integer corners; the larger remainders are preferred and ``rng`` breaks the ties.
    """
    from scipy.optimize import linprog  # half a second to import, which only those who make a split should pay

    total = sum(rows)
    if total == 0:
        return np.zeros((len(rows), len(columns)), int)
    product = np.outer(rows, columns)
    table, remainder = product // total, product % total
    preference = remainder / total + 1e-3 * rng.random(table.shape)
    row_sums = np.kron(np.eye(len(rows)), np.ones(len(columns)))
    column_sums = np.kron(np.ones(len(rows)), np.eye(len(columns)))
    missing = np.concatenate([rows - table.sum(1), columns - table.sum(0)])
    upper = (remainder > 0).astype(float).ravel()
    result = linprog(
        -preference.ravel(),
        A_eq=np.vstack([row_sums, column_sums]),
        b_eq=missing,
        bounds=np.stack([np.zeros_like(upper), upper], axis=1),
        method="highs-ds",
    )
    return table + np.rint(result.x).astype(int).reshape(table.shape)


def _valid_fractions(fractions: Sequence[float]) -> list[float]:
    values = [float(fraction) for fraction in fractions]
    if len(values) != len(ROLES) or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise SeggymError(
            f"the split fractions are {values}, expected three numbers >= 0 (train, val, test) with sum 1"
        )
    return values


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
