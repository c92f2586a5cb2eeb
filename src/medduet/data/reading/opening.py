"""Opens a file by what is in it; its ending may say something else."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, cast

from medduet.data.reading.core import Source, errors_named, refusal
from medduet.data.reading.dicom import open_dicom
from medduet.data.reading.nifti import open_nifti
from medduet.data.reading.raster import open_raster
from medduet.errors import MissingFileError

HEAD = 540
"""Bytes by which the kind of a file is told: the header of NIfTI-2."""
_SIGNATURES = (
    (128, b"DICM", "DICOM"),  # first: its preamble may be that of a TIFF
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (8, b"WEBP", "WEBP"),
    (344, b"n+1\0", "NIfTI"),
    (4, b"n+2\0", "NIfTI"),
    (0, b"\x08\x00", "DICOM"),  # without preamble: group 0008, with which a data set starts
    (0, b"\x00\x08", "DICOM"),
)


@contextmanager
def opened(path: Path, file: BinaryIO | None = None) -> Iterator[Source]:
    """Open the image file at `path`, or the open `file` that is called so; its header is checked.

    Whatever goes wrong with it in the body becomes a DataError.
    """
    with errors_named(path):
        if file is None and not path.is_file():
            if path.exists():
                raise refusal(path, "an image file", "a folder or a device")
            raise MissingFileError(f"{path}: expected an image file, given nothing")
        with path.open("rb") if file is None else nullcontext(file) as content:
            yield _open(path, content)


def kind_of(head: bytes) -> str | None:
    """Return which kind of picture starts with `head`, its first `HEAD` bytes, or None."""
    found = (kind for start, mark, kind in _SIGNATURES if head.startswith(mark, start))
    return next(found, None)


def _open(path: Path, file: BinaryIO) -> Source:
    file.seek(0)
    head = file.read(HEAD)
    kind = kind_of(head)
    if head.startswith(b"\x1f\x8b"):
        file.seek(0)
        file = cast("BinaryIO", gzip.GzipFile(fileobj=file))  # unpacked as it is read
        kind = "NIfTI" if kind_of(file.read(HEAD)) == "NIfTI" else None
    file.seek(0)
    if kind == "DICOM":
        return open_dicom(path, file)
    if kind == "NIfTI":
        return open_nifti(path, file)
    if kind is None:
        given = f"a file that starts with {head[:8]!r}"
        raise refusal(path, "PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI", given)
    return open_raster(path, file, kind)
