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

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.archive import Archive
from medduet.data.cache import ProgressFactory, cache_folder, file_digests
from medduet.data.imageset import SPLITS, ImageSet
from medduet.data.reading.core import MAX_FRAME_PIXELS
from medduet.data.store import Pixels, check_room, open_store, resize_store, stored, write_pixels
from medduet.errors import DataError, MissingFileError
from medduet.types import UNKNOWN_LABEL
from medduet.utils.files import write_json

logger = logging.getLogger(__name__)

MAX_CLASSES = 10_000
MAX_MASK_CLASSES = 64
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
        class_names, multi_label = _class_meta(archive, layouts)
        mask_names, divisor = _mask_meta(archive, layouts)
        arrays: dict[str, Pixels] = {}
        for split, layout in layouts.items():
            arrays[f"{split}_images.npy"] = layout.shape, archive.pixels(layout.images)
            if layout.masks:
                masks = (chunk // divisor for chunk in layout.mask_chunks())
                arrays[f"{split}_masks.npy"] = layout.shape[:3], masks
            for kind in ("labels", "has_mask", "ids", "groups"):
                if (row := getattr(layout, kind)) is not None:
                    np.save(folder / f"{split}_{kind}.npy", row)
        write_pixels(folder, arrays, f"unpack {path.name}", progress)
    names = {"class_names": class_names, "mask_names": mask_names}
    write_json(folder / "meta.json", {**names, "multi_label": multi_label})
    if file_digests(path, root).sha256 != digest:  # the store would lie under another's key
        raise DataError(f"{path} changed while it was read; try again")


@dataclass(frozen=True)
class SplitLayout:
    """Where the pixels of one split lie, and all that is small enough to be read at once.

    `images` and `masks` are keys, as many of each, or no masks; `shape` is that of all images;
    `labels`, `has_mask`, `ids` and `groups` are those of `medduet.data.imageset.Split`.
    """

    archive: Archive
    images: tuple[str, ...]
    masks: tuple[str, ...]
    shape: tuple[int, ...]
    labels: NDArray[np.int64]
    has_mask: NDArray[np.bool_] | None
    ids: NDArray[np.str_] | None
    groups: NDArray[np.int64] | None

    def mask_chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the masks in chunks ``(n, H, W)``; those that aren't known are all zero."""
        start = 0
        for chunk in self.archive.pixels(self.masks):
            masks = chunk.reshape(chunk.shape[:3])
            if self.has_mask is not None:
                masks = masks * self.has_mask[start : start + len(masks), None, None]
            start += len(masks)
            yield masks


def find_layout(archive: Archive) -> dict[str, SplitLayout]:
    """Return where each split lies in `archive`; DataError if something is missing or misshapen."""
    subsets = {split: _subsets(archive, split) for split in SPLITS}
    common = subsets["train"] if len(set(subsets.values())) == 1 else ()
    endings = tuple(f"_C{number}" for number in common) or ("",)

    def given(base: str) -> bool:  # one split with masks or labels means all should have them
        return any(f"{split}_{base}{endings[0]}" in archive.keys for split in SPLITS)

    mask_base = next((base for base in ("masks", "label") if given(base)), None)
    layouts: dict[str, SplitLayout] = {}
    for split in SPLITS:
        images = tuple(f"{split}_images{end}" for end in endings)
        masks = tuple(f"{split}_{mask_base}{end}" for end in endings) if mask_base else ()
        counts = [archive.header(key)[0][0] for key in images]
        tails = [_image_tail(archive, key) for key in images]
        wanted = layouts["train"].shape[1:] if layouts else tails[0]
        for key, tail in zip(images, tails, strict=True):
            if tail != wanted:
                archive.fail(key, f"images of {wanted} as in train", tail)
        total = sum(counts)
        if total == 0:
            archive.fail(images[0], "at least one image", "an empty split")
        if common:
            labels = np.repeat(np.arange(len(common), dtype=np.int64), counts)
        elif given("labels") or not mask_base:
            labels = _read_labels(archive, f"{split}_labels", total)
        else:
            labels = np.full(total, UNKNOWN_LABEL, np.int64)
        for image_key, mask_key in zip(images, masks, strict=bool(masks)):
            _check_mask(archive, image_key, mask_key)
        has_mask = _read_has_mask(archive, f"{split}_has_mask", total)
        if has_mask is not None and not masks:
            archive.fail(f"{split}_has_mask", f"also {split}_masks", "no masks")
        layouts[split] = SplitLayout(
            archive,
            images,
            masks,
            (total, *wanted),
            labels,
            has_mask,
            _read_row(archive, f"{split}_ids", total, "U"),
            _read_row(archive, f"{split}_groups", total, "iu"),
        )
    return layouts


def _class_meta(archive: Archive, layouts: dict[str, SplitLayout]) -> tuple[tuple[str, ...], bool]:
    """Return the class names and whether an image can have several classes at once."""
    train = layouts["train"].labels
    several = train.ndim == 2
    number = train.shape[1] if several else int(train.max()) + 1
    names = _read_names(archive, "class_names")
    if names is None:
        names = tuple(f"class {index}" for index in range(number))
    elif len(names) < number or (several and len(names) > number):
        archive.fail("class_names", f"{number} names", len(names))
    for split, layout in layouts.items():
        key, labels = f"{split}_labels", layout.labels
        if labels.shape[1:] != train.shape[1:]:
            archive.fail(key, f"K as in train {train.shape[1:]}", labels.shape[1:])
        if not several and labels.max() >= len(names):
            known = f"labels from 0 to {len(names) - 1}, as in train or class_names, or -1"
            archive.fail(key, f"{known} for unknown", labels.max())
    if not several and (unseen := set(range(number)) - set(train.tolist())):
        logger.warning("%s: no image of train has label %s", archive.path, sorted(unseen))
    return names, several


def _mask_meta(archive: Archive, layouts: dict[str, SplitLayout]) -> tuple[tuple[str, ...], int]:
    """Return the mask names, empty without masks, and by what mask values are to be divided."""
    if not layouts["train"].masks:
        return (), 1
    seen: dict[str, set[int]] = {}
    for split, layout in layouts.items():
        seen[split] = set().union(*(np.unique(chunk).tolist() for chunk in layout.mask_chunks()))
    divisor = 255 if set().union(*seen.values()) in ({255}, {0, 255}) else 1
    seen = {split: {value // divisor for value in values} for split, values in seen.items()}
    names = _read_names(archive, "mask_names")
    allowed = seen["train"] | {0} if names is None else set(range(len(names)))
    source = "in train" if names is None else "by mask_names"
    for split, values in seen.items():
        key = layouts[split].masks[0]
        if max(values) >= MAX_MASK_CLASSES:
            limits = f"mask classes 0 to {MAX_MASK_CLASSES - 1}, or only 0 and 255"
            archive.fail(key, limits, max(values))
        if extra := values - allowed:
            archive.fail(key, f"mask classes known {source}", f"also {min(extra)}")
    if names is None and max(allowed) <= 1:
        names = ("background", "lesion")
    elif names is None:
        names = ("background", *(f"mask {index}" for index in range(1, max(allowed) + 1)))
    return names, divisor


def _subsets(archive: Archive, split: str) -> tuple[int, ...]:
    """Return the numbers of the class subsets of `split`, ascending."""
    found = (re.fullmatch(rf"{split}_images_C([0-9]{{1,6}})", key) for key in archive.keys)
    return tuple(sorted(int(match[1]) for match in found if match))


def _image_tail(archive: Archive, key: str) -> tuple[int, ...]:
    """Return ``(H, W)`` or ``(H, W, 3)`` of the images `key`."""
    shape, dtype = archive.header(key)
    if len(shape) == 4 and shape[3] == 4:
        archive.fail(key, "1 or 3 channels", f"4 {shape}; drop the alpha one")
    grey = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
    if dtype != np.uint8 or 0 in shape[1:] or not (grey or (len(shape) == 4 and shape[3] == 3)):
        archive.fail(key, "uint8 (N, H, W) or (N, H, W, 3)", f"{dtype} {shape}")
    if shape[1] * shape[2] > MAX_FRAME_PIXELS:
        archive.fail(key, f"images of at most {MAX_FRAME_PIXELS} pixels", shape)
    return shape[1:3] if grey else shape[1:]


def _check_mask(archive: Archive, image_key: str, mask_key: str) -> None:
    (images, _), (shape, dtype) = archive.header(image_key), archive.header(mask_key)
    wanted = images[:3]
    if dtype not in (np.uint8, np.bool_) or shape not in (wanted, (*wanted, 1)):
        hint = "; class labels are called _labels" if mask_key.endswith("_label") else ""
        archive.fail(mask_key, f"uint8 masks {wanted} as {image_key}", f"{dtype} {shape}{hint}")


def _read_has_mask(archive: Archive, key: str, total: int) -> NDArray[np.bool_] | None:
    if key not in archive.keys:
        return None
    shape, dtype = archive.header(key)
    if dtype != np.bool_ or shape != (total,):
        archive.fail(key, f"bool ({total},)", f"{dtype} {shape}")
    return archive.array(key)


def _read_row(archive: Archive, key: str, total: int, kinds: str) -> NDArray[Any] | None:
    """Return the values ``(N,)`` under `key`, text or integers, or ``None`` if there are none."""
    if key not in archive.keys:
        return None
    shape, dtype = archive.header(key)
    if dtype.kind not in kinds or shape != (total,):
        wanted = "text" if kinds == "U" else "integers"
        archive.fail(key, f"{wanted} ({total},)", f"{dtype} {shape}")
    values = archive.array(key)
    return values if kinds == "U" else values.astype(np.int64)


def _read_labels(archive: Archive, key: str, total: int) -> NDArray[np.int64]:
    shape, dtype = archive.header(key)
    if dtype.kind not in "iub" or len(shape) not in (1, 2) or 0 in shape[1:]:
        archive.fail(key, "integers (N,), (N, 1) or (N, K)", f"{dtype} {shape}")
    if shape[0] != total:
        archive.fail(key, f"{total} labels, one for each image", shape[0])
    labels = archive.array(key)
    several = len(shape) == 2 and shape[1] > 1
    top = 1 if several else MAX_CLASSES - 1
    for value in (int(labels.min()), int(labels.max())):
        if not UNKNOWN_LABEL <= value <= top:
            archive.fail(key, f"labels from 0 to {top}, or -1 for unknown", value)
    return labels.astype(np.int64).reshape(shape if several else total)


def _read_names(archive: Archive, key: str) -> tuple[str, ...] | None:
    """Return the names under `key`, or ``None`` if there are none."""
    if key not in archive.keys:
        return None
    shape, dtype = archive.header(key)
    if dtype.kind != "U" or len(shape) != 1 or not shape[0]:
        archive.fail(key, "text (K,)", f"{dtype} {shape}")
    names: list[Any] = archive.array(key).tolist()
    if len(set(names)) != len(names):
        archive.fail(key, "different names", ", ".join(names))
    return tuple(names)
