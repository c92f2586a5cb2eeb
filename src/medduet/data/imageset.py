"""What every data source gives: uint8 images in three splits, with labels and masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medduet.data.cache import Progress, counted
from medduet.errors import ConfigError, DataError
from medduet.types import Batch

SPLITS = ("train", "val", "test")
PIXELS = ("images", "masks")
"""Fields of a `Split` that may be too large to read as a whole."""
CHUNK_BYTES = 4 << 20
MAX_CLASSES = 10_000


def spatial_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sides of images of a `shape`.

    It is ``(N, H, W)`` or ``(N, H, W, 3)``, of volumes ``(N, D, H, W)`` or ``(N, D, H, W, C)``.

    Example:
        >>> spatial_size((10, 64, 48, 3)), spatial_size((10, 16, 64, 48))
        ((64, 48), (16, 64, 48))
    """
    has_channels = len(shape) == 5 or (len(shape) == 4 and shape[-1] == 3)
    return shape[1:-1] if has_channels else shape[1:]


def rows_per_chunk(shape: tuple[int, ...]) -> int:
    """Return how many rows of a uint8 array of `shape` make a chunk; at least one."""
    return max(1, CHUNK_BYTES // max(1, prod(shape[1:])))


def iterate_chunks(
    images: Any, progress: Progress = None, description: str = ""
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Yield the rows of `images` ``(N, ...)``, uint8, chunk by chunk, each with its place."""
    step = rows_per_chunk(images.shape)
    with counted(progress, description, len(images)) as advance:
        for start in range(0, len(images), step):
            rows = slice(start, min(start + step, len(images)))
            yield rows, np.ascontiguousarray(images[rows])
            advance(rows.stop - start)


class Rows:
    """Some rows of several arrays, such as memory maps, as if they were one; nothing is copied."""

    sizes: NDArray[np.int64] | None = None
    """Images of each shard, if they are read shard by shard."""

    def __init__(self, parts: Sequence[Images], rows: NDArray[np.int64]) -> None:
        self.parts, self.rows = tuple(parts), rows
        self.shape: tuple[int, ...] = (len(rows), *parts[0].shape[1:])
        self.dtype: np.dtype[Any] = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | NDArray[Any]) -> NDArray[np.uint8]:
        rows, begin = self.rows[key], 0
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for part in self.parts:
            in_part = (rows >= begin) & (rows < begin + len(part))
            if in_part.any():
                out[in_part] = part[rows[in_part] - begin]
            begin += len(part)
        return out

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Take note of the shards that are read next, in that order; memory maps have none."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


Images = NDArray[np.uint8] | Rows
"""Images or masks, one per row; indexed by a slice or an array, they give an array."""


@dataclass(frozen=True)
class Split:
    """The images of one split, usually memory-mapped.

    Attributes:
        images: ``(N, H, W)`` grey or ``(N, H, W, 3)`` RGB, uint8; volumes ``(N, D, H, W)``, or
            ``(N, D, H, W, C)`` of several channels.
        labels: ``(N,)`` int64 class index, or ``(N, K)`` 0/1 for multi-label sets; -1 is unknown.
        masks: ``(N, H, W)`` uint8 mask class, 0 is background, 255 is ignored; ``None`` without
            masks.
        has_mask: ``(N,)`` bool, which masks are known; ``None`` means all of them (or, without
            masks, none).
        ids: ``(N,)`` text, what its owner calls each image, such as a file; ``None`` if unnamed.
        groups: ``(N,)`` int64, images of one group (a patient) have the same number, -1 is
            unknown; ``None`` if no group is known.
    """

    images: Images
    labels: NDArray[np.int64]
    masks: Images | None = None
    has_mask: NDArray[np.bool_] | None = None
    ids: NDArray[np.str_] | None = None
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def known_masks(self) -> NDArray[np.bool_]:
        """Whether the mask of each image is known, ``(N,)``."""
        if self.has_mask is None:
            return np.full(len(self), self.masks is not None)
        return self.has_mask

    @property
    def shard_sizes(self) -> NDArray[np.int64] | None:
        """Images of each shard, ``(S,)``; ``None`` if the images are all at hand."""
        return self.images.sizes if isinstance(self.images, Rows) else None

    def expect(self, batches: Sequence[NDArray[np.int64]]) -> None:
        """Let shards that these batches need be read before they are asked for."""
        if self.shard_sizes is not None and batches:
            ends = np.cumsum(self.shard_sizes)
            shard_of = np.searchsorted(ends, np.concatenate(batches), side="right")
            shards, first_use = np.unique(shard_of, return_index=True)
            for rows in (self.images, self.masks):
                if isinstance(rows, Rows):
                    rows.read_ahead(shards[np.argsort(first_use)].tolist())

    def take(self, rows: NDArray[np.int64]) -> Split:
        """Return the images at `rows`, which are read when they are used."""
        taken: dict[str, Any] = {}
        for name, values in vars(self).items():
            if values is not None:
                taken[name] = Rows([values], rows) if name in PIXELS else values[rows]
        return Split(**taken)

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """Gather the images at `index` (``(n,)`` int64) into a `Batch` of uint8 tensors."""
        images = torch.from_numpy(self.images[index])
        has_channels = images.ndim > 1 + len(spatial_size(self.images.shape))
        images = images.movedim(-1, 1) if has_channels else images.unsqueeze(1)
        masks = None if self.masks is None else torch.from_numpy(self.masks[index]).long()
        has_mask = torch.from_numpy(self.known_masks[index])
        labels = torch.from_numpy(self.labels[index])
        return Batch(images, labels, masks, has_mask, torch.from_numpy(index))


@dataclass(frozen=True)
class ImageSet:
    """A data set: three splits and what their numbers mean.

    Attributes:
        name: what figures and tables call it.
        train, val, test: the splits to fit weights on, to select epochs on and to report.
        class_names: one name per class; empty if the set has no labels.
        mask_names: one name per mask class, background first; empty if the set has no masks.
        multi_label: whether an image can have several classes at once.
        fingerprint: SHA-256 of the content, so that a run knows what it was trained on.
        info: further facts for the record (source, licence, MedMNIST flag, original size, ...).
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    mask_names: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    info: Mapping[str, Any]

    def __post_init__(self) -> None:
        for names in (self.class_names, self.mask_names):
            if not len({*names}) == len(names) <= MAX_CLASSES:
                expected = f"{self.name}: expected up to {MAX_CLASSES:,} different names"
                raise DataError(f"{expected}, given {len(names):,}: {', '.join(names[:20])}")

    @property
    def in_channels(self) -> int:
        """Channels of the images: 1 (grey), 3 (RGB), or any number of volumes."""
        images = self.train.images
        return images.shape[-1] if len(images.shape) > 1 + self.dims else 1

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the images in pixels; depth, height and width of volumes."""
        return spatial_size(self.train.images.shape)

    @property
    def dims(self) -> int:
        """Spatial dimensions: 2 for images, 3 for volumes."""
        return len(self.size)

    def expect_images(self, use: str) -> None:
        """Raise `ConfigError` for volumes, which `use` does not take."""
        if self.dims == 3:
            raise ConfigError(f"{use}: expected images, given volumes, {self.name}")

    def split(self, name: str) -> Split:
        """Return the split called `name`: ``train``, ``val``, ``test``, or ``all``, the pool."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return self.pool() if name == "all" else parts[name]

    def pool(self) -> Split:
        """Return the images of all splits, train first, each with an id.

        Images without one are called by their place, such as ``train/0``; where splits use the
        same ids, the name of the split goes before them.

        Example:
            >>> from medduet import open_images
            >>> pool = open_images("phantom", size=16, count=20).pool()
            >>> len(pool), pool.ids[:2].tolist(), pool.images[18:].shape
            (20, ['train/0', 'train/1'], (2, 16, 16))
        """
        parts = [self.train, self.val, self.test]
        places = np.arange(sum(map(len, parts)), dtype=np.int64)
        fields: dict[str, Any] = {"has_mask": np.concatenate([part.known_masks for part in parts])}
        fields["labels"] = np.concatenate([part.labels for part in parts])
        for field in PIXELS:
            values: list[Any] = [getattr(part, field) for part in parts]
            if all(value is not None for value in values):
                fields[field] = Rows(values, places)
        if any(part.groups is not None for part in parts):
            groups = [np.full(len(x), -1) if x.groups is None else x.groups for x in parts]
            fields["groups"] = np.concatenate(groups)
        named, plain = [], []
        for name, part in zip(SPLITS, parts, strict=True):
            ids = part.ids if part.ids is not None else np.arange(len(part)).astype(np.str_)
            named.append(np.char.add(f"{name}/", ids))
            plain.append(named[-1] if part.ids is None else ids)
        ids = np.concatenate(plain)
        ids = ids if len(np.unique(ids)) == len(ids) else np.concatenate(named)
        return Split(**fields, ids=ids)
