"""Networks that find instances (boxes, classes and masks), how sure they are of them, and how well they do it."""

from ... import __version__ as _guard  # noqa: F401  a bare `import reward_models` would load every module a second time
