"""How a set lies in a zarr v3 store: a group whose arrays are the fields of each split.

::

    SET.zarr/
    ├── zarr.json            `SetAttributes`, and the metadata of all arrays; written last
    ├── train/images/c/0/0/0 a shard: some 64 MB of images, in chunks of 1 MB
    ├── train/masks/...      blosc; images shrink by a tenth or two, masks to a hundredth
    └── train/labels/...     also has_mask, groups, and ids: UTF-8 padded with zeros to (N, L) bytes

A shard is one file, so that any web server or object store gives it in one answer. Every chunk has
its CRC-32C.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError

from medduet.config import Frozen
from medduet.data.imageset import SPLITS
from medduet.errors import DataError
from medduet.utils.parsing import misread, parse_json

METADATA = "zarr.json"
MOST_METADATA = 1 << 20
MOST_SHARD = 2 << 30
"""Bytes of the images of one shard."""
ROWS_PER_CHUNK = 1 << 20
"""Of what is not images or masks."""
PIXELS = ("images", "masks")
FIELDS = (*PIXELS, "labels", "has_mask", "ids", "groups")
_TYPES = {
    "images": "uint8",
    "masks": "uint8",
    "ids": "uint8",
    "labels": "int64",
    "groups": "int64",
    "has_mask": "bool",
}
_CRC = {"name": "crc32c"}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_BLOSC = {
    "name": "blosc",
    "configuration": {
        "cname": "zstd",
        "clevel": 5,
        "shuffle": "bitshuffle",
        "typesize": 1,
        "blocksize": 0,
    },
}
Name = Annotated[str, Field(max_length=1000)]
Plain = str | int | float | bool | None


class SplitAttributes(Frozen):
    """What a split holds."""

    count: int = Field(ge=1, le=10**11)
    """Images."""
    fields: tuple[Literal["images", "masks", "labels", "has_mask", "ids", "groups"], ...] = Field(
        min_length=2
    )
    """Names of its arrays."""
    id_bytes: int = Field(1, ge=1, le=4096)
    """Bytes of the longest id."""


class SetAttributes(Frozen):
    """What the group says of the set, as the attribute ``medduet``."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^\w[\w.-]{0,199}$")
    class_names: tuple[Name, ...]
    mask_names: tuple[Name, ...]
    multi_label: bool
    shape: tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, Literal[3]]
    """Of each image."""
    shard_rows: PositiveInt
    """Images of each shard."""
    chunk_rows: PositiveInt
    """Images of each chunk within a shard."""
    train: SplitAttributes
    val: SplitAttributes
    test: SplitAttributes
    info: dict[str, Plain | list[Plain]]

    def arrays(self) -> dict[str, dict[str, Any]]:
        """Return the metadata of each array, by its path in the store."""
        return {
            f"{split}/{field}": self._array(getattr(self, split), field)
            for split in SPLITS
            for field in getattr(self, split).fields
        }

    def _array(self, split: SplitAttributes, field: str) -> dict[str, Any]:
        tail: tuple[int, ...] = {
            "images": self.shape,
            "masks": self.shape[:2],
            "labels": (len(self.class_names),) if self.multi_label else (),
            "ids": (split.id_bytes,),
        }.get(field, ())
        rows = self.shard_rows if field in PIXELS else min(split.count, ROWS_PER_CHUNK)
        codecs: list[Any] = [_BYTES, *([_BLOSC] if field == "masks" else []), _CRC]
        if field in PIXELS:
            inside = {
                "chunk_shape": [self.chunk_rows, *tail],
                "codecs": codecs,
                "index_codecs": [_BYTES, _CRC],
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": inside}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [split.count, *tail],
            "data_type": _TYPES[field],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, *tail]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": False if field == "has_mask" else 0,
            "codecs": codecs,
            "attributes": {},
            "storage_transformers": [],
        }


def group_metadata(**attributes: Any) -> dict[str, Any]:
    """Return the metadata of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def parse_metadata(content: bytes, source: str) -> SetAttributes:
    """Return what a store says of itself, which may come from a stranger.

    What zarr is to read has been compared with what MedDuet writes: other codecs, types or shapes
    are refused, in one line.

    Raises:
        DataError: it is no such store, or contradicts itself.
    """
    with misread(f"{source}/{METADATA}"):
        values = parse_json(content.decode(errors="replace"))
        attributes, given = values["attributes"]["medduet"], values["consolidated_metadata"]
        given = given["metadata"]
    try:
        about = SetAttributes.model_validate(attributes)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:3])[:100]
        raise DataError(
            f"{source}: expected a store of 'medduet zarr' ({place}: {first['msg']})"
        ) from error
    if about.shard_rows % about.chunk_rows or about.shard_rows * prod(about.shape) > MOST_SHARD:
        raise DataError(f"{source}: expected shards of whole chunks, up to {MOST_SHARD >> 30} GiB")
    for path, array in about.arrays().items():
        for key, expected in array.items():
            if given.get(path, {}).get(key) != expected:
                text = f"{given.get(path, {}).get(key)}"[:300]
                raise DataError(f"{source}: {path}: expected {key} {expected}, given {text}")
    return about
