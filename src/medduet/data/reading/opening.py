"""Opens a file by what is in it; its ending may say something else."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from medduet.data.reading.core import Source, errors_named, refusal
from medduet.data.reading.dicom import open_dicom
from medduet.data.reading.nifti import HEADER_SIZE, is_nifti, open_nifti
from medduet.data.reading.raster import open_raster
from medduet.errors import MissingFileError

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_DATA_SETS = (b"\x08\x00", b"\x00\x08")  # group 0008, with which a DICOM data set starts


@contextmanager
def opened(path: Path, file: BinaryIO | None = None) -> Iterator[Source]:
    """Open the image file at `path`; its header is checked.

    With `file`, an open file that can be sought in, `path` is only what it is called. Whatever
    goes wrong with it in the body becomes a DataError.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is not an image that can be read.
    """
    with errors_named(path):
        if file is not None:
            file.seek(0)
            yield _open(path, file, file.read(HEADER_SIZE))
            return
        if not path.exists():
            raise MissingFileError(f"{path}: expected an image file, given nothing")
        if not path.is_file():
            raise refusal(path, "an image file", "a folder or a device")
        with path.open("rb") as file:
            yield _open(path, file, file.read(HEADER_SIZE))


def kind_of(head: bytes) -> str | None:
    """Return which kind of picture starts with `head`, its first 140 bytes or more.

    Returns:
        ``"PNG"``, ``"JPEG"``, ``"TIFF"``, ``"BMP"``, ``"WEBP"``, ``"DICOM"``, or ``None``.

    Example:
        >>> kind_of(b"BM..."), kind_of(b"%PDF-1.7")
        ('BMP', None)
    """
    if head[128:132] == b"DICM":
        return "DICOM"
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    return "WEBP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def start_of(head: bytes) -> str:
    r"""Return how a message describes a file that begins with `head`.

    Example:
        >>> start_of(b"%PDF-1.7\n")
        "a file that starts with b'%PDF-1.7'"
    """
    return f"a file that starts with {head[:8]!r}" if head else "an empty file"


def is_dicom(head: bytes) -> bool:
    r"""Return whether a picture that starts with `head` is DICOM, with a preamble or without.

    Example:
        >>> is_dicom(b"\x08\x00\x05\x00"), is_dicom(b"BM")
        (True, False)
    """
    return kind_of(head) == "DICOM" or (
        kind_of(head) is None and not is_nifti(head) and head[:2] in _DATA_SETS
    )


def _open(path: Path, file: BinaryIO, head: bytes) -> Source:
    kind = kind_of(head)
    if kind is not None and kind != "DICOM":
        return open_raster(path, file, kind)
    if is_dicom(head):
        return open_dicom(path, file, has_preamble=kind == "DICOM")
    if is_nifti(head):
        return open_nifti(path, file)
    if head[:2] == b"\x1f\x8b":
        file.seek(0)
        unpacked = gzip.GzipFile(fileobj=file)
        if is_nifti(_start_of(unpacked)):
            return open_nifti(path, unpacked)
    raise refusal(path, "PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI", start_of(head))


def _start_of(unpacked: gzip.GzipFile) -> bytes:
    """Return what a gzipped file starts with, or nothing if it is broken."""
    try:
        return unpacked.read(HEADER_SIZE)
    except (OSError, EOFError, zlib.error):
        return b""
