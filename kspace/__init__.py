"""The physics of Cartesian k-space sampling; no networks."""

from .. import __version__ as _guard  # noqa: F401  a bare `import kspace` would load every module a second time
