"""The unpacked form of a set: a folder of memory-mapped ``.npy`` files that is whole or not there.

A store is ``CACHE/store/KEY``, where KEY names the content (see `medduet.data.npz`), with
``{split}_images.npy``, ``{split}_labels.npy``, where known ``{split}_masks.npy`` and
``{split}_has_mask.npy``, and ``meta.json``. It is built in a hidden folder beside and renamed when
it is complete and synced; of two processes that build one at once, the later uses the earlier's.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medduet.data.archive import row_counts
from medduet.data.cache import ProgressFactory, counted
from medduet.data.imageset import SPLITS, Split
from medduet.errors import DataError
from medduet.files import read_json, write_json

logger = logging.getLogger(__name__)

_STALE_SECONDS = 24 * 3600


class Meta(NamedTuple):
    """What the numbers in a store mean; see `medduet.data.imageset.ImageSet`."""

    class_names: tuple[str, ...]
    mask_names: tuple[str, ...]
    multi_label: bool


def stored(cache: Path, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of the store `key`, which `build` fills if it isn't there yet.

    Raises:
        DataError: from `build`, or if the disk is full or cannot be written; nothing is left then.
    """
    folder = cache / "store" / key
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f".{key}.{secrets.token_hex(8)}")
    try:
        temporary.mkdir(parents=True)
        _sweep(folder)
        build(temporary)
        _sync(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same content
                raise
        _sync(folder.parent)
    except OSError as error:
        if isinstance(error, DataError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        raise DataError(
            f"cannot unpack into {cache}: {reason}; make room, or choose another cache folder with "
            "the environment variable MEDDUET_CACHE"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def need_room(folder: Path, size: int) -> None:
    """Raise an OSError (disk full) now if `size` bytes don't fit, not after gigabytes of work."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, "not enough room on the disk")


def write_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterable[NDArray[Any]]
) -> None:
    """Write a ``.npy`` of `shape` and `dtype` from pieces along the first axis; synced to disk.

    It is written, not memory-mapped: a full disk then raises an error instead of a bus error.
    """
    descr = np.lib.format.dtype_to_descr(dtype)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())


def write_meta(folder: Path, meta: Meta) -> None:
    """Write ``meta.json`` of the store in `folder`."""
    write_json(folder / "meta.json", meta._asdict())


def open_store(folder: Path) -> tuple[dict[str, Split], Meta]:
    """Open the store in `folder`: images and masks memory-mapped, labels in memory."""
    try:
        raw = read_json(folder / "meta.json")
        meta = Meta(tuple(raw["class_names"]), tuple(raw["mask_names"]), raw["multi_label"])
        return {name: _open_split(folder, name) for name in SPLITS}, meta
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged ({error}); delete it and try again") from error


def _open_split(folder: Path, name: str) -> Split:
    def mapped(kind: str) -> Any:
        return np.load(folder / f"{name}_{kind}.npy", mmap_mode="r", allow_pickle=False)

    has_mask = (folder / f"{name}_has_mask.npy").exists()
    return Split(
        images=mapped("images"),
        labels=np.array(mapped("labels")),
        masks=mapped("masks") if (folder / f"{name}_masks.npy").exists() else None,
        has_mask=np.array(mapped("has_mask")) if has_mask else None,
    )


def resize_store(
    source: Path, folder: Path, size: int, name: str, progress: ProgressFactory | None
) -> None:
    """Fill `folder` with the store in `source` at `size` x `size`; the progress tells `name`.

    Images are resized bilinearly with antialiasing (as Pillow does), masks to the nearest pixel,
    so that no new mask class appears.
    """
    splits, meta = open_store(source)
    arrays: dict[str, NDArray[np.uint8]] = {}
    for split, content in splits.items():
        arrays[f"{split}_images.npy"] = content.images
        if content.masks is not None:
            arrays[f"{split}_masks.npy"] = content.masks
        for file in (f"{split}_labels.npy", f"{split}_has_mask.npy"):
            if (source / file).exists():
                shutil.copyfile(source / file, folder / file)
    shapes = {file: (len(a), size, size, *a.shape[3:]) for file, a in arrays.items()}
    need_room(folder, sum(prod(shape) for shape in shapes.values()))
    total = sum(array.nbytes for array in arrays.values())
    with counted(progress, f"resize {name}", total) as count:
        for file, array in arrays.items():
            mode = "bilinear" if file.endswith("_images.npy") else "nearest-exact"
            pieces = _resized(array, size, mode, count)
            write_array(folder / file, shapes[file], array.dtype, pieces)
    write_meta(folder, meta)


def _resized(
    array: NDArray[np.uint8], size: int, mode: str, count: Callable[[int], object]
) -> Iterator[NDArray[np.uint8]]:
    start = 0
    for length in row_counts(array.shape, 1):
        piece = np.array(array[start : start + length])
        start += length
        pixels = torch.from_numpy(piece)
        pixels = pixels.unsqueeze(1) if piece.ndim == 3 else pixels.permute(0, 3, 1, 2)
        pixels = functional.interpolate(
            pixels, size=(size, size), mode=mode, antialias=mode == "bilinear"
        )
        pixels = pixels.squeeze(1) if piece.ndim == 3 else pixels.permute(0, 2, 3, 1)
        yield pixels.numpy()
        count(piece.nbytes)


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed left of this store, once it is surely not in use."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left)
                logger.info("removed %s, left by a process that did not end", left)
        except OSError:  # another process removes it too
            continue


def _sync(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
