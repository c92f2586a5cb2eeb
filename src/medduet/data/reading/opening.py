"""Opens a file by what is in it; its ending may say something else."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from medduet.data.reading.core import MAX_FILE_BYTES, Source, faults_named, refusal
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
def opened(path: Path, given: BinaryIO | None = None) -> Iterator[Source]:
    """Give the image file at `path`, checked as far as its header goes.

    With `given`, an open file that can be sought in, `path` is only what it is called. Whatever
    goes wrong with it in the body becomes a DataError.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is not an image that can be read.
    """
    with faults_named(path):
        if given is not None:
            given.seek(0)
            yield _open(path, given, given.read(HEADER_SIZE))
            return
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise MissingFileError(f"{path}: expected an image file, given nothing") from error
        if not stat.S_ISREG(found.st_mode):
            raise refusal(path, "an image file", "a folder or a device")
        if found.st_size > MAX_FILE_BYTES:
            raise refusal(path, f"at most {MAX_FILE_BYTES} bytes", str(found.st_size))
        with path.open("rb") as file:
            head = file.read(HEADER_SIZE)
            yield _open(path, file, head)


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
    r"""Return how a message tells of a file that begins with `head`.

    Example:
        >>> start_of(b"%PDF-1.7\n")
        "a file that starts with '%PDF-1.7'"
        >>> start_of(b"\x1f\x8b\x08\0")
        'a file that starts with the bytes 1f 8b 08 00'
    """
    if not head:
        return "an empty file"
    first = head[:8]
    if all(32 <= byte < 127 for byte in first):
        return f"a file that starts with '{first.decode()}'"
    return f"a file that starts with the bytes {first.hex(' ')}"


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
    if kind == "DICOM":
        return open_dicom(path, file, has_preamble=True)
    if kind is not None:
        return open_raster(path, file, kind)
    if is_nifti(head):
        return open_nifti(path, file, packed=False)
    if head[:2] == b"\x1f\x8b" and is_nifti(_unpacked(file)):
        return open_nifti(path, file, packed=True)
    if head[:2] in _DATA_SETS:
        return open_dicom(path, file, has_preamble=False)
    known = "PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI"
    raise refusal(path, known, start_of(head))


def _unpacked(file: BinaryIO) -> bytes:
    """Return what a gzipped file starts with, or nothing if it is broken."""
    file.seek(0)
    try:
        return gzip.GzipFile(fileobj=file).read(HEADER_SIZE)
    except (OSError, EOFError, zlib.error):
        return b""
