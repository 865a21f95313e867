"""Groups of ``run_al.yaml``: experiments, strategies, models, and images as a cohort."""

from ... import __version__ as _guard  # noqa: F401  a bare `import configs` would load every module a second time
