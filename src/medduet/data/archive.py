"""Reads the arrays of a stranger's ``.npz`` in constant memory, and trusts none of its headers.

`numpy.load` would read whole members: ``mmap_mode`` is silently ignored for ``.npz``.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic
from numpy.typing import NDArray

from medduet.data.imageset import rows_per_chunk
from medduet.data.reading.core import MAX_FRAME_PIXELS
from medduet.errors import DataError

_PIXELS = re.compile(r"(train|val|test)_(images|masks|label)(_C[0-9]{1,6})?")
_ROWS = re.compile(r"(train|val|test)_(labels|has_mask|ids|groups)|(class|mask)_names")
_MOST_ROWS = 16 << 20  # bytes of what is no image, unless the file itself is larger
_MOST_CONTENTS = 1 << 20  # bytes of the zip's table of contents; a set has a few dozen arrays


class Archive(dict[str, NDArray[Any]]):
    """The arrays of a set at `path`; those of images and masks are empty shapes, see `chunks`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._members: dict[str, zipfile.ZipInfo] = {}
        with self._reading(), _Contents(path) as file:
            members = zipfile.ZipFile(file).infolist()
        for member in members:
            key = member.filename.removesuffix(".npy")
            if _PIXELS.fullmatch(key) or _ROWS.fullmatch(key):
                with self._reading(key):
                    self._add(key, member)

    def __missing__(self, key: str) -> NoReturn:
        self.need(False, key, "this key", ", ".join(self) or "no arrays")
        raise AssertionError

    def need(self, holds: object, key: str, expected: str, given: object) -> None:
        """Raise a DataError that names the file and the key unless something `holds`."""
        if not holds:
            raise DataError(f"{self.path}: {key}: expected {expected}, given {given}")

    def chunks(self, key: str) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes of an array of images or masks, ``(n, ...)``, a few megabytes at once."""
        length, *tail = self[key].shape
        step = rows_per_chunk((length, *tail))
        with (
            self._reading(key),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._members[key]) as file,
        ):
            read_magic(file)
            read_array_header_1_0(file)
            for start in range(0, length, step):
                rows = min(step, length - start)
                yield np.ndarray((rows, *tail), np.uint8, file.read(rows * prod(tail)))

    def _add(self, key: str, member: zipfile.ZipInfo) -> None:
        """Check the header of an array, and read it unless it is of images."""
        self.need(key not in self, key, "one array of this name", "several")
        # Others can't be unpacked in constant memory; numpy doesn't write them.
        known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        self.need(known, key, "stored or deflated values", "another compression")
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            version = read_magic(file)
            self.need(version == (1, 0), key, "a .npy header of version 1", version)
            shape, fortran, dtype = read_array_header_1_0(file)
            self.need(not dtype.hasobject, key, "numbers or text", "pickled objects")
            whole = len(shape) > 0 and min(shape) >= 0
            self.need(whole, key, "an array with at least one axis", f"shape {shape}")
            self.need(not fortran or len(shape) == 1, key, "C order", "Fortran order")
            size, given = file.tell() + prod(shape) * dtype.itemsize, member.file_size
            self.need(size == given, key, f"{size} bytes by its header", given)
            limit = max(_MOST_ROWS, self.path.stat().st_size)
            if pixels := _PIXELS.fullmatch(key):
                size, limit = prod(shape[1:3]), MAX_FRAME_PIXELS
            self.need(size <= limit, key, f"a size of at most {limit}", size)
            self._members[key] = member
            if pixels:
                self[key] = np.broadcast_to(np.zeros((), dtype), shape)
            else:
                self[key] = np.ndarray(shape, dtype, file.read())

    @contextmanager
    def _reading(self, key: str = "") -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # Python's own parser reads headers, and fails in many ways
            detail = " ".join(str(error).split()) or "it ends too early"
            raise DataError(
                f"{self.path}: {key}{': ' if key else ''}expected a whole .npz (zip) archive, "
                f"given a truncated or damaged file or one of another kind ({detail})"
            ) from error


class _Contents(io.FileIO):
    """A file of which no more is read at once than the table of contents of a set may take."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_CONTENTS:
            raise zipfile.BadZipFile(f"its table of contents has {size} bytes")
        return super().read(size) or b""
