"""Unzips the arrays of an ``.npz`` in constant memory, and trusts none of its headers.

`numpy.load` would read whole members (``mmap_mode`` is silently ignored for ``.npz``). The members
are ``.npy`` files in a zip archive, so they are unzipped and memory-mapped.
"""

from __future__ import annotations

import errno
import io
import re
import warnings
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from medduet.data.cache import ProgressFactory, counted
from medduet.data.reading.core import MAX_FRAME_PIXELS
from medduet.data.store import check_room
from medduet.errors import DataError

_PIXEL_KEY = re.compile(r"(train|val|test)_(images|masks|label)(_C[0-9]{1,6})?")
_ROW_KEY = re.compile(r"(train|val|test)_(labels|has_mask|ids|groups)|(class|mask)_names")
_CHUNK_BYTES = 1 << 20
_MOST_ROWS = 16 << 20  # bytes of what is no image, unless the file itself is larger
_MOST_CONTENTS = 1 << 20  # bytes of the zip's table of contents; a set has a few dozen arrays
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, ValueError),
    OSError,  # of the disk; EINVAL is a place before the beginning of the file
    NotImplementedError,  # a compression that zipfile doesn't know
    RuntimeError,  # an encrypted member
)


def extract_arrays(
    path: Path, folder: Path, progress: ProgressFactory | None
) -> dict[str, NDArray[Any]]:
    """Unzip the arrays of a set into `folder` and return them memory-mapped, by key.

    `numpy.load` would read whole members: ``mmap_mode`` is silently ignored for ``.npz``.
    """
    arrays: dict[str, NDArray[Any]] = {}
    key = ""
    try:
        with _File(path) as file, zipfile.ZipFile(file) as archive:
            file.most = None
            members = {
                member: member.filename.removesuffix(".npy")
                for member in archive.infolist()
                if _PIXEL_KEY.fullmatch(member.filename.removesuffix(".npy"))
                or _ROW_KEY.fullmatch(member.filename.removesuffix(".npy"))
            }
            total = sum(member.file_size for member in members)
            check_room(folder, total)
            with counted(progress, f"unpack {path.name}", total) as count:
                for member, key in members.items():
                    if key in arrays:
                        fail(path, key, "one array of this name", "several")
                    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        # Others can't be unpacked in constant memory; numpy doesn't write them.
                        fail(path, key, "stored or deflated values", "another compression")
                    with archive.open(member) as source:
                        header = _read_header(path, key, source, member.file_size)
                        target = folder / f"{key}.npy"
                        with target.open("wb") as written:
                            np.lib.format.write_array_header_1_0(written, header)
                            count(source.tell())
                            while chunk := source.read(_CHUNK_BYTES):
                                written.write(chunk)
                                count(len(chunk))
                    if prod(header["shape"]):
                        arrays[key] = np.load(target, mmap_mode="r", allow_pickle=False)
                    else:  # which can't be mapped
                        arrays[key] = np.empty(header["shape"], header["descr"])
    except DataError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk
            raise
        detail = " ".join(str(error).split()) or "it ends too early"
        place = f"{path}: {key}" if key else f"{path}"
        raise DataError(
            f"{place}: expected a whole .npz (zip) archive, given a truncated or damaged file "
            f"or one of another kind ({detail})"
        ) from error
    return arrays


def _read_header(path: Path, key: str, file: IO[bytes], size: int) -> dict[str, Any]:
    """Return the header of an array, which is checked before its values are unpacked."""
    try:
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"version {version}")
        with warnings.catch_warnings():  # of what an old Python wrote, or of odd text
            warnings.simplefilter("ignore")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise
    except Exception as error:  # Python's own parser reads it, and fails in many ways
        fail(path, key, "a .npy header of version 1", error or type(error).__name__)
    expected = file.tell() + prod(shape) * dtype.itemsize
    limit = max(_MOST_ROWS, path.stat().st_size)
    if dtype.hasobject:
        fail(path, key, "numbers or text", "pickled objects, which are not read")
    if not shape or any(length < 0 for length in shape):
        fail(path, key, "an array with at least one axis", f"shape {shape}")
    if fortran and len(shape) > 1:
        fail(path, key, "C order", "Fortran order; save numpy.ascontiguousarray(it)")
    if size != expected:
        fail(path, key, f"{expected} bytes by its header", size)
    if _PIXEL_KEY.fullmatch(key) and prod(shape[1:3]) > MAX_FRAME_PIXELS:
        fail(path, key, f"images of at most {MAX_FRAME_PIXELS} pixels", shape)
    if _ROW_KEY.fullmatch(key) and prod(shape) * max(dtype.itemsize, 8) > limit:
        fail(path, key, f"at most {limit} bytes, as the file is small", size)
    return {"descr": dtype.str, "fortran_order": False, "shape": shape}


class _File(io.FileIO):
    """A file of which no more is read at once than the table of contents of a set may take."""

    most: int | None = _MOST_CONTENTS

    def read(self, size: int | None = -1, /) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise zipfile.BadZipFile(f"its table of contents has {size} bytes")
        return super().read(size) or b""


def fail(path: Path, key: str, expected: str, given: object) -> NoReturn:
    """Raise a DataError that names the file and the key."""
    raise DataError(f"{path}: {key}: expected {expected}, given {given}")
