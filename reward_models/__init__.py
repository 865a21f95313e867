"""Networks that score something inside an environment: training, files, frozen inference, metrics."""

from .. import __version__ as _guard  # noqa: F401  a bare `import reward_models` would load every module a second time
