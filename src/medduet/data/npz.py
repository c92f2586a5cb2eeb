"""Sets in one ``.npz``: the layouts of MedMNIST and of MedSegBench, unpacked once.

For each split of ``train``, ``val`` and ``test``:

- MedMNIST: ``{split}_images`` uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, ``{split}_labels`` integer
  ``(N,)``, ``(N, 1)``, or ``(N, K)`` of 0 and 1 for multi-label sets; -1 is unknown.
- with masks: also ``{split}_masks`` uint8 ``(N, H, W)`` and, if some are unknown,
  ``{split}_has_mask`` bool ``(N,)``.
- MedSegBench: ``{split}_label`` are the masks. If every split is also there in class subsets
  ``{split}_images_C1``, ``{split}_label_C1``, ``_C2``, ..., these are taken instead, one after the
  other, and the first is class 0.

``{split}_ids`` (text ``(N,)``) say how each image is called, ``{split}_groups`` (integers ``(N,)``)
which belong together, such as those of a patient; -1 is unknown.

``class_names`` and ``mask_names`` (text) give names. Masks of 0 and 255 are read as 0 and 1.

Sources: doi:10.1038/s41597-022-01721-8 (MedMNIST), doi:10.1038/s41597-024-04159-2 (MedSegBench).
"""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from medduet.data.archive import Archive
from medduet.data.cache import ProgressFactory, cache_folder, file_digests
from medduet.data.imageset import ImageSet
from medduet.data.layout import class_meta, find_layout, mask_meta
from medduet.data.store import Pixels, check_room, open_store, resize_store, stored, write_pixels
from medduet.errors import ConfigError, DataError, MissingFileError
from medduet.utils.files import write_json

_FORMAT = "v2"  # part of each store's key; raise it when what `_unpack` writes changes


def open_npz(
    path: Path,
    *,
    size: int | None = None,
    cache: Path | None = None,
    progress: ProgressFactory | None = None,
) -> ImageSet:
    """Open the set in the ``.npz`` file at `path`.

    At the first time its arrays are checked and unpacked to the cache folder, in constant memory;
    images and masks are then memory-mapped, so a set may be larger than the memory. Arguments as
    for `medduet.data.open_images`.

    Raises:
        MissingFileError: if there is no such file.
        DataError: if its content contradicts itself, and nothing is kept of it.
    """
    path = path.expanduser().absolute()
    if size is not None and size < 1:
        raise ConfigError(f"size must be a positive number of pixels, given {size}")
    root = cache_folder(cache)
    try:
        fingerprint = digest = file_digests(path, root, progress).sha256
    except FileNotFoundError as error:
        raise MissingFileError(f"no file {path}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error

    unpack = partial(_unpack, path, root, digest, progress=progress)
    folder = stored(root, f"{digest}-{_FORMAT}", unpack)
    fields = open_store(folder)
    original = fields["train"].images.shape[1:3]
    if size is not None and original != (size, size):
        text = f"resize {path.name}"
        resize = partial(resize_store, folder, size, description=text, progress=progress)
        fields = open_store(stored(root, f"{digest}-{_FORMAT}-{size}", resize))
        fingerprint = f"{digest}-{size}"
    return ImageSet(
        name=path.stem,
        **fields,
        fingerprint=fingerprint,
        info={"source": str(path), "sha256": digest, "original_size": list(original)},
    )


def _unpack(
    path: Path, root: Path, digest: str, folder: Path, progress: ProgressFactory | None
) -> None:
    """Check the set at `path` and fill `folder` with its store."""
    with Archive(path) as archive:
        layouts = find_layout(archive)
        # Before anything is unpacked: a small file may say that it holds whatever it likes.
        check_room(folder, sum(prod(layout.shape) for layout in layouts.values()))
        class_names, multi_label = class_meta(archive, layouts)
        mask_names, divisor = mask_meta(archive, layouts)
        arrays: dict[str, Pixels] = {}
        for split, layout in layouts.items():
            arrays[f"{split}_images.npy"] = layout.shape, archive.pixels(layout.images)
            if layout.masks:
                masks = (piece // divisor for piece in layout.mask_pieces())
                arrays[f"{split}_masks.npy"] = layout.shape[:3], masks
            for kind in ("labels", "has_mask", "ids", "groups"):
                if (row := getattr(layout, kind)) is not None:
                    np.save(folder / f"{split}_{kind}.npy", row)
        write_pixels(folder, arrays, f"unpack {path.name}", progress)
    names = {"class_names": class_names, "mask_names": mask_names}
    write_json(folder / "meta.json", {**names, "multi_label": multi_label})
    if file_digests(path, root).sha256 != digest:  # the store would lie under another's key
        raise DataError(f"{path} changed while it was read; try again")
