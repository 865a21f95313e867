"""One image file to one array: NIfTI, PNG, JPEG, TIFF, NPY and HDF5, with one phrase for each possible fault.

Readers and ``seggym check-data`` share these functions. Faults go to a ``complain(path, message)``: a reader passes
:func:`refuse`, which raises at the first fault, a check passes one that collects them all. A message is the rest of a
sentence that begins with the path.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from seggym.errors import SeggymError
from seggym.files import write_atomic

Complain = Callable[[Path, str], None]

NIFTI = (".nii.gz", ".nii")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SUFFIXES = (*NIFTI, *PICTURES, ".npy")
NOMINAL_SPACING = (1.0, 1.0, 1.0)  # (z, y, x) in mm, for the formats that state none

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)

# What the libraries raise on a truncated, damaged or foreign file.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, SyntaxError, zlib.error)


@dataclass(frozen=True)
class Scan:
    """The content of one file: ``values`` (Z, Y, X) in the type of the file, ``spacing`` (z, y, x) in mm."""

    values: np.ndarray
    spacing: tuple[float, float, float] = NOMINAL_SPACING


Reader = Callable[[Path, Complain], Scan | None]


def refuse(path: Path, message: str) -> None:
    """The ``complain`` of a reader: raise :class:`SeggymError` at the first fault."""
    raise SeggymError(f"{path} {message} (`seggym check-data` lists every problem of a folder at once)")


def read_scan(path: Path, complain: Complain, *, colour: bool = False) -> Scan | None:
    """Read one image file as (Z, Y, X); a 2-D file has Z = 1. None after a complaint.

    NIfTI (X, Y, Z) is transposed and its header gives the spacing; NPY is (Y, X) or (Z, Y, X); the pages of a TIFF are
    slices; a palette picture gives its indices. ``colour`` turns RGB pictures into luminance (ITU-R 601); without it
    they are a fault.
    """
    try:
        if path.name.lower().endswith(NIFTI):
            values, spacing = _read_nifti(path)
        elif path.suffix.lower() == ".npy":
            values, spacing = np.load(path, allow_pickle=False), NOMINAL_SPACING
        else:
            values, spacing = _read_picture(path, colour), NOMINAL_SPACING
    except UNREADABLE as error:
        complain(path, unreadable(error))
        return None
    return _checked(path, values, spacing, complain)


def read_h5(path: Path, complain: Complain, *, dataset: str, colour: bool = False) -> Scan | None:
    """Read ``dataset`` of an HDF5 file, (Y, X) or (Z, Y, X); the spacing is nominal. None after a complaint.

    ``colour`` expects a last axis of RGB and turns it into luminance (ITU-R 601).
    """
    try:
        with h5py.File(path, "r") as file:
            found = sorted(file)
            values = np.asarray(file[dataset]) if dataset in file else None
    except UNREADABLE as error:
        complain(path, unreadable(error))
        return None
    if values is None:
        complain(path, f"has no dataset {dataset!r}, found {', '.join(found) or 'none'}; export it again")
        return None
    if colour:
        if values.ndim < 3 or values.shape[-1] != 3:
            complain(path, f"holds {dataset!r} of shape {values.shape}, expected a last axis of RGB; export it again")
            return None
        values = (values @ _LUMINANCE).astype(np.float32)
    return _checked(path, values, NOMINAL_SPACING, complain)


def renumbered(read: Reader, codes: Mapping[int, int]) -> Reader:
    """A reader of label files whose numbers ``codes`` maps to classes; any other number is a fault."""
    return partial(_renumber, read, codes)


def slice_shape(path: Path) -> tuple[int, ...] | None:
    """(rows, columns) of a single-slice file, from its header; None for a stack and for an unreadable file."""
    try:
        if path.name.lower().endswith(NIFTI):
            shape = _open_nifti(path).shape[::-1]
        elif path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        else:
            with Image.open(path) as picture:
                shape = (getattr(picture, "n_frames", 1), picture.height, picture.width)
    except UNREADABLE:
        return None
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape) if len(shape) == 2 else None


def image_faults(values: np.ndarray) -> list[str]:
    """What makes ``values`` unfit as a magnitude image."""
    if values.dtype.kind not in "fiub":
        return [f"holds {values.dtype} values, expected one real number per voxel; save its magnitude or luminance"]
    if not np.isfinite(values).all():
        return ["holds NaN or infinite values, expected finite magnitudes; export it again"]
    if values.size and values.min() < 0:
        return [f"holds negative values (minimum {values.min():g}), expected magnitudes >= 0; shift or rescale them"]
    return []


def label_faults(values: np.ndarray, highest: int) -> list[str]:
    """What makes ``values`` unfit as a label map with the values 0 to ``highest``."""
    if values.dtype.kind not in "fiub":
        return [f"holds {values.dtype} values, expected one integer label per voxel; save the label numbers"]
    if not np.isfinite(values).all():
        return ["holds NaN or infinite values, expected integer labels; export it again"]
    if values.dtype.kind == "f" and (fractions := values[values != np.rint(values)]).size:
        return [
            f"holds values that are no integers (such as {fractions[0]:g}), expected integer labels; export it without "
            "interpolation"
        ]
    outside = np.unique(values[(values < 0) | (values > highest)])
    if outside.size:
        shown = ", ".join(f"{value:g}" for value in outside[:5]) + (", ..." if outside.size > 5 else "")
        return [f"holds label {shown}, expected 0 to {highest}; renumber the labels or state the right class count"]
    return []


def affine(path: Path) -> np.ndarray | None:
    """The voxel-to-world matrix (4, 4) of a NIfTI file; None for other formats and unreadable files."""
    if not path.name.lower().endswith(NIFTI):
        return None
    try:
        return np.asarray(_open_nifti(path).affine)
    except UNREADABLE:
        return None


def stem(path: Path) -> str:
    """The file name without its suffix; ``.nii.gz`` counts as one."""
    lower = path.name.lower()
    return path.name[: -len(".nii.gz")] if lower.endswith(".nii.gz") else path.stem


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts ``2.png`` before ``10.png``."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def write_nifti(path: Path, values: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Write ``values`` (Z, Y, X) as NIfTI (X, Y, Z) with ``spacing`` (z, y, x) in mm on the diagonal of the affine."""
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), np.diag([*spacing[::-1], 1.0]))
    image.header.set_xyzt_units("mm")
    write_atomic(path, lambda temporary: nib.save(image, temporary))


