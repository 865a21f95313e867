"""Outlined objects of images, and the files of the annotation programs that draw them."""

from ... import __version__ as _guard  # noqa: F401  a bare `import cohorts` would load every module a second time
