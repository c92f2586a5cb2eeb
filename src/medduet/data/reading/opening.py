"""Opens a file by what is in it; its ending may say something else."""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
def opened(path: Path) -> Iterator[Source]:
    """Give the image file at `path`, checked as far as its header goes.

    Whatever goes wrong with it in the body becomes a DataError.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if it is not an image that can be read.
    """
    with faults_named(path):
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


def _open(path: Path, file: io.BufferedReader, head: bytes) -> Source:
    if head[128:132] == b"DICM":
        return open_dicom(path, file, has_preamble=True)
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return open_raster(path, file, kind)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return open_raster(path, file, "WEBP")
    if is_nifti(head):
        return open_nifti(path, file, packed=False)
    if head[:2] == b"\x1f\x8b" and is_nifti(_unpacked(file)):
        return open_nifti(path, file, packed=True)
    if head[:2] in _DATA_SETS:
        return open_dicom(path, file, has_preamble=False)
    known = "PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI"
    raise refusal(path, known, f"a file that starts with {head[:8]!r}" if head else "an empty file")


def _unpacked(file: io.BufferedReader) -> bytes:
    """Return what a gzipped file starts with, or nothing if it is broken."""
    file.seek(0)
    try:
        return gzip.GzipFile(fileobj=file).read(HEADER_SIZE)
    except (OSError, EOFError, zlib.error):
        return b""