def write_png(path: Path, values: np.ndarray) -> None:
    """Write ``values`` uint8 (Y, X) as an 8-bit grey PNG."""
    write_atomic(path, lambda temporary: Image.fromarray(values).save(temporary, format="PNG"))


def _open_nifti(path: Path) -> Any:
    """The image in ``path``; its faults are :class:`ValueError`, whatever nibabel calls them."""
    # Imported where a file is read or written: it takes 0.2 s, and an environment on cached slices reads none.
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        return nib.load(path)
    except (ImageFileError, HeaderDataError) as error:
        raise ValueError(str(error)) from error


def _read_nifti(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    image = _open_nifti(path)
    values = np.asanyarray(image.dataobj)
    # A trailing axis of length one (a "4-D" file with one frame) carries nothing.
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    zooms = [float(zoom) for zoom in image.header.get_zooms()[:3]]
    if not all(np.isfinite(zoom) and zoom > 0 for zoom in zooms):
        raise ValueError(f"its header states the voxel spacing {zooms}")
    x, y, z = (*zooms, 1.0, 1.0)[:3]
    return values.transpose(), (z, y, x)


def _read_picture(path: Path, colour: bool) -> np.ndarray:
    with Image.open(path) as picture:
        pages = []
        for page in range(getattr(picture, "n_frames", 1)):
            picture.seek(page)
            # The palette of an image is a colour table; the palette of a label map only paints its numbers.
            is_colour = len(picture.getbands()) > 1 or (colour and picture.mode == "P")
            if is_colour and not colour:
                raise ValueError(f"it is a colour picture ({picture.mode}) where one number per pixel is expected")
            pages.append(np.asarray(picture.convert("L") if is_colour else picture))
    return np.stack(pages)


def _renumber(read: Reader, codes: Mapping[int, int], path: Path, complain: Complain) -> Scan | None:
    scan = read(path, complain)
    if scan is None:
        return None
    if scan.values.dtype.kind not in "fiub":
        complain(path, label_faults(scan.values, 0)[0])
        return None
    numbers, places = np.unique(scan.values, return_inverse=True)
    unknown = [number for number in numbers if number not in codes]
    if unknown:
        shown = ", ".join(f"{number:g}" for number in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        complain(path, f"holds label {shown}, expected one of {_ranges(codes)}; export it again")
        return None
    classes = np.array([codes[number] for number in numbers], np.uint8)
    return Scan(classes[places].reshape(scan.values.shape), scan.spacing)


def _ranges(numbers: Iterable[int]) -> str:
    """ "0, 55 to 70" for the numbers 0, 55, 56, ..., 70."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _checked(path: Path, values: np.ndarray, spacing: tuple[float, float, float], complain: Complain) -> Scan | None:
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3:
        complain(path, f"has shape {values.shape}, expected two or three axes; store one frame per file")
        return None
    return Scan(values, spacing)


def unreadable(error: BaseException) -> str:
    """What to say of a file that raised one of :data:`UNREADABLE`."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be read, it is truncated, damaged or of another format ({reason}); copy or export it again"
