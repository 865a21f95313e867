"""Prepared slices of a cohort's patients: made once, then read from the cache on disk, and shared within a process."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from seggym.cohorts.cohort import Cohort
from seggym.kspace.acquisition import Acquisition, SliceStack, prepare
from seggym.reward_models.slice_cache import cached_stack

# To be raised whenever the same files and settings give other slices: when `prepare` or a reader changes its result.
PREPARATION_VERSION = 1

# Training, validation and test slices of one cohort; more than that would be several experiments in one process.
_KEPT = 4
_stacks: OrderedDict[tuple[object, ...], SliceStack] = OrderedDict()


def prepared_slices(cohort: Cohort, patients: Iterable[str], acquisition: Acquisition) -> SliceStack:
    """Every slice of ``patients`` on the grid of ``acquisition``; shared between callers, so not to be written to.

    They come from ``$SEGGYM_HOME/cache/slices`` (see :mod:`seggym.reward_models.slice_cache`) where the same content
    was prepared before. A cohort without a fingerprint is never kept on disk: nothing would tell that it has changed.
    """
    chosen = tuple(sorted(patients))
    identity = {
        "version": PREPARATION_VERSION,
        "cohort": cohort.name,
        "fingerprint": cohort.fingerprint,
        "num_classes": cohort.num_classes,
        "patients": chosen,
        "scan": preparation_settings(acquisition, cohort.measured),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    place = (str(cohort.root), key)
    if place not in _stacks:

        def make() -> SliceStack:
            return prepare(cohort.volumes(chosen), acquisition, cohort.num_classes)

        _stacks[place] = cached_stack(cohort, key, SliceStack, make) if cohort.fingerprint else make()
        while len(_stacks) > _KEPT:
            _stacks.popitem(last=False)
    _stacks.move_to_end(place)
    return _stacks[place]


def preparation_settings(acquisition: Acquisition, measured: bool = False) -> dict[str, Any]:
    """What decides the slices that :func:`~seggym.kspace.acquisition.prepare` makes; the rest does not touch them.

    ``measured`` says that the cohort holds raw k-space.
    """
    simulated = ("matrix", "grid", "crop", "phase", "echo_shift", "orientation", "field_of_view")
    names = ("matrix", "crop", "coils", "initial_lines") if measured else simulated
    return {name: getattr(acquisition, name) for name in names}
