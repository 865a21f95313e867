"""The XML header of ISMRMRD (Inati et al., MRM 2017), which fastMRI keeps as well: what was encoded, and how."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from seggym.cohorts.scans import Complain


@dataclass(frozen=True)
class Header:
    """The first encoding of a measurement.

    samples and lines: encoded matrix along readout and phase; partitions: along the third axis (1 in 2-D); field: the
    encoded field of view (readout, phase, slice) in mm; kept: samples of the readout without its oversampling; first,
    last and centre: the range of measured line numbers and the one of DC; patient: its identifier, None where absent.
    """

    samples: int
    lines: int
    partitions: int
    field: tuple[float, float, float]
    kept: int
    first: int
    last: int
    centre: int
    trajectory: str
    patient: str | None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, readout, line) in mm of a pixel of the full image."""
        return self.field[2] / self.partitions, self.field[0] / self.samples, self.field[1] / self.lines

    def place(self, number: int) -> int:
        """The column of k-space (L lines, DC at L // 2) that line ``number`` belongs into."""
        return number - self.centre + self.lines // 2


def parse_header(text: str | bytes, path: Path, complain: Complain) -> Header | None:
    """The header in ``text``; None after a complaint about the file ``path``."""
    try:
        root = fromstring(text)
        return _header(root)
    except (ParseError, DefusedXmlException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        complain(path, f"has an ISMRMRD header that is no readable XML ({reason}); export it again")
    except (LookupError, ValueError) as error:
        complain(path, f"has an ISMRMRD header without a usable {error.args[0]}; export it with its full header")
    return None


def _header(root: Element) -> Header:
    encoding = _find(root, "encoding")
    encoded, reconstructed = _find(encoding, "encodedSpace"), _find(encoding, "reconSpace")
    samples, lines, partitions = (int(_number(encoded, f"matrixSize/{axis}")) for axis in "xyz")
    x, y, z = (_number(encoded, f"fieldOfView_mm/{axis}") for axis in "xyz")
    kept = round(samples * min(1.0, _number(reconstructed, "fieldOfView_mm/x") / x))
    limits = encoding.find(_path("encodingLimits/kspace_encoding_step_1"))
    if limits is None:
        first, last, centre = 0, lines - 1, lines // 2
    else:
        first, last, centre = (int(_number(limits, name, zero=True)) for name in ("minimum", "maximum", "center"))
    patient = root.findtext(_path("subjectInformation/patientID"))
    return Header(
        samples=samples,
        lines=lines,
        partitions=partitions,
        field=(x, y, z),
        kept=max(1, kept),
        first=first,
        last=last,
        centre=centre,
        trajectory=(encoding.findtext(_path("trajectory")) or "cartesian").strip(),
        patient=(patient or "").strip() or None,
    )


def _find(element: Element, path: str) -> Element:
    found = element.find(_path(path))
    if found is None:
        raise LookupError(path)
    return found


def _number(element: Element, path: str, zero: bool = False) -> float:
    """The text of the element at ``path`` as a positive number (or zero, where that is allowed)."""
    name = f"{element.tag.rpartition('}')[2]}/{path}"
    text: Any = element.findtext(_path(path))
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(name) from None
    if not (0 < value < 1e6 or (zero and value == 0)):
        raise ValueError(name)
    return value


def _path(path: str) -> str:
    """``path`` in any namespace: writers of fastMRI's and of other files do not agree on one."""
    return "/".join("{*}" + part for part in path.split("/"))
