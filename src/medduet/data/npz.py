"""Sets in one ``.npz``: the layouts of MedMNIST and of MedSegBench, unpacked once.

For each split of ``train``, ``val`` and ``test``:

- ``{split}_images`` uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, or volumes ``(N, D, H, W)``, whose
  masks have three sides, too; ``{split}_labels`` integer ``(N,)``, ``(N, 1)``, or ``(N, K)`` of 0
  and 1 for multi-label sets, one-hot if each row has a single 1; -1 is unknown.
- ``{split}_masks`` (in MedSegBench ``{split}_label``) uint8 ``(N, H, W)``, of which 255 is read as
  1 where all are 0 or 255, and ignored where any mask has classes beside it or where there is
  ``ignored_mask``, ``[255]``; ``{split}_has_mask`` bool ``(N,)`` if some are unknown.
- ``{split}_ids`` text ``(N,)``; ``{split}_groups`` integers ``(N,)``, such as patients, or -1.
- If every split has class subsets ``{split}_images_C1``, ``{split}_label_C1``, ``_C2``, ..., these
  are taken instead, one after the other, and the first is class 0.

``class_names`` and ``mask_names`` (text) give names.

Sources: doi:10.1038/s41597-022-01721-8 (MedMNIST), doi:10.1038/s41597-024-04159-2 (MedSegBench).
"""

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic
from numpy.typing import NDArray

from medduet.data.cache import Progress, cache_folder, counted, file_digests
from medduet.data.imageset import MAX_CLASSES, SPLITS, ImageSet, rows_per_chunk, spatial_size
from medduet.data.mask_values import IGNORE
from medduet.data.pixels import for_each_axis, resize_image, resize_mask
from medduet.data.reading.core import MAX_FRAME_PIXELS
from medduet.data.store import check_room, growing_array, open_store, stored
from medduet.errors import DataError, MissingFileError
from medduet.types import IGNORED_MASK, UNKNOWN_LABEL
from medduet.utils.files import write_json

MAX_MASK_CLASSES = 64
_PIXELS = re.compile(r"(train|val|test)_(images|masks|label)(_C[0-9]{1,6})?")
_ROWS = re.compile(r"(train|val|test)_(labels|has_mask|ids|groups)|(class|mask)_names|ignored_mask")
_MOST_ROWS = 16 << 20  # bytes of what is no image, unless the file itself is larger
_MOST_CONTENTS = 1 << 20  # bytes of the zip's table of contents; a set has a few dozen arrays
_FORMAT = "v6"  # part of each store's key; raise it when what `_unpack` writes changes


def open_npz(
    path: Path,
    *,
    size: tuple[int, ...] | None = None,
    cache: Path | None = None,
    progress: Progress = None,
) -> ImageSet:
    """Open the set in the ``.npz`` file at `path`.

    At the first time its arrays are checked and unpacked to the cache folder, in constant memory;
    images and masks are then memory-mapped. Arguments as for `medduet.data.open_images`.

    Raises:
        MissingFileError: there is no such file.
        DataError: its content contradicts itself, and nothing is kept of it.
    """
    path = path.expanduser().absolute()
    root = cache_folder(cache)
    if not path.is_file():
        raise MissingFileError(f"expected an .npz at {path}, but there is no such file")
    _, digest = file_digests(path, root, progress)
    unpack = partial(_unpack, path, root, digest, size, progress=progress)
    name = "own" if size is None else "x".join(map(str, size))
    fields = open_store(stored(root, f"{digest}-{_FORMAT}-{name}", unpack))
    original = tuple(fields["info"]["original_size"])
    resized = size is not None and for_each_axis(size, len(original)) != original
    fields["info"] |= {"source": str(path), "sha256": digest}
    fingerprint = f"{digest}-{name}" if resized else digest
    return ImageSet(name=path.stem, **fields, fingerprint=fingerprint)


