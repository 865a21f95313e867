"""Two-dimensional Cartesian scans in ISMRMRD files (Inati et al., MRM 2017): one HDF5 file for each measurement.

Noise, navigator, calibration and other scans that are no image are skipped. Every readout is put where its line number
and its centre sample say (partial phase encoding and partial echoes leave zeros), averages are averaged, oversampling
of the readout is removed. Each combination of contrast, cardiac phase, repetition and set is a volume of its own. The
patient is the header's ``patientID``; without one the file is a patient of its own.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from seggym.cohorts.raw_kspace_header import Header, parse_header
from seggym.cohorts.raw_kspace_scan import RawCase, RawScan, without_oversampling
from seggym.cohorts.scans import UNREADABLE, Complain, unreadable
from seggym.files import write_atomic

_COUNTERS = ("contrast", "phase", "repetition", "set")
# Flags of readouts that are no part of an image, by their names in the ismrmrd package.
_NO_IMAGE = (
    "ACQ_IS_NOISE_MEASUREMENT",
    "ACQ_IS_PARALLEL_CALIBRATION",
    "ACQ_IS_NAVIGATION_DATA",
    "ACQ_IS_PHASECORR_DATA",
    "ACQ_IS_HPFEEDBACK_DATA",
    "ACQ_IS_DUMMYSCAN_DATA",
    "ACQ_IS_RTFEEDBACK_DATA",
    "ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA",
    "ACQ_IS_PHASE_STABILIZATION_REFERENCE",
    "ACQ_IS_PHASE_STABILIZATION",
)


def dataset_name(file: h5py.File) -> str | None:
    """The group of the open ``file`` that is an ISMRMRD data set, or None."""
    groups = [name for name, item in file.items() if isinstance(item, h5py.Group)]
    return next((name for name in groups if "xml" in file[name] or "data" in file[name]), None)


def find_cases(path: Path, file: h5py.File, complain: Complain) -> list[RawCase]:
    """The volumes in the open ``file`` at ``path``."""
    group = file[dataset_name(file)]
    missing = [name for name, sound in (("xml", _is_text), ("data", _is_readouts)) if not sound(group.get(name))]
    if missing:
        complain(
            path,
            f"has no usable {' and no usable '.join(missing)} in {group.name}, expected ISMRMRD's header and readouts; "
            "export it again",
        )
        return []
    header = parse_header(group["xml"][0], path, complain)
    if header is None:
        return []
    if header.trajectory.lower() != "cartesian" or header.partitions > 1:
        kind = "three-dimensional" if header.partitions > 1 else header.trajectory
        complain(path, f"holds a {kind} scan, expected two-dimensional Cartesian lines; remove it")
        return []
    heads = group["data"].fields("head")[:]
    rows = np.flatnonzero(_is_image(heads))
    if not len(rows):
        complain(path, f"holds no readout of an image among {len(heads)}, expected phase-encode lines; export it again")
        return []
    counters = np.stack([heads["idx"][name][rows] for name in _COUNTERS], 1)
    varying = counters.min(0) < counters.max(0)
    cases = []
    for values in np.unique(counters, axis=0):
        own = rows[(counters == values).all(1)]
        marks = [f"{name}{value}" for name, value, varies in zip(_COUNTERS, values, varying, strict=True) if varies]
        read = partial(_read, path, group.name, header, own)
        cases.append(RawCase(header.patient or path.stem, "_".join([path.stem, *marks]), "all", (path,), (), read))
    return cases


def write_scan(path: Path, kspace: np.ndarray, header: str, lines: Mapping[int, int], averages: int = 1) -> None:
    """Write ``kspace`` complex (Z, J, R, L), readout oversampling included, by the ismrmrd package.

    ``lines`` maps the columns that were measured to their line numbers. A noise scan comes first, as scanners do it.
    """
    import ismrmrd  # it takes 0.2 s, and an environment on cached slices reads none

    noise = ismrmrd.Acquisition.from_array(np.full(kspace.shape[1:3], 1 + 1j, np.complex64))
    noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    readouts = [noise]
    for position, stack in enumerate(kspace.astype(np.complex64)):
        for column, number in lines.items():
            for average in range(averages):
                readout = ismrmrd.Acquisition.from_array(np.ascontiguousarray(stack[:, :, column]))
                readout.center_sample = kspace.shape[2] // 2
                readout.idx.slice, readout.idx.kspace_encode_step_1 = position, number
                readout.idx.average = average
                readouts.append(readout)

    def write(temporary: Path) -> None:
        with ismrmrd.Dataset(str(temporary), mode="w") as data:
            data.write_xml_header(header.encode())
        with ismrmrd.File(str(temporary)) as file:
            file["dataset"].acquisitions = readouts

    write_atomic(path, write)


def _is_text(dataset: Any) -> bool:
    return isinstance(dataset, h5py.Dataset) and dataset.shape == (1,) and dataset.dtype.kind in "OS"


def _is_readouts(dataset: Any) -> bool:
    from ismrmrd.hdf5 import acquisition_header_dtype

    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.names is None:
        return False
    names = dataset.dtype["head"].names if {"head", "data"} <= set(dataset.dtype.names) else None
    return set(acquisition_header_dtype.names) <= set(names or ())


def _is_image(heads: np.ndarray) -> np.ndarray:
    from ismrmrd import constants

    mask = sum(1 << (getattr(constants, name) - 1) for name in _NO_IMAGE)
    return ((heads["flags"] & np.uint64(mask)) == 0) & (heads["encoding_space_ref"] == 0)


def _read(path: Path, group: str, header: Header, rows: np.ndarray, complain: Complain) -> RawScan | None:
    from ismrmrd import constants

    try:
        with h5py.File(path, "r") as file:
            stored = file[group]["data"][rows]
    except UNREADABLE as error:
        complain(path, unreadable(error))
        return None
    heads = stored["head"]
    if (heads["flags"] & np.uint64(1 << (constants.ACQ_IS_REVERSE - 1))).any():
        complain(path, "holds readouts in both directions (EPI), expected a single one; remove it")
        return None
    coils = np.unique(heads["active_channels"])
    if len(coils) > 1 or coils[0] == 0:
        complain(path, f"holds readouts of {_listed(coils)} coils, expected the same number in each; export it again")
        return None
    numbers, columns = (
        heads["idx"]["kspace_encode_step_1"],
        heads["idx"]["kspace_encode_step_1"].astype(int) + header.place(0),
    )
    outside = numbers[(columns < 0) | (columns >= header.lines)]
    if len(outside):
        complain(
            path,
            f"holds line {_listed(np.unique(outside))}, but its header states {header.lines} lines with number "
            f"{header.centre} at the centre; export it again",
        )
        return None
    slices, positions = np.unique(heads["idx"]["slice"], return_inverse=True)
    kspace = np.zeros((len(slices), int(coils[0]), header.samples, header.lines), np.complex64)
    counts = np.zeros((len(slices), header.lines), int)
    for position, column, row in zip(positions, columns, stored, strict=True):
        placed = _placed(row, header, path, complain)
        if placed is None:
            return None
        first, samples = placed
        kspace[position, :, first : first + samples.shape[1], column] += samples
        counts[position, column] += 1
    kspace /= np.maximum(counts, 1)[:, None, None, :]
    return RawScan(without_oversampling(kspace, header.kept), header.spacing)


def _placed(row: np.void, header: Header, path: Path, complain: Complain) -> tuple[int, np.ndarray] | None:
    """Where on the readout of ``header`` the samples of ``row`` begin, and they, (J, n)."""
    head = row["head"]
    coils, length = int(head["active_channels"]), int(head["number_of_samples"])
    number = int(head["idx"]["kspace_encode_step_1"])
    values = np.asarray(row["data"], np.float32)
    if values.size != 2 * coils * length:
        complain(
            path,
            f"holds {values.size // 2} samples of line {number}, expected {coils} x {length}; copy it again",
        )
        return None
    begin, end = int(head["discard_pre"]), length - int(head["discard_post"])
    first = header.samples // 2 - int(head["center_sample"]) + begin
    if not (begin < end and first >= 0 and first + end - begin <= header.samples):
        complain(
            path,
            f"holds {end - begin} samples of line {number} from position {first}, but its header states "
            f"{header.samples} along the readout; export it again",
        )
        return None
    return first, values.view(np.complex64).reshape(coils, length)[:, begin:end]


def _listed(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
