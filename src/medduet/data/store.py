"""The unpacked form of a set: a folder of memory-mapped ``.npy`` files that is whole or not there.

A store is ``CACHE/store/KEY``, where KEY names the content (see `medduet.data.npz`), with
``{split}_images.npy``, ``{split}_labels.npy``, where known ``{split}_masks.npy``,
``{split}_has_mask.npy``, ``{split}_ids.npy`` and ``{split}_groups.npy``, and ``meta.json``. It is
built in a hidden folder beside and renamed when it is complete and synced; of two processes that
build one at once, the later uses the earlier's.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medduet.data.cache import ProgressFactory, counted
from medduet.data.chunks import CHUNK_BYTES, iterate_chunks
from medduet.data.imageset import SPLITS, Split
from medduet.data.pixels import resize_image, resize_mask
from medduet.errors import DataError, StorageError
from medduet.utils.files import atomic_folder, sweep
from medduet.utils.parsing import read_json

Pixels = tuple[tuple[int, ...], Iterable[NDArray[np.uint8]]]
"""The shape of all images or masks of a split, and their chunks along the first axis."""


def stored(cache: Path, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of the store `key`, which `build` fills if it isn't there yet.

    Raises:
        DataError: from `build`.
        StorageError: the disk is full or cannot be written; nothing is left then.
    """
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


def write_pixels(
    folder: Path, arrays: Mapping[str, Pixels], description: str, progress: ProgressFactory | None
) -> None:
    """Write `arrays`, by file name, into `folder`, with a bar of that `description`."""
    total = sum(prod(shape) for shape, _ in arrays.values())
    check_room(folder, total)
    with counted(progress, description, total) as count:
        for name, (shape, chunks) in arrays.items():
            # Written, not memory-mapped: a full disk then raises an error, not a bus error.
            with growing_array(folder / name, shape[1:]) as append:
                for chunk in chunks:
                    append(chunk)
                    count(chunk.nbytes)


def check_room(folder: Path, total: int) -> None:
    """Raise an OSError if `folder` has no room for `total` bytes; now, not after hours of work."""
    if shutil.disk_usage(folder).free < total:
        raise OSError(errno.ENOSPC, "not enough room on the disk")


@contextmanager
def growing_array(
    path: Path, tail: tuple[int, ...]
) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Give a function that appends chunks ``(n, *tail)`` to the uint8 ``.npy`` at `path`."""
    rows = 0

    def write_header(file: IO[bytes]) -> None:
        # numpy leaves room for the first length to grow, so the header keeps its own.
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *tail)}
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header)

    with path.open("wb") as file:
        write_header(file)

        def append(chunk: NDArray[np.uint8]) -> None:
            nonlocal rows
            rows += len(chunk)
            file.write(chunk.tobytes())

        yield append
        write_header(file)


def open_store(folder: Path) -> dict[str, Any]:
    """Return the fields of an ImageSet that `folder` holds; images and masks are memory-mapped."""
    try:
        meta = read_json(folder / "meta.json")
        names = {key: tuple(meta[key]) for key in ("class_names", "mask_names")}
        splits = {name: open_split(folder, name) for name in SPLITS}
        return {**splits, **names, "multi_label": meta["multi_label"]}
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged ({error}); delete it and try again") from error


def open_split(folder: Path, name: str) -> Split:
    """Return the split `name` of the store in `folder`."""
    fields: dict[str, Any] = {}
    for field in ("images", "labels", "masks", "has_mask", "ids", "groups"):
        path = folder / f"{name}_{field}.npy"
        if path.exists():
            mode: Literal["r"] | None = "r" if field in ("images", "masks") else None
            fields[field] = np.load(path, mmap_mode=mode, allow_pickle=False)
    return Split(**fields)


def resize_store(
    source: Path, size: int, folder: Path, description: str, progress: ProgressFactory | None
) -> None:
    """Fill `folder` with the store in `source` at `size` x `size`.

    Images and masks are resized as `medduet.data.pixels` does.
    """
    arrays: dict[str, Pixels] = {}
    resizers = {"images": resize_image, "masks": resize_mask}
    for path in sorted(source.iterdir()):
        resize = resizers.get(path.stem.split("_")[-1])
        if resize is None:
            shutil.copyfile(path, folder / path.name)
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            shape = (len(array), size, size, *array.shape[3:])
            arrays[path.name] = shape, _resized(array, size, resize)
    write_pixels(folder, arrays, description, progress)


def _resized(
    array: NDArray[np.uint8], size: int, resize: Callable[..., NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    row, resized = prod(array.shape[1:]), size * size * prod(array.shape[3:])
    for _, chunk in iterate_chunks(array, CHUNK_BYTES * row // max(row, resized)):
        yield np.stack([resize(pixels, size, size) for pixels in chunk])