class _Archive(dict[str, NDArray[Any]]):
    """The arrays of a stranger's file, read in constant memory; none of its headers is trusted.

    Those of images and masks are empty shapes, see `chunks`: `numpy.load` would read them whole.
    A last axis of length 1 is left out.
    """

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

    def __missing__(self, key: str) -> None:
        self.need(False, key, "this key", ", ".join(self) or "no arrays")

    def need(self, holds: object, key: str, expected: str, given: object) -> None:
        """Raise a DataError that names the file and the key unless something `holds`."""
        if not holds:
            raise DataError(f"{self.path}: {key}: expected {expected}, given {given}")

    def chunks(self, keys: list[str]) -> Iterator[NDArray[np.uint8]]:
        """Yield images ``(n, ...)``, or masks, a few megabytes at once."""
        for key in keys:
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
        streamed = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        self.need(streamed, key, "stored or deflated values", "another compression")
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            version = read_magic(file)
            self.need(version == (1, 0), key, "a .npy header of version 1", version)
            shape, fortran, dtype = read_array_header_1_0(file)
            self.need(not dtype.hasobject, key, "numbers or text", "pickled objects")
            self.need(shape and min(shape) >= 0, key, "at least one axis", f"shape {shape}")
            self.need(not fortran or len(shape) == 1, key, "C order", "Fortran order")
            size, stored_size = file.tell() + prod(shape) * dtype.itemsize, member.file_size
            self.need(size == stored_size, key, f"{size} bytes by its header", stored_size)
            self._members[key] = member
            if _PIXELS.fullmatch(key):
                pixels, most = prod(spatial_size(shape)), MAX_FRAME_PIXELS
                self.need(pixels <= most, key, f"at most {most} pixels per image", pixels)
                shape = shape[:-1] if len(shape) > 3 and shape[-1] == 1 else shape
                self[key] = np.broadcast_to(np.zeros((), dtype), shape)
            else:
                most = max(_MOST_ROWS, self.path.stat().st_size)
                self.need(size <= most, key, f"at most {most} bytes", size)
                self[key] = np.ndarray(shape, dtype, file.read())
                if dtype.kind == "U":  # ValueError for numbers that are no characters
                    "".join(self[key].ravel().tolist()).encode()

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


class _Split(NamedTuple):
    """Which arrays make a split, the shape of all its images, and the fields with one row each."""

    images: list[str]
    masks: list[str]
    shape: tuple[int, ...]
    rows: dict[str, NDArray[Any]]


