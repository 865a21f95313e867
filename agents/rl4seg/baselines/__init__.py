"""What RL4Seg is compared with, in the same run on the same images."""

from .... import __version__ as _guard  # noqa: F401  a bare `import agents` would load every module a second time
