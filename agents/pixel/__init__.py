"""Per-pixel policy gradients on stable-baselines3: every pixel has its own ratio, advantage and value."""

from ... import __version__ as _guard  # noqa: F401  a bare `import agents` would load every module a second time
