"""Adaptation to a new domain: a label map is the action, its correctness the reward (``SegAdapt-*``)."""
