"""Active learning for instance segmentation, with a human or a simulated annotator in the loop."""

from ... import __version__ as _guard  # noqa: F401  a bare `import agents` would load every module a second time
