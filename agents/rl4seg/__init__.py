"""RL4Seg: a segmentation policy adapted to a domain without labels by a learned reward; stages, baselines, report."""

from ... import __version__ as _guard  # noqa: F401  a bare `import agents` would load every module a second time
