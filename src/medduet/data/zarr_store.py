"""Sets larger than one disk: zarr v3 stores in a folder or at a URL, read shard by shard.

::

    SET.zarr/
    ├── zarr.json            what the numbers mean, and the metadata of all arrays; written last
    ├── train/images/c/0/0/0 a shard: one file of some 64 MB, in chunks of 1 MB with their CRC-32C
    ├── train/masks/...      packed by zstd to a hundredth; images shrink by a tenth or two
    └── train/labels/...     also has_mask, groups, and ids: UTF-8 padded with zeros to (N, L) bytes
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.config import DataConfig
from medduet.data.batches import WINDOW
from medduet.data.cache import Progress, counted
from medduet.data.download import read_url
from medduet.data.imageset import PIXELS, SPLITS, ImageSet, Rows, Split
from medduet.data.mask_values import IGNORE
from medduet.data.pixels import for_each_axis
from medduet.data.store import check_room
from medduet.errors import ConfigError, MissingFileError
from medduet.types import IGNORED_MASK
from medduet.utils.files import finite, storage_errors, sync, write_json
from medduet.utils.locks import result_folder
from medduet.utils.parsing import misread, parse_json, read_json

_METADATA, _PLAN = "zarr.json", "plan.json"
_CHUNK_BYTES = _CHUNK_ROWS = _MOST_METADATA = 1 << 20
_MOST_SHARD, _MOST_SHARDS = 2 << 30, 10**7
_DTYPES = {"images": "uint8", "masks": "uint8", "ids": "uint8", "has_mask": "bool"}
_DTYPES |= {"labels": "int64", "groups": "int64"}
_ABOUT = ("name", "class_names", "mask_names", "multi_label")
_GROUP: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}


def _metadata(field: str, shape: Sequence[int], shard: int, chunk: int) -> dict[str, Any]:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    # Not blosc: its decoder reads beyond the end of damaged chunks.
    array = zarr.create_array(
        {},
        shape=tuple(shape),
        dtype=_DTYPES[field],
        chunks=(chunk, *shape[1:]),
        shards=(shard, *shape[1:]) if field in PIXELS else None,
        compressors=[ZstdCodec(level=3), Crc32cCodec()] if field == "masks" else [Crc32cCodec()],
    )
    return json.loads(json.dumps(array.metadata.to_dict()))  # type: ignore[no-any-return]


def is_zarr(name: str) -> bool:
    """Return whether a data set is a zarr store, by its name: a folder or URL ending in .zarr."""
    return name.rstrip("/").endswith(".zarr")


def open_zarr(data: DataConfig) -> ImageSet:
    """Open the zarr store at ``data.name``, a folder or URL that ends in ``.zarr``.

    Four shards of images and of masks stay in memory, and more up to ``data.cache_gb``.
    """
    source, splits = data.name.rstrip("/"), dict[str, Any]()
    if "://" not in source:
        source = str(Path(source).expanduser().absolute())
    content = _read_file(f"{source}/{_METADATA}", _MOST_METADATA)
    with misread(f"{source}/{_METADATA}"):
        values = parse_json(content.decode(errors="replace"))
        about, arrays = values["attributes"]["medduet"], values["consolidated_metadata"]["metadata"]
        for split in SPLITS:
            splits[split] = _open_split(source, split, about, arrays, data.cache_gb)
        images = ImageSet(
            name=re.sub(r"[^\w.-]+", "-", about["name"]).strip("-.")[:200] or "set",
            **splits,
            class_names=tuple(map(str, about["class_names"])),
            mask_names=tuple(map(str, about["mask_names"])),
            multi_label=bool(about["multi_label"]),
            fingerprint=hashlib.sha256(content).hexdigest(),
            info={**about["info"], "source": source},
        )
    resized = data.size is not None and images.size != for_each_axis(data.size, images.dims)
    if resized or data.folds is not None or data.split not in ("auto", "given"):
        raise ConfigError(
            f"{source} keeps the size {images.size} and the split that it was written with: omit "
            "--size, --data.split and --data.folds, or pass them to 'medduet zarr'"
        )
    return images


def _open_split(source: str, split: str, about: Any, arrays: Any, cache_gb: float) -> Split:
    count, *tail = list[int](arrays[f"{split}/images"]["shape"])
    values = dict(about["info"].get("mask_values", {}))
    classes, multi, fields = len(about["class_names"]), about["multi_label"], dict[str, Any]()
    highest = {"masks": len(about["mask_names"]) - 1, "labels": 1 if multi else classes - 1}
    tails = {"images": tail, "masks": tail[:2], "labels": [classes] if multi else []}
    for field in _DTYPES:
        if (path := f"{split}/{field}") in arrays:
            rows = ZarrRows(f"{source}/{path}", field, arrays[path], highest.get(field), cache_gb)
            rows.ignores = field == "masks" and IGNORE in values.values()
            expected = tails.get(field, list(rows.shape[1:]) if field == "ids" else [])
            if list(rows.shape) != [count, *expected] or tail[2:] not in ([], [3]):
                raise ValueError(f"{path} has the shape {rows.shape}")
            fields[field] = rows if field in PIXELS else rows[:]
    if "ids" in fields:
        ids = np.ascontiguousarray(fields["ids"])
        fields["ids"] = np.char.decode(ids.view(f"S{ids.shape[1]}")[:, 0], "utf-8")
    return Split(**fields)


def _read_file(url: str, most: int) -> bytes:
    if "://" in url:
        return read_url(url, most)
    if not Path(url).is_file():
        hint = "copy the store again, or run its 'medduet zarr' again, which continues"
        raise MissingFileError(f"{url} is missing: {hint}")
    with Path(url).open("rb") as file:
        return file.read(most)


class ZarrRows(Rows):
    """An array of a store, which may be a stranger's: it is decoded by metadata of our own."""

    ignores = False  # whether `IGNORED_MASK` may stand beside values up to the highest

    def __init__(
        self, url: str, field: str, array: Any, highest: int | None, cache_gb: float
    ) -> None:
        self.url, self.field, self.highest = url, field, highest
        self.shape, self.dtype = tuple(array["shape"]), np.dtype(_DTYPES[field])
        rows = chunk = array["chunk_grid"]["configuration"]["chunk_shape"][0]
        if field in PIXELS:
            chunk = array["codecs"][0]["configuration"]["chunk_shape"][0]
        self.metadata = _metadata(field, self.shape, rows, chunk)
        self.shard_rows, self.chunk_rows = rows, chunk
        codecs, expected = (
            " ".join(re.findall(r'"(?:name|data_type)": "([^"]*)"', json.dumps(metadata)))
            for metadata in (array, self.metadata)
        )
        if codecs != expected:
            raise ValueError(f"{url}: expected {expected}, given {codecs[:300]}")
        self._bytes = rows * prod(self.shape[1:]) * self.dtype.itemsize
        if self._bytes > _MOST_SHARD or len(self) / rows > _MOST_SHARDS:
            raise ValueError(f"{url}: expected shards of up to {_MOST_SHARD >> 30} GiB")
        self.sizes = np.minimum(rows, len(self) - np.arange(0, len(self), rows))
        self._order: dict[int, int] = {}
        self._pool = ThreadPoolExecutor(2 * WINDOW)
        kept = max(2 * WINDOW, int(cache_gb * 1e9 / self._bytes))
        self._shard = lru_cache(kept)(lambda number: self._pool.submit(self._read, number))

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Read shards in this order from now on, each before it is asked for."""
        self._order = {number: place for place, number in enumerate(shards)}

    def __getitem__(self, key: slice | NDArray[Any]) -> NDArray[np.uint8]:
        positions = np.arange(*key.indices(len(self))) if isinstance(key, slice) else key
        out = np.empty((len(positions), *self.shape[1:]), self.dtype)
        shard_of, order = positions // self.shard_rows, list(self._order)
        needed: list[int] = np.unique(shard_of).tolist()
        # In the order of the plan, so that what is needed longest is used last.
        needed.sort(key=lambda number: self._order.get(number, number))
        for number in needed:
            shard = self._shard(number)
            following = self._order.get(number, len(order)) + 1
            for next_number in order[following : following + WINDOW]:
                self._shard(next_number)
            if shard.exception() is not None:
                self._shard.cache_clear()  # so that it is tried again
            in_shard = shard_of == number
            out[in_shard] = shard.result()[positions[in_shard] - number * self.shard_rows]
        return out

    def _read(self, number: int) -> NDArray[Any]:
        import zarr
        from zarr.buffer.cpu import Buffer

        begin, key = number * self.shard_rows, f"c/{number}" + "/0" * (len(self.shape) - 1)
        end = min(begin + self.shard_rows, len(self))
        most = self._bytes * 65 // 64 + 4096  # with checksums, the index and what zstd adds
        with misread(f"{self.url}/{key}"):
            content = _read_file(f"{self.url}/{key}", most)
            if self.field in PIXELS:
                self._check_chunks(content, ceil((end - begin) / self.chunk_rows))
            # In memory, where no file can be missing: zarr would take it for zeros.
            metadata = Buffer.from_bytes(json.dumps(self.metadata).encode())
            files = {_METADATA: metadata, key: Buffer.from_bytes(content)}
            values = np.asarray(zarr.open_array(files, mode="r")[begin:end])
            counted = np.where(values == IGNORED_MASK, 0, values) if self.ignores else values
            top = self.highest
            if top is not None and not -1 <= counted.min() <= counted.max() <= top:
                raise ValueError(f"values beyond {top}")
            return values

    def _check_chunks(self, content: bytes, used: int) -> None:
        """Raise a ValueError if a chunk is missing, or would unpack to more than it should."""
        from numcodecs.zstd import Zstd

        entries, size = self.shard_rows // self.chunk_rows, self.chunk_rows * prod(self.shape[1:])
        index = np.frombuffer(content[-16 * entries - 4 : -4], "<u8").reshape(entries, 2)
        for offset, length in index[:used].tolist():
            chunk = content[offset : offset + length - 4]
            if self.field == "masks":
                Zstd().decode(chunk, np.empty(size, np.uint8))  # ValueError where it is too small
            elif len(chunk) != size:
                raise ValueError(f"expected chunks of {size} bytes, given {len(chunk)}")


def write_zarr(
    images: ImageSet, out: Path, *, shard_mb: float = 64, progress: Progress = None
) -> Path:
    """Write `images` into the zarr store `out`, in the split that they have, and return `out`.

    Train is dealt to shards at random; the same call continues where one was stopped.
    """
    images.expect_images("medduet zarr")
    if not 0 < shard_mb <= 2000 or not is_zarr(out.name):
        raise ConfigError(
            f"expected --out NAME.zarr, --shard-mb up to 2000, given {out}, {shard_mb:g}"
        )
    row = prod(images.train.images.shape[1:])
    chunk = max(1, min(_CHUNK_BYTES, int(shard_mb * 1e6)) // row)
    rows = chunk * max(1, int(shard_mb * 1e6) // (chunk * row))
    images = replace(images, train=_dealt(images.train, rows))
    fields, nodes = dict[str, Any](), dict.fromkeys(SPLITS, _GROUP | {"attributes": {}})
    for name, field in product(SPLITS, _DTYPES):
        if (values := getattr(images.split(name), field)) is not None:
            if field == "ids":
                values = np.char.encode(values, "utf-8")[:, None].view(np.uint8)
            few = min(len(values), _CHUNK_ROWS)
            parts = (rows, chunk) if field in PIXELS else (few, few)
            fields[f"{name}/{field}"] = values
            nodes[f"{name}/{field}"] = _metadata(field, values.shape, *parts)
    # How the set was split would ask for the split to be made again.
    info = {k: v for k, v in images.info.items() if k not in ("split", "undivided")}
    info |= {"written_from": images.fingerprint, "source_split": images.info.get("split")}
    about = {key: getattr(images, key) for key in _ABOUT} | {"info": info}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
    group = _GROUP | {"attributes": {"medduet": about}, "consolidated_metadata": consolidated}
    group = json.loads(json.dumps(finite(group), default=str))
    total = sum(prod(v.shape) * v.dtype.itemsize for v in fields.values())
    with storage_errors(out):
        result_folder(out).mkdir(parents=True, exist_ok=True)
        if not any(out.iterdir()):
            write_json(out / _PLAN, group)
        if not (out / _PLAN).is_file() or read_json(out / _PLAN) != group:
            raise ConfigError(f"{out} holds another set: delete it, or change --out")
        for leftover in out.rglob("*.partial"):  # of a killed process
            leftover.unlink()
        check_room(out, total - sum(path.stat().st_size for path in out.glob("*/*/c/**/*")))
        for name, metadata in nodes.items():
            write_json(out / name / _METADATA, metadata)
        with counted(progress, f"write {out.name}", total) as count:
            for path, values in fields.items():
                _write_array(out / path, values, count)
        (out / _PLAN).rename(out / _METADATA)
        sync(out)
    return out


def _dealt(train: Split, rows: int) -> Split:
    """Return the images of train, dealt to shards of `rows` at random; ids tell the old order."""
    order = np.random.default_rng(0).permutation(len(train))
    for start in range(0, len(order), rows):
        order[start : start + rows].sort()  # a shard is read faster from the source
    places = np.char.add("train/", np.arange(len(train)).astype(np.str_))
    return replace(train, ids=places if train.ids is None else train.ids).take(order)


def _write_array(path: Path, values: Any, count: Callable[[int], object]) -> None:
    import zarr

    # Zeros are written too: a file that is missing is to be an error, not zeros.
    array = zarr.open_array(path, mode="r+").with_config({"write_empty_chunks": True})
    step = (array.shards or array.chunks)[0]
    for number, start in enumerate(range(0, len(values), step)):
        file = path.joinpath("c", str(number), *"0" * (array.ndim - 1))
        rows = slice(start, min(start + step, len(values)))
        if not file.is_file():
            array[rows] = values[rows]
            sync(file)
        count((rows.stop - start) * prod(array.shape[1:]) * array.dtype.itemsize)
