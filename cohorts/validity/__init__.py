"""Anatomical validity of a label map: measures, and rules that bound them, as data."""
