"""Episodes that scan a whole volume, or both cardiac phases of a patient: 2-D multi-slice, nothing is 3-D encoded."""
