"""Reads the arrays of an ``.npz`` in pieces of a few megabytes, and trusts none of its headers.

`numpy.load` would read whole members (``mmap_mode`` is silently ignored for ``.npz``). The members
are ``.npy`` files in a zip archive, so their bytes can be streamed after their header is checked.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from medduet.errors import DataError

CHUNK_BYTES = 4 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression that zipfile doesn't know
    RuntimeError,  # an encrypted member
)


class Header(NamedTuple):
    """What the header of a ``.npy`` says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Archive:
    """The arrays of one ``.npz`` by key.

    Args:
        path: an existing file.

    Raises:
        DataError: here or later, if the file is no archive, is damaged or holds pickled objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _told(path):
            self._zip = zipfile.ZipFile(path)
        members = [name for name in self._zip.namelist() if name.endswith(".npy")]
        self.keys = tuple(name.removesuffix(".npy") for name in members)
        if twice := {key for key in self.keys if self.keys.count(key) > 1}:
            self.fail(min(twice), "expected one array of this name, given several")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()

    def fail(self, key: str, text: str) -> NoReturn:
        """Raise a DataError that names the file and the key."""
        raise DataError(f"{self.path}: {key}: {text}")

    def require(self, key: str) -> None:
        """Raise a DataError if there is no array `key`."""
        if key not in self.keys:
            self.fail(key, f"expected this key, given {', '.join(self.keys) or 'no arrays'}")

    def header(self, key: str) -> Header:
        """Return shape and dtype of the array `key`."""
        self.require(key)
        with self._open(key) as (_, header):
            return header

    def array(self, key: str) -> NDArray[Any]:
        """Return the whole array `key`; for labels and names, not for images."""
        parts = list(self.rows(key))
        header = self.header(key)
        return np.concatenate(parts) if parts else np.empty(header.shape, header.dtype)

    def rows(self, key: str) -> Iterator[NDArray[Any]]:
        """Give the array `key` in pieces along its first axis, each of about `CHUNK_BYTES`."""
        self.require(key)
        with self._open(key) as (file, header):
            for length in row_counts(header.shape, header.dtype.itemsize):
                shape = (length, *header.shape[1:])
                wanted = prod(shape) * header.dtype.itemsize
                content = file.read(wanted)
                if len(content) != wanted:
                    self.fail(key, f"expected {wanted} more bytes, given {len(content)}")
                yield np.frombuffer(content, header.dtype).reshape(shape)
            file.read(1)  # the checksum of the member is compared at its very end

    @contextmanager
    def _open(self, key: str) -> Iterator[tuple[IO[bytes], Header]]:
        info = self._zip.getinfo(f"{key}.npy")
        with _told(self.path, key), self._zip.open(info) as file:
            header = self._read_header(key, file)
            expected = file.tell() + prod(header.shape) * header.dtype.itemsize
            if info.file_size != expected:
                self.fail(key, f"expected {expected} bytes by its header, given {info.file_size}")
            yield file, header

    def _read_header(self, key: str, file: IO[bytes]) -> Header:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                self.fail(key, f"expected .npy format 1.0 or 2.0, given {version}")
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            self.fail(key, f"expected a .npy header, given {' '.join(str(error).split())}")
        if dtype.hasobject:
            self.fail(key, "expected numbers or text, given pickled objects, which are not read")
        if any(length < 0 for length in shape):
            self.fail(key, f"expected lengths of 0 or more, given {shape}")
        if not shape:
            self.fail(key, "expected an array with at least one axis, given a single value")
        if fortran and len(shape) > 1:
            self.fail(
                key, "expected C order, given Fortran order; save numpy.ascontiguousarray(it)"
            )
        return Header(tuple(shape), dtype)


def row_counts(shape: tuple[int, ...], itemsize: int) -> Iterator[int]:
    """Give the lengths of the pieces in which an array of `shape` is read.

    Example:
        >>> list(row_counts((5, 1024, 1024), 2))
        [2, 2, 1]
    """
    step = max(1, CHUNK_BYTES // max(1, prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], step):
        yield min(step, shape[0] - start)


@contextmanager
def _told(path: Path, key: str = "") -> Iterator[None]:
    """Turn the errors of a damaged archive into a DataError."""
    try:
        yield
    except _DAMAGE as error:
        where = f"{path}: {key}" if key else f"{path}"
        detail = " ".join(str(error).split()) or "it ends too early"
        raise DataError(
            f"{where}: expected a whole .npz (zip) archive, given a truncated or damaged file or "
            f"one of another kind ({detail})"
        ) from error
