"""Active learning: which sample to annotate next (``ALSelect-*``)."""
