"""What a file of a stranger may be: its kind, its size, and how much it may ask of memory and time.

Nothing here opens a path that stands inside a file. A link is not followed, a pipe or device is not read.
"""

import json
import os
import stat
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from seggym.cohorts.scans import UNREADABLE, unreadable
from seggym.errors import SeggymError

IMAGE_SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff")
MAX_IMAGE_BYTES = 1 << 28
MAX_PIXELS = 1 << 26
MAX_TEXT_BYTES = 1 << 28
MAX_VERTICES = 20_000  # of one shape
MAX_SHAPES = 50_000  # of one file
MAX_TOTAL_VERTICES = 2_000_000  # of one file
MAX_COORDINATE = 1e6  # pixels
MAX_NAME = 255  # characters of a class or a file name

_FORMATS = ("BMP", "JPEG", "PNG", "TIFF")


def read_bytes(path: Path, limit: int, what: str = "a file") -> bytes:
    """The content of the regular file ``path``, at most ``limit`` bytes; anything else raises :class:`SeggymError`."""
    # Opened first and looked at then: what is looked at is what is read. Without O_NONBLOCK a pipe would block.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise SeggymError(f"{path} is a symbolic link, expected {what}; links are not followed: copy it there")
        with open(os.open(path, flags), "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise SeggymError(f"{path} is no regular file, expected {what}: remove it")
            if state.st_size > limit:
                raise SeggymError(
                    f"{path} holds {state.st_size:,} bytes, expected {what} of at most {limit:,}: make it smaller"
                )
            return file.read(limit + 1)[:limit]
    except OSError as error:
        raise SeggymError(f"{path} cannot be read ({error.strerror}), expected {what}: restore it") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, in UTF-8."""
    return parse_json_object(read_bytes(path, MAX_TEXT_BYTES, "a JSON file"), path)


def parse_json_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object ``content``, which came from ``path``."""
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise SeggymError(f"{path} is not readable JSON ({reason}): export it again") from None
    if not isinstance(found, dict):
        raise SeggymError(f"{path} holds a {type(found).__name__}, expected a JSON object: export it again")
    return found


def read_image(path: Path) -> np.ndarray:
    """The image in ``path`` as uint8 (height, width, 3), turned as its EXIF data say: annotation programs do so."""
    with _open_image(path) as picture:
        try:
            return np.asarray(ImageOps.exif_transpose(_eight_bit(picture)).convert("RGB"))
        except UNREADABLE as error:
            raise SeggymError(f"{path} {unreadable(error)}") from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the image in ``path``, turned as its EXIF data say; the pixels are not decoded."""
    with _open_image(path) as picture:
        width, height = picture.size
        return (height, width) if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (width, height)


def bare_name(text: object, path: Path, what: str = "the name of its image") -> str:
    """The last part of a path with slashes or backslashes that stands in ``path``; it is compared, never opened."""
    name = PurePosixPath(text.replace("\\", "/")).name if isinstance(text, str) else ""
    if not name or name == ".." or len(name) > MAX_NAME or not name.isprintable():
        raise SeggymError(f"{path} has {_short(text)} as {what}, expected a file name: export it again")
    return name


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 60 else text[:57] + "..."


def _open_image(path: Path) -> Image.Image:
    """The image in ``path`` with its header read and found harmless."""
    content = read_bytes(path, MAX_IMAGE_BYTES, "an image")
    try:
        picture = Image.open(BytesIO(content), formats=_FORMATS)
        pages = getattr(picture, "n_frames", 1)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise SeggymError(f"{path} {unreadable(error)}") from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise SeggymError(f"{path} has {width} x {height} pixels, expected at most {MAX_PIXELS:,}: cut it into tiles")
    if pages != 1:
        raise SeggymError(f"{path} holds {pages} images, expected one: store one image per file")
    return picture


def _eight_bit(picture: Image.Image) -> Image.Image:
    """``picture`` with 16-bit values brought to 8 bits, which Pillow would clip."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, np.float64)
    low, high = float(values.min()), float(values.max())
    scaled = Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    scaled.info["exif"] = picture.getexif().tobytes()
    return scaled
