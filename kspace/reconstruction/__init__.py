"""Reconstruction: what turns the measured lines into the image that is shown and scored.

A method maps hybrid space complex (B, J, M, M) (:mod:`seggym.kspace.simulation`), the measured lines bool (B, M) and
the acquisition to a magnitude float (B, C, C). It never reads a line that is not measured.
"""
