"""DICOM files: one slice to one array, and the spacing that only a series of slices tells."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seggym.cohorts.scans import NOMINAL_SPACING, UNREADABLE, Complain, Scan, unreadable
from seggym.files import write_atomic


def read_dicom(path: Path, complain: Complain, *, window: tuple[float, float] | None = None) -> Scan | None:
    """Read one DICOM file as (Z, Y, X) in the units that its rescale slope and intercept give (CT: Hounsfield).

    ``window`` = (level, width) clips the values and maps them to [0, 1]. Spacing is the header's, in mm, nominal where
    it states none. None after a complaint.
    """
    # Imported where a file is read: it takes 0.1 s, and an environment on cached slices reads none.
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_rescale

    try:
        header = _read(path)
        values = np.asarray(apply_rescale(header.pixel_array, header))
        spacing = _spacing(header)
    # pydicom has AttributeError for missing elements and RuntimeError for compressions without a decoder.
    except (InvalidDicomError, AttributeError, TypeError, RuntimeError, *UNREADABLE) as error:
        complain(path, unreadable(error))
        return None
    if int(header.get("SamplesPerPixel", 1)) != 1:
        complain(path, "is a colour picture, expected one number per pixel; export the original slice")
        return None
    if window is not None:
        level, width = window
        values = np.clip((values - (level - width / 2)) / width, 0, 1).astype(np.float32)
    return Scan(values.reshape(-1, *values.shape[-2:]), spacing)


def series_spacing(files: Sequence[Path]) -> tuple[float, float, float] | None:
    """(z, y, x) in mm of slices in ``files``, z from their positions; None where the headers do not tell."""
    from pydicom.errors import InvalidDicomError

    try:
        first, last = (_read(files[index], stop_before_pixels=True) for index in (0, -1))
        length = np.subtract(last.ImagePositionPatient, first.ImagePositionPatient).astype(float)
        z = float(np.linalg.norm(length)) / (len(files) - 1)
        return (z, *_spacing(first)[1:]) if z > 0 else None
    except (InvalidDicomError, AttributeError, TypeError, ZeroDivisionError, *UNREADABLE):
        return None


def write_dicom(
    path: Path, values: np.ndarray, spacing: tuple[float, float, float], z: float, intercept: float
) -> None:
    """Write one slice (Y, X) of uint16; ``z`` is its position in mm, ``intercept`` what a reader adds to the values."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    # Derived from the path, so that the same example is written twice byte for byte.
    uid = generate_uid(entropy_srcs=[str(path)])
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = uid
    header.Rows, header.Columns = values.shape
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation, header.SamplesPerPixel = 15, 0, 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.RescaleIntercept, header.RescaleSlope = intercept, 1
    header.PixelSpacing = list(spacing[1:])
    header.SliceThickness = spacing[0]
    header.ImagePositionPatient = [0.0, 0.0, z]
    header.PixelData = values.astype("<u2").tobytes()
    write_atomic(path, lambda temporary: header.save_as(temporary, enforce_file_format=True))


def _read(path: Path, **options: Any) -> Any:
    from pydicom import dcmread

    with warnings.catch_warnings():  # what it warns of in a damaged file is an error a line later, or no matter
        warnings.simplefilter("ignore")
        return dcmread(path, **options)


def _spacing(header: Any) -> tuple[float, float, float]:
    z = header.get("SpacingBetweenSlices") or header.get("SliceThickness") or NOMINAL_SPACING[0]
    y, x = header.get("PixelSpacing") or NOMINAL_SPACING[1:]
    spacing = (abs(float(z)), float(y), float(x))
    if not all(np.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"its header states the voxel spacing {spacing}")
    return spacing
