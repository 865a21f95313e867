"""Benchmarks: scripts, and protocol K1 as a package (`python -m benchmarks.k1`)."""
