"""The loop of active learning: settings, rounds that resume exactly, results, reports, and files of other programs."""

from ... import __version__ as _guard  # noqa: F401  a bare `import agents` would load every module a second time
