"""Reads the arrays of an ``.npz`` in chunks of a few megabytes, and trusts none of its headers.

`numpy.load` would read whole members (``mmap_mode`` is silently ignored for ``.npz``). The members
are ``.npy`` files in a zip archive, so their bytes can be streamed after their header is checked.
"""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from medduet.data.chunks import rows_per_chunk
from medduet.errors import DataError

Header = tuple[tuple[int, ...], np.dtype[Any]]
_MOST_WHOLE = 1 << 24
_MOST_CONTENTS = 1 << 20  # bytes; a set has a few dozen arrays
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,  # a place before the beginning of the file
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
        with _damage_as_data_error(f"{path}"):
            self._file = _File(path)
            self._size = path.stat().st_size
            try:
                self._zip = zipfile.ZipFile(self._file)
            except BaseException:
                self._file.close()
                raise
        self._file.most = None
        names = Counter(name for name in self._zip.namelist() if name.endswith(".npy"))
        self.keys = tuple(name.removesuffix(".npy") for name in names)
        if twice := [name.removesuffix(".npy") for name, count in names.items() if count > 1]:
            self.__exit__()
            self.fail(min(twice), "one array of this name", "several")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()
        self._file.close()

    def fail(self, key: str, expected: str, given: object) -> NoReturn:
        """Raise a DataError that names the file and the key."""
        raise DataError(f"{self.path}: {key}: expected {expected}, given {given}")

    def header(self, key: str) -> Header:
        """Return shape and dtype of the array `key`."""
        with self._open(key) as (_, header):
            return header

    def array(self, key: str) -> NDArray[Any]:
        """Return the whole array `key`; for labels and names, not for images.

        It takes no more memory than the file has bytes, or 16 MiB: zeros are packed so well that a
        small file could ask for all there is.
        """
        with self._open(key) as (file, (shape, dtype)):
            size, most = prod(shape) * max(dtype.itemsize, 8), max(_MOST_WHOLE, self._size)
            if size > most:
                self.fail(key, f"at most {most} bytes, as the file is small", size)
            values = np.frombuffer(file.read(), dtype).reshape(shape)
            if dtype.kind == "U":
                try:
                    "".join(values.ravel().tolist()).encode()
                except ValueError:
                    self.fail(key, "text", "numbers that are no characters")
            return values

    def pixels(self, keys: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
        """Yield the arrays `keys`, one byte per value, in chunks along their first axis."""
        for key in keys:
            with self._open(key) as (file, (shape, _)):
                step = rows_per_chunk(shape)
                for start in range(0, shape[0], step):
                    chunk = (min(step, shape[0] - start), *shape[1:])
                    yield np.frombuffer(file.read(prod(chunk)), np.uint8).reshape(chunk)
                file.read(1)  # the checksum of the member is compared at its very end

    @contextmanager
    def _open(self, key: str) -> Iterator[tuple[IO[bytes], Header]]:
        """Give the file of the array `key`, where its values begin, and its checked header."""
        if key not in self.keys:
            self.fail(key, "this key", ", ".join(self.keys) or "no arrays")
        info = self._zip.getinfo(f"{key}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Others can't be unpacked piece by piece, however large; numpy doesn't write them.
            self.fail(key, "stored or deflated values", f"compression {info.compress_type}")
        with _damage_as_data_error(f"{self.path}: {key}"), self._zip.open(info) as file:
            shape, dtype = self._read_header(key, file)
            expected = file.tell() + prod(shape) * dtype.itemsize
            if info.file_size != expected:
                self.fail(key, f"{expected} bytes by its header", info.file_size)
            yield file, (shape, dtype)

    def _read_header(self, key: str, file: IO[bytes]) -> Header:
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {'.'.join(map(str, version))}")
            with warnings.catch_warnings():  # of what an old Python wrote, or of odd text
                warnings.simplefilter("ignore")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except (zipfile.BadZipFile, zlib.error, EOFError):
            raise
        except Exception as error:  # Python's own parser reads it, and fails in many ways
            self.fail(key, "a .npy header of version 1", error or type(error).__name__)
        if dtype.hasobject:
            self.fail(key, "numbers or text", "pickled objects, which are not read")
        if any(length < 0 for length in shape):
            self.fail(key, "lengths of 0 or more", shape)
        if not shape:
            self.fail(key, "an array with at least one axis", "a single value")
        if fortran and len(shape) > 1:
            self.fail(key, "C order", "Fortran order; save numpy.ascontiguousarray(it)")
        return shape, dtype


class _File(io.FileIO):
    """A file of which no more is read at once than the table of contents of a set may take."""

    most: int | None = _MOST_CONTENTS

    def read(self, size: int | None = -1, /) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise zipfile.BadZipFile(f"its table of contents has {size} bytes")
        return super().read(size) or b""


@contextmanager
def _damage_as_data_error(place: str) -> Iterator[None]:
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
