"""Raw k-space as fastMRI publishes it (Zbontar et al., arXiv:1811.08839): one HDF5 file for each scan.

``kspace`` complex (Z, J, R, L), of a single coil (Z, R, L): readout before phase-encode lines, as the public files have
it; the encoded matrix in ``ismrmrd_header`` (a dataset or an attribute) tells which axis is which where they are the
other way round. ``reconstruction_rss`` and ``reconstruction_esc`` may be there. Attributes: ``patient_id`` (without it
the file is a patient of its own), ``acquisition`` (the group), ``max``.
"""

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from seggym.cohorts.raw_kspace_header import Header, parse_header
from seggym.cohorts.raw_kspace_scan import RawCase, RawScan, as_complex, without_oversampling
from seggym.cohorts.scans import UNREADABLE, Complain, unreadable
from seggym.files import write_atomic

RECONSTRUCTIONS = ("reconstruction_rss", "reconstruction_esc")
_HEADER = "ismrmrd_header"


def find_case(path: Path, file: h5py.File) -> RawCase:
    """The scan in the open ``file`` at ``path``."""
    patient, group = (_text(file.attrs.get(name)) for name in ("patient_id", "acquisition"))
    return RawCase(patient or path.stem, path.stem, group or "all", (path,), (), partial(_read, path))


def write_scan(path: Path, kspace: np.ndarray, header: str, patient: str, acquisition: str) -> None:
    """Write ``kspace`` complex (Z, J, R, L) or (Z, R, L), readout oversampling included, under its XML ``header``."""

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            file["kspace"] = kspace.astype(np.complex64)
            file[_HEADER] = header
            file.attrs["patient_id"], file.attrs["acquisition"] = patient, acquisition

    write_atomic(path, write)


def _read(path: Path, complain: Complain) -> RawScan | None:
    try:
        with h5py.File(path, "r") as file:
            header = file[_HEADER][()] if _HEADER in file else file.attrs.get(_HEADER)
            stored = np.asarray(file["kspace"])
            slices = {name: len(file[name]) for name in RECONSTRUCTIONS if name in file}
    except UNREADABLE as error:
        complain(path, unreadable(error))
        return None
    kspace = as_complex(stored)
    if kspace is None:
        complain(path, f"holds kspace of type {stored.dtype}, expected complex samples; export it again")
        return None
    if kspace.ndim not in (3, 4):
        complain(
            path,
            f"holds kspace of shape {kspace.shape}, expected (slices, coils, readout, lines), or (slices, readout, "
            "lines) of a single coil; export it so",
        )
        return None
    for name, count in slices.items():
        if count != len(kspace):
            complain(
                path, f"holds {count} slices in {name} and {len(kspace)} in kspace, expected as many; export it again"
            )
            return None
    if header is None:
        complain(path, f"has no {_HEADER}, expected ISMRMRD's XML header as a dataset or an attribute; export it again")
        return None
    parsed = parse_header(_bytes(header), path, complain)
    return None if parsed is None else _arranged(kspace, parsed, path, complain)


def _arranged(kspace: np.ndarray, header: Header, path: Path, complain: Complain) -> RawScan | None:
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    encoded = (header.samples, header.lines)
    if kspace.shape[2:] == encoded[::-1]:
        # Where both are equal this changes nothing, as the axes lie as in the public files.
        kspace = kspace if header.samples == header.lines else kspace.swapaxes(2, 3)
    elif kspace.shape[2:] != encoded:
        complain(
            path,
            f"holds kspace of {kspace.shape[2]} x {kspace.shape[3]} samples, but its header encodes "
            f"{header.samples} x {header.lines} (readout x lines); export it again",
        )
        return None
    kspace = without_oversampling(kspace, header.kept).copy()
    # What the file holds beyond the measured range is padding.
    kspace[..., : max(0, header.place(header.first))] = 0
    kspace[..., max(0, header.place(header.last) + 1) :] = 0
    return RawScan(kspace, header.spacing)


def _bytes(header: Any) -> bytes:
    return header.encode() if isinstance(header, str) else bytes(header)


def _text(value: Any) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")).strip()
