"""Reads the arrays of an ``.npz`` in pieces of a few megabytes, and trusts none of its headers.

`numpy.load` would read whole members (``mmap_mode`` is silently ignored for ``.npz``). The members
are ``.npy`` files in a zip archive, so their bytes can be streamed after their header is checked.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from medduet.errors import DataError

_CHUNK_BYTES = 4 << 20
Header = tuple[tuple[int, ...], np.dtype[Any]]
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    OSError,  # bzip2, or a place before the beginning of the file
    EOFError,
    ValueError,  # fewer bytes than the header tells
    NotImplementedError,  # a compression that zipfile doesn't know
    RuntimeError,  # an encrypted member
)


class Archive:
    """The arrays of the ``.npz`` at `path`, by key.

    Every method raises a DataError if the file is no archive, is damaged or holds pickled objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _damage_told(f"{path}"):
            self._zip = zipfile.ZipFile(path)
        names = [name for name in self._zip.namelist() if name.endswith(".npy")]
        self.keys = tuple(name.removesuffix(".npy") for name in names)
        if twice := {key for key in self.keys if self.keys.count(key) > 1}:
            self.fail(min(twice), "one array of this name", "several")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()

    def fail(self, key: str, expected: str, given: object) -> NoReturn:
        """Raise a DataError that names the file and the key."""
        raise DataError(f"{self.path}: {key}: expected {expected}, given {given}")

    def header(self, key: str) -> Header:
        """Return shape and dtype of the array `key`."""
        with self._open(key) as (_, header):
            return header

    def array(self, key: str) -> NDArray[Any]:
        """Return the whole array `key`; for labels and names, not for images."""
        with self._open(key) as (file, (shape, dtype)):
            return np.frombuffer(file.read(), dtype).reshape(shape)

    def pixels(self, keys: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
        """Give the arrays `keys`, one byte per value, in pieces along their first axis."""
        for key in keys:
            with self._open(key) as (file, (shape, _)):
                step = rows_per_chunk(shape)
                for start in range(0, shape[0], step):
                    piece = (min(step, shape[0] - start), *shape[1:])
                    yield np.frombuffer(file.read(prod(piece)), np.uint8).reshape(piece)
                file.read(1)  # the checksum of the member is compared at its very end

    @contextmanager
    def _open(self, key: str) -> Iterator[tuple[IO[bytes], Header]]:
        """Give the file of the array `key`, where its values begin, and its checked header."""
        if key not in self.keys:
            self.fail(key, "this key", ", ".join(self.keys) or "no arrays")
        info = self._zip.getinfo(f"{key}.npy")
        with _damage_told(f"{self.path}: {key}"), self._zip.open(info) as file:
            shape, dtype = self._read_header(key, file)
            expected = file.tell() + prod(shape) * dtype.itemsize
            if info.file_size != expected:
                self.fail(key, f"{expected} bytes by its header", info.file_size)
            yield file, (shape, dtype)

    def _read_header(self, key: str, file: IO[bytes]) -> Header:
        try:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = _HEADER_READERS[version](file)
        except (ValueError, KeyError, SyntaxError, TokenError) as error:
            self.fail(key, "a .npy header of version 1 or 2", " ".join(str(error).split()))
        if dtype.hasobject:
            self.fail(key, "numbers or text", "pickled objects, which are not read")
        if any(length < 0 for length in shape):
            self.fail(key, "lengths of 0 or more", shape)
        if not shape:
            self.fail(key, "an array with at least one axis", "a single value")
        if fortran and len(shape) > 1:
            self.fail(key, "C order", "Fortran order; save numpy.ascontiguousarray(it)")
        return shape, dtype


@contextmanager
def _damage_told(place: str) -> Iterator[None]:
    """Turn the errors of a damaged archive into a DataError."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        detail = " ".join(str(error).split()) or "it ends too early"
        raise DataError(
            f"{place}: expected a whole .npz (zip) archive, given a truncated or damaged file "
            f"or one of another kind ({detail})"
        ) from error


def rows_per_chunk(shape: tuple[int, ...]) -> int:
    """Return how many rows of a uint8 array of `shape` are handled at once."""
    return max(1, _CHUNK_BYTES // prod(shape[1:]))
