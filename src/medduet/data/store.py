"""The unpacked form of a set: a folder of memory-mapped ``.npy`` files that is whole or not there.

A store is ``CACHE/store/KEY``, where KEY names the content, with ``{split}_{field}.npy`` for each
field of a `Split` that is known, and ``meta.json``.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from medduet.data.imageset import PIXELS, SPLITS, Split
from medduet.errors import DataError, StorageError
from medduet.utils.files import atomic_folder, sweep
from medduet.utils.parsing import read_json

Append = Callable[[NDArray[np.uint8]], None]


def stored(cache: Path, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of the store `key`; `build` fills it, whole, if it does not exist yet."""
    folder = cache / "store" / key
    if folder.is_dir():
        return folder
    try:
        with atomic_folder(folder) as temporary:
            sweep(folder.parent)
            build(temporary)
    except (StorageError, NotADirectoryError, FileExistsError) as error:
        raise StorageError(f"{error}; or set MEDDUET_CACHE to another folder") from error
    return folder


def check_room(folder: Path, total: int) -> None:
    """Raise an OSError if `folder` has no room for `total` bytes; now, not after hours of work."""
    if shutil.disk_usage(folder).free < total:
        raise OSError(errno.ENOSPC, "not enough room on the disk")


@contextmanager
def growing_array(path: Path, tail: tuple[int, ...]) -> Iterator[Append]:
    """Give a function that appends chunks ``(n, *tail)`` to the uint8 ``.npy`` at `path`.

    They are written, not memory-mapped: a full disk then raises an error, not a bus error.
    """
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (0, *tail)}

    def append(chunk: NDArray[np.uint8]) -> None:
        header["shape"] = (header["shape"][0] + len(chunk), *tail)
        file.write(chunk.tobytes())

    with path.open("wb") as file:
        write_array_header_1_0(file, header)
        yield append
        file.seek(0)  # numpy leaves room for the first length to grow
        write_array_header_1_0(file, header)


def open_store(folder: Path) -> dict[str, Any]:
    """Return the fields of an ImageSet that `folder` holds; images and masks are memory-mapped."""
    try:
        meta = read_json(folder / "meta.json")
        names = {key: tuple(meta[key]) for key in ("class_names", "mask_names")}
        splits = {name: open_split(folder, name) for name in SPLITS}
        return {**splits, **names, "multi_label": meta["multi_label"], "info": meta["info"]}
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged ({error}): delete it and try again") from error


def open_split(folder: Path, name: str) -> Split:
    """Return the split `name` of the store in `folder`."""
    arrays: dict[str, Any] = {}
    for field in (field.name for field in fields(Split)):
        path = folder / f"{name}_{field}.npy"
        if path.exists():
            mode: Any = "r" if field in PIXELS else None
            arrays[field] = np.load(path, mmap_mode=mode, allow_pickle=False)
    return Split(**arrays)
