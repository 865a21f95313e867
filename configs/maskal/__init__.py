"""Settings of ``run_maskal.py``: the file of maskAL, and the ones for generated images."""

from ... import __version__ as _guard  # noqa: F401  a bare `import configs` would load every module a second time
