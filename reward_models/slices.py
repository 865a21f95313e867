"""Prepared slices of a cohort's patients, made once per process."""

from collections import OrderedDict
from collections.abc import Iterable

from seggym.cohorts.cohort import Cohort
from seggym.kspace.acquisition import Acquisition, SliceStack, prepare

# Training, validation and test slices of one cohort; more than that would be several experiments in one process.
_KEPT = 4
_cache: OrderedDict[tuple[object, ...], SliceStack] = OrderedDict()


def prepared_slices(cohort: Cohort, patients: Iterable[str], acquisition: Acquisition) -> SliceStack:
    """Every slice of ``patients`` on the grid of ``acquisition``; shared between callers, so not to be written to."""
    chosen = tuple(sorted(patients))
    key = (cohort.name, cohort.root, cohort.fingerprint, cohort.num_classes, chosen, acquisition)
    if key not in _cache:
        _cache[key] = prepare(cohort.volumes(chosen), acquisition, cohort.num_classes)
        while len(_cache) > _KEPT:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]
