"""Sets in one ``.npz``: the layouts of MedMNIST and of MedSegBench, unpacked once.

For each split of ``train``, ``val`` and ``test``:

- MedMNIST: ``{split}_images`` uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, ``{split}_labels`` integer
  ``(N,)``, ``(N, 1)``, or ``(N, K)`` of 0 and 1 for multi-label sets; -1 is unknown.
- with masks: also ``{split}_masks`` uint8 ``(N, H, W)`` and, if some are unknown,
  ``{split}_has_mask`` bool ``(N,)``.
- MedSegBench: ``{split}_label`` are the masks. If every split is also there in class subsets
  ``{split}_images_C1``, ``{split}_label_C1``, ``_C2``, ..., these are taken instead, one after the
  other, and the first is class 0.

``class_names`` and ``mask_names`` (text) give names. Masks of 0 and 255 are read as 0 and 1.

Sources: doi:10.1038/s41597-022-01721-8 (MedMNIST), doi:10.1038/s41597-024-04159-2 (MedSegBench).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medduet.data.archive import Archive
from medduet.data.cache import ProgressFactory, cache_folder, counted, file_digests
from medduet.data.imageset import ImageSet
from medduet.data.layout import SplitLayout, class_meta, find_layout, mask_meta
from medduet.data.store import (
    Meta,
    need_room,
    open_store,
    resize_store,
    stored,
    write_array,
    write_meta,
)
from medduet.errors import ConfigError, DataError, MissingFileError

_FORMAT = "v1"  # part of each store's key; raise it when what `_unpack` writes changes
_UINT8 = np.dtype(np.uint8)


def open_npz(
    path: Path,
    *,
    size: int | None = None,
    cache: Path | None = None,
    progress: ProgressFactory | None = None,
) -> ImageSet:
    """Open the set in the ``.npz`` file at `path`.

    At the first time its arrays are checked and unpacked to the cache folder, in constant memory;
    images and masks are then memory-mapped, so a set may be larger than the memory.

    Args:
        path: a file in one of the layouts above.
        size: height and width to resize to (images antialiased, masks to the nearest pixel);
            ``None`` keeps those of the file.
        cache: see `medduet.data.cache.cache_folder`.
        progress: makes the progress bars.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if its content contradicts itself; one line with the key, what was expected and
            what was given. Nothing is kept of such a file.
    """
    path = path.expanduser().absolute()
    if size is not None and size < 1:
        raise ConfigError(f"size must be a positive number of pixels, given {size}")
    if not path.exists():
        raise MissingFileError(f"no file {path}")
    root = cache_folder(cache)
    try:
        digest = file_digests(path, root, progress).sha256
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    folder = stored(root, f"{digest}-{_FORMAT}", partial(_unpack, path, progress=progress))
    splits, meta = open_store(folder)
    height, width = original = splits["train"].images.shape[1:3]
    fingerprint = digest
    if size is not None and (height, width) != (size, size):
        resize = partial(resize_store, folder, size=size, name=path.name, progress=progress)
        splits, meta = open_store(stored(root, f"{digest}-{_FORMAT}-{size}", resize))
        fingerprint = f"{digest}-{size}"
    return ImageSet(
        name=path.stem,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        class_names=meta.class_names,
        mask_names=meta.mask_names,
        multi_label=meta.multi_label,
        fingerprint=fingerprint,
        info={"source": str(path), "sha256": digest, "original_size": list(original)},
    )


def _unpack(path: Path, folder: Path, progress: ProgressFactory | None) -> None:
    """Check the set at `path` and fill `folder` with its store."""
    with Archive(path) as archive:
        layouts = find_layout(archive)
        labels = {split: layout.read_labels() for split, layout in layouts.items()}
        class_names, multi_label = class_meta(archive, labels, layouts)
        mask_names, divisor = mask_meta(archive, layouts)
        total = sum(_bytes(layout) for layout in layouts.values())
        need_room(folder, total)
        with counted(progress, f"unpack {path.name}", total) as count:
            for split, layout in layouts.items():
                target = folder / f"{split}_images.npy"
                pieces = _told(_image_rows(layout), count)
                write_array(target, layout.shape, _UINT8, pieces)
                if layout.masks:
                    masks = _told((piece // divisor for piece in layout.mask_rows()), count)
                    write_array(folder / f"{split}_masks.npy", layout.shape[:3], _UINT8, masks)
                known = layout.read_has_mask()
                if known is not None:
                    write_array(folder / f"{split}_has_mask.npy", known.shape, known.dtype, [known])
                array = labels[split]
                write_array(folder / f"{split}_labels.npy", array.shape, array.dtype, [array])
    write_meta(folder, Meta(class_names, mask_names, multi_label))


def _image_rows(layout: SplitLayout) -> Iterator[NDArray[np.uint8]]:
    for key in layout.images:
        yield from layout.archive.rows(key)


def _told(
    pieces: Iterator[NDArray[np.uint8]], count: Callable[[int], object]
) -> Iterator[NDArray[np.uint8]]:
    for piece in pieces:
        yield piece
        count(piece.nbytes)


def _bytes(layout: SplitLayout) -> int:
    """Return how much room images and masks of a split take."""
    return prod(layout.shape) + (prod(layout.shape[:3]) if layout.masks else 0)
