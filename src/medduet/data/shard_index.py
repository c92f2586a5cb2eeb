"""What a set in shards says of itself: ``index.json``, which may come from a stranger.

The set is a folder, or the same below a URL::

    SET/
    ├── index.json                  see `ShardIndex`; written last
    ├── train-labels.npy            also has_mask, ids and groups, where they are known
    ├── train-images-000000.npy     uint8 (n, H, W) or (n, H, W, 3), memory-mapped
    ├── train-masks-000000.npy.gz   uint8 (n, H, W), where there are masks
    └── ...

Images are not compressed: they would shrink by a tenth or two, and be read ten times slower. Masks
shrink to a hundredth. No file is named by the index, so it can't point outside of its folder.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from medduet.config import Frozen
from medduet.data.archive import check_text
from medduet.errors import DataError

INDEX = "index.json"
MOST_INDEX = 256 << 20
"""Bytes of an index; one of a million shards takes 70 MB."""
MOST_SHARD = 2 << 30
"""Bytes of the images of one shard."""
_MOST_SIDE = 1 << 15
_MOST_ID = 1024
_HEADER = 256
Kind = Literal["images", "masks"]
Fact = Literal["labels", "has_mask", "ids", "groups"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(max_length=1000)]
Plain = str | int | float | bool | None


class FactFile(Frozen):
    """One fact on every image of a split."""

    sha256: Sha256
    """Of the file."""
    bytes: int = Field(ge=1)
    """Its size."""


class SplitIndex(Frozen):
    """The files of one split."""

    count: int = Field(ge=1, le=10**11)
    """Images."""
    images: tuple[Sha256, ...]
    """SHA-256 of each shard of images."""
    masks: tuple[Sha256, ...] | None = None
    """SHA-256 of each shard of masks, if there are any."""
    facts: dict[Fact, FactFile]
    """What is known of each image, by name."""


class ShardIndex(Frozen):
    """All that has to be known of a set in shards to read it."""

    format: Literal["medduet-shards-1"] = "medduet-shards-1"
    """Which format this is."""
    name: str = Field(pattern=r"^\w[\w.-]{0,199}$")
    """What figures and tables call the set, and run folders, so it is no path."""
    class_names: tuple[Name, ...]
    """One name per class."""
    mask_names: tuple[Name, ...]
    """One name per mask class, background first."""
    multi_label: bool
    """Whether an image can have several classes."""
    shape: tuple[int, int] | tuple[int, int, Literal[3]]
    """Of each image."""
    rows: int = Field(ge=1)
    """Images of each shard; the last one of a split may have fewer."""
    info: dict[str, Plain | list[Plain]]
    """Further facts."""
    train: SplitIndex
    """To fit weights on."""
    val: SplitIndex
    """To select epochs on."""
    test: SplitIndex
    """To report."""

    @model_validator(mode="after")
    def _agrees(self) -> ShardIndex:
        if not all(1 <= side <= _MOST_SIDE for side in self.shape[:2]):
            raise ValueError(f"expected images of 1 to {_MOST_SIDE} pixels a side")
        if self.rows * prod(self.shape) > MOST_SHARD:
            raise ValueError(f"expected shards of at most {MOST_SHARD >> 30} GiB")
        for name in ("train", "val", "test"):
            split = self.split(name)
            number = -(-split.count // self.rows)
            for kind, hashes in (("images", split.images), ("masks", split.masks)):
                if hashes is not None and len(hashes) != number:
                    raise ValueError(
                        f"expected {number} shards of {name} {kind}, given {len(hashes)}"
                    )
            if "labels" not in split.facts:
                raise ValueError(f"expected labels of {name}")
            row = max(8 * len(self.class_names), 4 * _MOST_ID)
            if any(fact.bytes > _HEADER + row * split.count for fact in split.facts.values()):
                raise ValueError(f"expected at most {row} bytes for each fact on an image")
        return self

    def split(self, name: str) -> SplitIndex:
        """Return the split called `name`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def tail(self, kind: Kind) -> tuple[int, ...]:
        """Return the shape of one image or mask."""
        return self.shape if kind == "images" else self.shape[:2]

    def shard_bytes(self, kind: Kind) -> int:
        """Return the most bytes that the file of a shard can have, and what is in it."""
        pixels = self.rows * prod(self.tail(kind))
        return _HEADER + pixels + pixels // 1000  # what can't be packed grows a little


def shard_name(split: str, kind: Kind, number: int) -> str:
    """Return the file name of a shard.

    Example:
        >>> shard_name("train", "masks", 3)
        'train-masks-000003.npy.gz'
    """
    return f"{split}-{kind}-{number:06}.npy{'.gz' if kind == 'masks' else ''}"


def parse_index(content: bytes, origin: str) -> ShardIndex:
    """Return the index in `content`; DataError in one line if it is none, or contradicts itself."""
    try:
        return ShardIndex.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:3]) or "the whole"
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(
            f"{origin} is no index of shards ({place[:100]}: {message}): give the folder or URL "
            "that 'medduet shard' wrote, whole"
        ) from error


def check_fact(
    name: Fact, values: NDArray[Any], count: int, index: ShardIndex, origin: str
) -> None:
    """Raise a DataError unless `values` are that fact on `count` images."""
    classes = len(index.class_names)
    shape = (count, classes) if index.multi_label and name == "labels" else (count,)
    kind = {"labels": "int64", "has_mask": "bool", "groups": "int64", "ids": "text"}[name]
    given = "text" if values.dtype.kind == "U" else values.dtype.name
    if values.shape != shape or given != kind:
        raise DataError(
            f"{origin} is not as its index says: expected {kind} {shape}, "
            f"given {given} {values.shape}"
        )
    if given == "text":
        check_text(values, origin)
    highest = 2 if index.multi_label else classes
    if name == "labels" and classes and (np.min(values) < -1 or np.max(values) >= highest):
        raise DataError(f"{origin}: expected labels from -1 to {highest - 1}, given others")
