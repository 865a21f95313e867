"""Groups of ``train_rl4seg.yaml``: experiments."""

from ... import __version__ as _guard  # noqa: F401  a bare `import configs` would load every module a second time
