"""A page in the browser on which outlines are reviewed, drawn and corrected: ``seggym annotate DIR``."""

from ... import __version__ as _guard  # noqa: F401  a bare `import agents` would load every module a second time
