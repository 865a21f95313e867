"""From the official ACDC download to numbered PNG slices."""

import os
from pathlib import Path

from seggym.cohorts.acdc import open_acdc
from seggym.cohorts.acdc_png import write_png_patient
from seggym.errors import SeggymError


def convert_acdc_to_png(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> int:
    """Write the NIfTI cohort at ``source`` in the PNG layout (:mod:`seggym.cohorts.acdc_png`); returns the volumes.

    The slices of a patient are numbered over ED and then ES. Each volume is scaled to 0..255 by its maximum, so that
    nothing is clipped; ``volume.json`` keeps frames, spacing and pathology group. Scribbles are not converted.
    ``destination`` must be empty or not exist yet.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise SeggymError(
            f"{destination} is not an empty folder, expected one to write the PNG files to; choose another"
        )
    cohort = open_acdc(source, layout="nifti")
    return sum(
        write_png_patient(destination / patient, cohort.groups[patient], cohort.read(patient))
        for patient in cohort.patients
    )