def _unpack(
    path: Path,
    root: Path,
    digest: str,
    size: tuple[int, ...] | None,
    folder: Path,
    progress: Progress,
) -> None:
    archive = _Archive(path)
    splits = _find_splits(archive)
    labels = [split.rows["labels"] for split in splits.values()]
    one_hot = all(x.ndim == 2 and (np.sort(x) == np.eye(x.shape[1])[-1]).all() for x in labels)
    for split in splits.values() if one_hot else ():
        split.rows["labels"] = split.rows["labels"].argmax(axis=1)
    class_names, multi_label = _class_names(archive, splits)
    original = spatial_size(splits["train"].shape)
    sides = original if size is None else for_each_axis(size, len(original))
    channels = splits["train"].shape[1 + len(original) :]
    layers = [x.shape[0] * (prod(channels) + bool(x.masks)) for x in splits.values()]
    total = sum(layers) * prod(sides)
    check_room(folder, total)
    # Which values masks have, and which those with 255.
    used = {name: np.zeros((2, 256), bool) for name in SPLITS}
    with counted(progress, f"unpack {path.name}", total) as count:
        for name, split in splits.items():
            pixels = {"images": archive.chunks(split.images)}
            if split.masks:
                pixels["masks"] = _known_masks(archive, split, used[name])
            for field, chunks in pixels.items():
                resize = resize_image if field == "images" else resize_mask
                tail = *sides, *(channels if field == "images" else ())
                with growing_array(folder / f"{name}_{field}.npy", tail) as append:
                    for chunk in chunks:
                        if sides != original:
                            chunk = np.stack([resize(image, *sides) for image in chunk])
                        append(chunk)
                        count(chunk.nbytes)
            for field, row in split.rows.items():
                np.save(folder / f"{name}_{field}.npy", row)
    values = {name: np.flatnonzero(flags[0]).tolist() for name, flags in used.items()}
    beside = np.any([flags[1, 1:MAX_MASK_CLASSES] for flags in used.values()])
    stated = archive.get("ignored_mask", np.zeros(0)).tolist()
    archive.need(stated in ([], [IGNORED_MASK]), "ignored_mask", f"[{IGNORED_MASK}]", stated)
    if ignores := bool(stated or beside):
        values = {name: [x for x in values[name] if x != IGNORED_MASK] for name in SPLITS}
    elif set().union(*values.values()) in ({255}, {0, 255}):
        values = {name: [value // 255 for value in values[name]] for name in SPLITS}
        for name in SPLITS:
            file = folder / f"{name}_masks.npy"
            mapped = np.load(file, mmap_mode="r+", allow_pickle=False)
            np.floor_divide(mapped, 255, out=mapped)
    mask_names = _mask_names(archive, values) if splits["train"].masks else ()
    meta = {"class_names": class_names, "mask_names": mask_names, "multi_label": multi_label}
    note = "labels are one-hot, so each image has one class"
    info: dict[str, Any] = {"original_size": list(original), "notes": [note] * one_hot}
    if ignores:
        numbered = {str(number): name for number, name in enumerate(mask_names)}
        info["mask_values"] = numbered | {str(IGNORED_MASK): IGNORE}
    write_json(folder / "meta.json", meta | {"info": info})
    if file_digests(path, root)[1] != digest:  # the store would lie under another's key
        raise DataError(f"{path} changed while it was read: try again")


def _known_masks(
    archive: _Archive, split: _Split, used: NDArray[np.bool_]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the masks in chunks ``(n, ...)``, unknown ones all zero; note the values in `used`."""
    start, has_mask = 0, split.rows.get("has_mask")
    for masks in archive.chunks(split.masks):
        if has_mask is not None:
            known = has_mask[start : start + len(masks)]
            masks = masks * known.reshape(-1, *[1] * (masks.ndim - 1))
        start += len(masks)
        having = masks[(masks == IGNORED_MASK).reshape(len(masks), -1).any(axis=1)]
        used |= [np.bincount(some.ravel(), minlength=256) > 0 for some in (masks, having)]
        yield masks


def _find_splits(archive: _Archive) -> dict[str, _Split]:
    subsets = [
        sorted(int(m[1]) for key in archive if (m := re.fullmatch(rf"{split}_images_C(\d+)", key)))
        for split in SPLITS
    ]
    common = subsets[0] if subsets[0] == subsets[1] == subsets[2] else []
    endings = [f"_C{number}" for number in common] or [""]

    def has(base: str) -> bool:  # one split with masks or labels means all should have them
        return any(f"{split}_{base}{endings[0]}" in archive for split in SPLITS)

    mask_base = next((base for base in ("masks", "label") if has(base)), None)
    tail = archive[f"train_images{endings[0]}"].shape[1:]
    splits: dict[str, _Split] = {}
    for split in SPLITS:
        images = [f"{split}_images{end}" for end in endings]
        masks = [f"{split}_{mask_base}{end}" for end in endings] if mask_base else []
        for key in images:
            shape, dtype = archive[key].shape, archive[key].dtype
            # A last axis of 2 or 4 is neither grey nor RGB, and PyTorch's channels come first.
            is_volume = len(shape) == 4 and shape[3] not in (2, 4) and shape[1] not in (1, 3)
            fits = (len(shape) == 3 or is_volume) and dtype == "u1" and 0 not in shape[1:]
            layouts = "uint8 (N, H, W) or (N, H, W, 3), or volumes (N, D, H, W)"
            archive.need(fits, key, layouts, f"{dtype} {shape}")
            archive.need(shape[1:] == tail, key, f"images of {tail} as in train", shape[1:])
        for image_key, key in zip(images, masks, strict=bool(masks)):
            mask, shape = archive[key], archive[image_key].shape
            shape = (shape[0], *spatial_size(shape))
            fits = mask.dtype in (np.uint8, np.bool_) and mask.shape == shape
            hint = "; class labels are called _labels" if mask_base == "label" else ""
            layout = f"{mask.dtype} {mask.shape}{hint}"
            archive.need(fits, key, f"uint8 masks {shape} as {image_key}", layout)
        counts = [len(archive[key]) for key in images]
        total = sum(counts)
        archive.need(total, images[0], "at least one image", "an empty split")
        if common:
            labels = np.repeat(np.arange(len(common), dtype=np.int64), counts)
        elif has("labels") or not mask_base:
            labels = _labels(archive, f"{split}_labels", total)
        else:
            labels = np.full(total, UNKNOWN_LABEL, np.int64)
        rows = {"labels": labels}
        for field, kinds in (("has_mask", "b"), ("ids", "U"), ("groups", "iu")):
            if (key := f"{split}_{field}") in archive:
                rows[field] = _rows(archive, key, total, kinds)
        alone = "has_mask" in rows and not masks
        archive.need(not alone, f"{split}_has_mask", f"also {split}_masks", "no masks")
        splits[split] = _Split(images, masks, (total, *tail), rows)
    return splits


def _rows(archive: _Archive, key: str, total: int, kinds: str) -> NDArray[Any]:
    values, expected = archive[key], {"U": "text", "iu": "integers", "b": "bool"}[kinds]
    fits = values.dtype.kind in kinds and values.shape == (total,)
    archive.need(fits, key, f"{expected} ({total},)", f"{values.dtype} {values.shape}")
    return values.astype(np.int64) if kinds == "iu" else values


def _labels(archive: _Archive, key: str, total: int) -> NDArray[np.int64]:
    labels = archive[key]
    fits = labels.dtype.kind in "iub" and labels.ndim <= 2 and 0 not in labels.shape[1:]
    expected = f"{total} integers (N,), (N, 1) or (N, K), one for each image"
    archive.need(fits and len(labels) == total, key, expected, f"{labels.dtype} {labels.shape}")
    several = labels.shape[1:] not in ((), (1,))
    top = 1 if several else MAX_CLASSES - 1
    for value in (int(labels.min()), int(labels.max())):
        fits = UNKNOWN_LABEL <= value <= top
        archive.need(fits, key, f"labels from 0 to {top}, or -1 for unknown", value)
    return labels.astype(np.int64).reshape(labels.shape if several else total)


def _names(archive: _Archive, key: str, default: list[str]) -> tuple[str, ...]:
    if key not in archive:
        return tuple(default)
    names = _rows(archive, key, len(archive[key]), "U").tolist()
    archive.need(len({*names}) == len(names) > 0, key, "different names", ", ".join(names))
    return tuple(names)


def _class_names(archive: _Archive, splits: dict[str, _Split]) -> tuple[tuple[str, ...], bool]:
    train = splits["train"].rows["labels"]
    several = train.ndim == 2
    number = train.shape[1] if several else int(train.max()) + 1
    names = _names(archive, "class_names", [f"class {index}" for index in range(number)])
    fits = len(names) == number if several else len(names) >= number
    archive.need(fits, "class_names", f"{number} names", len(names))
    for name, split in splits.items():
        key, labels = f"{name}_labels", split.rows["labels"]
        same = labels.shape[1:] == train.shape[1:]
        archive.need(same, key, f"K as in train {train.shape[1:]}", labels.shape[1:])
        expected = f"labels from 0 to {len(names) - 1}, as in train or class_names, or -1"
        archive.need(several or labels.max() < len(names), key, expected, labels.max())
    return names, several


def _mask_names(archive: _Archive, values: dict[str, list[int]]) -> tuple[str, ...]:
    highest = {name: max(values[name], default=0) for name in SPLITS}
    top = max(highest.values())
    expected = f"mask classes 0 to {MAX_MASK_CLASSES - 1} (255: ignored), or 0 and 255 in all masks"
    archive.need(top < MAX_MASK_CLASSES, "masks", expected, top)
    default = ["background", *(f"mask {index}" for index in range(1, highest["train"] + 1))]
    names = _names(archive, "mask_names", default if len(default) > 2 else ["background", "lesion"])
    for name, value in highest.items():
        expected = f"mask classes of 0 to {len(names) - 1}, as in train or mask_names"
        archive.need(value < len(names), f"{name}_masks", expected, value)
    return names
