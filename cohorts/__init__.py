"""Patients: readers, phantoms, splits and checks."""

from .. import __version__ as _guard  # noqa: F401  a bare `import cohorts` would load every module a second time
