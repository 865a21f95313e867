"""Learning agents, baselines, evaluation and the entry points."""

from .. import __version__ as _guard  # noqa: F401  a bare `import agents` would load every module a second time
