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
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from medduet.data.archive import extract_arrays, fail
from medduet.data.cache import ProgressFactory, cache_folder, file_digests
from medduet.data.chunks import iterate_chunks
from medduet.data.imageset import SPLITS, ImageSet
from medduet.data.store import Pixels, open_store, resize_store, stored, write_pixels
from medduet.errors import DataError, MissingFileError
from medduet.types import UNKNOWN_LABEL
from medduet.utils.files import write_json

logger = logging.getLogger(__name__)

MAX_CLASSES = 10_000
MAX_MASK_CLASSES = 64
_FORMAT = "v3"  # part of each store's key; raise it when what `_unpack` writes changes


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
    members = folder / "members"
    members.mkdir()
    arrays = _Arrays(path, extract_arrays(path, members, progress))
    splits = _find_splits(arrays)
    class_names, multi_label = _class_names(arrays, splits)
    mask_names, divisor = _mask_names(arrays, splits)
    for name, split in splits.items():
        pixels: dict[str, Pixels] = {}
        if split.images[0].shape == split.shape:  # one array, which is the store's already
            (members / f"{split.image_keys[0]}.npy").rename(folder / f"{name}_images.npy")
        else:
            pixels[f"{name}_images.npy"] = (split.shape, split.image_chunks())
        if split.masks:
            chunks = (chunk // divisor for chunk in split.mask_chunks())
            pixels[f"{name}_masks.npy"] = (split.shape[:3], chunks)
        write_pixels(folder, pixels, "", None)
        for field in ("labels", "has_mask", "ids", "groups"):
            if (row := getattr(split, field)) is not None:
                np.save(folder / f"{name}_{field}.npy", row)
    shutil.rmtree(members)
    names = {"class_names": class_names, "mask_names": mask_names}
    write_json(folder / "meta.json", {**names, "multi_label": multi_label})
    if file_digests(path, root).sha256 != digest:  # the store would lie under another's key
        raise DataError(f"{path} changed while it was read; try again")


class _Arrays(dict[str, NDArray[Any]]):
    """The arrays of the file at `path`, by key."""

    def __init__(self, path: Path, arrays: dict[str, NDArray[Any]]) -> None:
        super().__init__(arrays)
        self.path = path

    def __missing__(self, key: str) -> NoReturn:
        self.fail(key, "this key", ", ".join(self) or "no arrays")

    def fail(self, key: str, expected: str, given: object) -> NoReturn:
        """Raise a DataError that names the file and the key."""
        fail(self.path, key, expected, given)

    def rows(self, key: str, total: int, kinds: str) -> NDArray[Any] | None:
        """Return the values ``(N,)`` under `key`, of these kinds, or ``None`` without any."""
        if key not in self:
            return None
        values, expected = self[key], {"U": "text", "iu": "integers", "b": "bool"}[kinds]
        if values.dtype.kind not in kinds or values.shape != (total,):
            self.fail(key, f"{expected} ({total},)", f"{values.dtype} {values.shape}")
        if kinds == "U":
            try:
                "".join(values.tolist()).encode()
            except ValueError:
                self.fail(key, "text", "numbers that are no characters")
        return np.array(values, dtype=np.int64) if kinds == "iu" else np.array(values)

    def names(self, key: str) -> tuple[str, ...] | None:
        """Return the names under `key`, or ``None`` without any."""
        values = self.rows(key, len(self.get(key, ())), "U")
        if values is None:
            return None
        if len(set(values.tolist())) != len(values) or not len(values):
            self.fail(key, "different names", ", ".join(values.tolist()))
        return tuple(values.tolist())


@dataclass(frozen=True)
class _Split:
    """The arrays of one split; `shape` is that of all images, one after the other."""

    image_keys: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    mask_keys: tuple[str, ...]
    masks: tuple[NDArray[np.uint8], ...]
    shape: tuple[int, ...]
    labels: NDArray[np.int64]
    has_mask: NDArray[np.bool_] | None
    ids: NDArray[np.str_] | None
    groups: NDArray[np.int64] | None

    def image_chunks(self) -> Iterator[NDArray[np.uint8]]:
        for images in self.images:
            for _, chunk in iterate_chunks(images):
                yield chunk.reshape(-1, *self.shape[1:])

    def mask_chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the masks in chunks ``(n, H, W)``; those that aren't known are all zero."""
        start = 0
        for masks in self.masks:
            for _, chunk in iterate_chunks(masks):
                chunk = chunk.reshape(chunk.shape[:3]).view(np.uint8)
                if self.has_mask is not None:
                    chunk = chunk * self.has_mask[start : start + len(chunk), None, None]
                start += len(chunk)
                yield chunk


def _find_splits(arrays: _Arrays) -> dict[str, _Split]:
    """Return the arrays of each split; DataError if something is missing or misshapen."""
    subsets = {split: _subsets(arrays, split) for split in SPLITS}
    common = subsets["train"] if len(set(subsets.values())) == 1 else ()
    endings = tuple(f"_C{number}" for number in common) or ("",)

    def has(base: str) -> bool:  # one split with masks or labels means all should have them
        return any(f"{split}_{base}{endings[0]}" in arrays for split in SPLITS)

    mask_base = next((base for base in ("masks", "label") if has(base)), None)
    splits: dict[str, _Split] = {}
    for split in SPLITS:
        image_keys = tuple(f"{split}_images{end}" for end in endings)
        mask_keys = tuple(f"{split}_{mask_base}{end}" for end in endings) if mask_base else ()
        tails = [_image_tail(arrays, key) for key in image_keys]
        tail = splits["train"].shape[1:] if splits else tails[0]
        for key, each in zip(image_keys, tails, strict=True):
            if each != tail:
                arrays.fail(key, f"images of {tail} as in train", each)
        counts = [len(arrays[key]) for key in image_keys]
        total = sum(counts)
        if total == 0:
            arrays.fail(image_keys[0], "at least one image", "an empty split")
        if common:
            labels = np.repeat(np.arange(len(common), dtype=np.int64), counts)
        elif has("labels") or not mask_base:
            labels = _labels(arrays, f"{split}_labels", total)
        else:
            labels = np.full(total, UNKNOWN_LABEL, np.int64)
        for image_key, mask_key in zip(image_keys, mask_keys, strict=bool(mask_keys)):
            _check_mask(arrays, image_key, mask_key)
        has_mask = arrays.rows(f"{split}_has_mask", total, "b")
        if has_mask is not None and not mask_keys:
            arrays.fail(f"{split}_has_mask", f"also {split}_masks", "no masks")
        splits[split] = _Split(
            image_keys,
            tuple(arrays[key] for key in image_keys),
            mask_keys,
            tuple(arrays[key] for key in mask_keys),
            (total, *tail),
            labels,
            has_mask,
            arrays.rows(f"{split}_ids", total, "U"),
            arrays.rows(f"{split}_groups", total, "iu"),
        )
    return splits


def _class_names(arrays: _Arrays, splits: dict[str, _Split]) -> tuple[tuple[str, ...], bool]:
    """Return the class names and whether an image can have several classes at once."""
    train = splits["train"].labels
    several = train.ndim == 2
    number = train.shape[1] if several else int(train.max()) + 1
    names = arrays.names("class_names")
    if names is None:
        names = tuple(f"class {index}" for index in range(number))
    elif len(names) < number or (several and len(names) > number):
        arrays.fail("class_names", f"{number} names", len(names))
    for name, split in splits.items():
        key, labels = f"{name}_labels", split.labels
        if labels.shape[1:] != train.shape[1:]:
            arrays.fail(key, f"K as in train {train.shape[1:]}", labels.shape[1:])
        if not several and labels.max() >= len(names):
            known = f"labels from 0 to {len(names) - 1}, as in train or class_names, or -1"
            arrays.fail(key, f"{known} for unknown", labels.max())
    if not several and (unseen := set(range(number)) - set(train.tolist())):
        logger.warning("%s: no image of train has label %s", arrays.path, sorted(unseen))
    return names, several


def _mask_names(arrays: _Arrays, splits: dict[str, _Split]) -> tuple[tuple[str, ...], int]:
    """Return the mask names, empty without masks, and by what mask values are to be divided."""
    if not splits["train"].masks:
        return (), 1
    seen: dict[str, set[int]] = {}
    for name, split in splits.items():
        seen[name] = set().union(*(np.unique(chunk).tolist() for chunk in split.mask_chunks()))
    divisor = 255 if set().union(*seen.values()) in ({255}, {0, 255}) else 1
    seen = {split: {value // divisor for value in values} for split, values in seen.items()}
    names = arrays.names("mask_names")
    allowed = seen["train"] | {0} if names is None else set(range(len(names)))
    source = "in train" if names is None else "by mask_names"
    for name, values in seen.items():
        key = splits[name].mask_keys[0]
        if max(values) >= MAX_MASK_CLASSES:
            limits = f"mask classes 0 to {MAX_MASK_CLASSES - 1}, or only 0 and 255"
            arrays.fail(key, limits, max(values))
        if extra := values - allowed:
            arrays.fail(key, f"mask classes known {source}", f"also {min(extra)}")
    if names is None and max(allowed) <= 1:
        names = ("background", "lesion")
    elif names is None:
        names = ("background", *(f"mask {index}" for index in range(1, max(allowed) + 1)))
    return names, divisor


def _subsets(arrays: _Arrays, split: str) -> tuple[int, ...]:
    """Return the numbers of the class subsets of `split`, ascending."""
    matches = (re.fullmatch(rf"{split}_images_C([0-9]{{1,6}})", key) for key in arrays)
    return tuple(sorted(int(match[1]) for match in matches if match))


def _image_tail(arrays: _Arrays, key: str) -> tuple[int, ...]:
    """Return ``(H, W)`` or ``(H, W, 3)`` of the images `key`."""
    shape, dtype = arrays[key].shape, arrays[key].dtype
    if len(shape) == 4 and shape[3] == 4:
        arrays.fail(key, "1 or 3 channels", f"4 {shape}; drop the alpha one")
    grey = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
    if dtype != np.uint8 or 0 in shape[1:] or not (grey or (len(shape) == 4 and shape[3] == 3)):
        arrays.fail(key, "uint8 (N, H, W) or (N, H, W, 3)", f"{dtype} {shape}")
    return shape[1:3] if grey else shape[1:]


def _check_mask(arrays: _Arrays, image_key: str, mask_key: str) -> None:
    shape, dtype = arrays[mask_key].shape, arrays[mask_key].dtype
    expected = arrays[image_key].shape[:3]
    if dtype not in (np.uint8, np.bool_) or shape not in (expected, (*expected, 1)):
        hint = "; class labels are called _labels" if mask_key.endswith("_label") else ""
        arrays.fail(mask_key, f"uint8 masks {expected} as {image_key}", f"{dtype} {shape}{hint}")


def _labels(arrays: _Arrays, key: str, total: int) -> NDArray[np.int64]:
    shape, dtype = arrays[key].shape, arrays[key].dtype
    if dtype.kind not in "iub" or len(shape) not in (1, 2) or 0 in shape[1:]:
        arrays.fail(key, "integers (N,), (N, 1) or (N, K)", f"{dtype} {shape}")
    if shape[0] != total:
        arrays.fail(key, f"{total} labels, one for each image", shape[0])
    labels = arrays[key]
    several = len(shape) == 2 and shape[1] > 1
    top = 1 if several else MAX_CLASSES - 1
    for value in (int(labels.min()), int(labels.max())):
        if not UNKNOWN_LABEL <= value <= top:
            arrays.fail(key, f"labels from 0 to {top}, or -1 for unknown", value)
    return labels.astype(np.int64).reshape(shape if several else total)
