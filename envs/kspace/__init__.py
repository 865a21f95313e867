"""Adaptive k-space sampling: which line to measure next."""
