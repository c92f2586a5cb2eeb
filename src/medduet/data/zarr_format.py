"""How a set lies in a zarr v3 store: a group whose arrays are the fields of each split.

::

    SET.zarr/
    ├── zarr.json            `SetAttributes`, and the metadata of all arrays; written last
    ├── train/images/c/0/0/0 a shard: some 64 MB of images, in chunks of 1 MB
    ├── train/masks/...      packed by blosc to a hundredth; images shrink by a tenth or two
    └── train/labels/...     also has_mask, groups, and ids: UTF-8 padded with zeros to (N, L) bytes

A shard is one file, so that any web server or object store gives it in one answer. Every chunk has
its CRC-32C.
"""

from __future__ import annotations

import json
import re
from math import prod
from typing import Any, Literal

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
FIELDS = {
    **dict.fromkeys((*PIXELS, "ids"), "uint8"),
    "labels": "int64",
    "groups": "int64",
    "has_mask": "bool",
}
"""The arrays of a split and their data types."""


class SplitAttributes(Frozen):
    """What a split holds."""

    count: int = Field(ge=1, le=10**11)
    """Images."""
    fields: tuple[Literal["images", "masks", "labels", "has_mask", "ids", "groups"], ...]
    """Names of its arrays."""
    id_bytes: int = Field(1, ge=1, le=4096)
    """Bytes of the longest id."""


class SetAttributes(Frozen):
    """What the group says of the set, as the attribute ``medduet``."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^\w[\w.-]{0,199}$")
    class_names: tuple[str, ...]
    mask_names: tuple[str, ...]
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
    info: dict[str, Any]

    def arrays(self) -> dict[str, dict[str, Any]]:
        """Return the metadata of each array, by its path in the store."""
        return {
            f"{split}/{field}": self._array(getattr(self, split), field)
            for split in SPLITS
            for field in getattr(self, split).fields
        }

    def _array(self, split: SplitAttributes, field: str) -> dict[str, Any]:
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec
        from zarr.storage import MemoryStore

        tails = {
            "images": self.shape,
            "masks": self.shape[:2],
            "labels": (len(self.class_names),) if self.multi_label else (),
            "ids": (split.id_bytes,),
        }
        tail = tails.get(field, ())
        rows = self.chunk_rows if field in PIXELS else min(split.count, ROWS_PER_CHUNK)
        blosc = BloscCodec(typesize=1, cname="zstd", clevel=5, shuffle="bitshuffle")
        array = zarr.create_array(
            MemoryStore(),
            shape=(split.count, *tail),
            dtype=FIELDS[field],
            chunks=(rows, *tail),
            shards=(self.shard_rows, *tail) if field in PIXELS else None,
            compressors=[blosc, Crc32cCodec()] if field == "masks" else [Crc32cCodec()],
        )
        return json.loads(json.dumps(array.metadata.to_dict()))  # type: ignore[no-any-return]


def parse_metadata(content: bytes, source: str) -> SetAttributes:
    """Return what a store says of itself, which may come from a stranger.

    Raises:
        DataError: it is no such store, contradicts itself, or has other codecs than MedDuet's.
    """
    with misread(f"{source}/{METADATA}"):
        values = parse_json(content.decode(errors="replace"))
        attributes, arrays = values["attributes"]["medduet"], values["consolidated_metadata"]
        arrays = arrays["metadata"]
    try:
        about = SetAttributes.model_validate(attributes)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:3])[:100]
        text = f"{source}: expected a store of 'medduet zarr' ({place}: {first['msg']})"
        raise DataError(text) from error
    if about.shard_rows % about.chunk_rows or about.shard_rows * prod(about.shape) > MOST_SHARD:
        raise DataError(f"{source}: expected shards of whole chunks, up to {MOST_SHARD >> 30} GiB")
    for path, array in about.arrays().items():
        with misread(f"{source}/{path}"):
            stored, expected = _summary(arrays[path]), _summary(array)
            if stored != expected:
                raise DataError(f"{source}: {path}: expected {expected}, given {stored[:300]}")
    return about


def _summary(array: dict[str, Any]) -> str:
    """Return shape, data type and codecs in one line."""
    codecs = " ".join(re.findall(r'"name": "([^"]*)"', json.dumps(array["codecs"])))
    return f"{array['data_type']} {array['shape']} in codecs {codecs}"
