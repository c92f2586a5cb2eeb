"""Sets larger than one disk: a zarr store in a folder or at a URL, read shard by shard."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.config import DataConfig
from medduet.data.batches import WINDOW
from medduet.data.download import read_url
from medduet.data.imageset import SPLITS, ImageSet, Rows, Split
from medduet.data.zarr_format import METADATA, MOST_METADATA, PIXELS, SetAttributes, parse_metadata
from medduet.errors import ConfigError, DataError, MissingFileError
from medduet.utils.parsing import misread


def is_zarr(name: str) -> bool:
    """Return whether a data set is a zarr store, by its name: a folder or URL ending in .zarr."""
    return name.rstrip("/").endswith(".zarr")


def open_zarr(data: DataConfig) -> ImageSet:
    """Open the zarr store at ``data.name``, a folder or URL that ends in ``.zarr``.

    Labels, ids and groups are read at once. Images and masks come shard by shard when they are
    used, and stay in memory up to ``data.cache_gb``.

    Raises:
        ConfigError: another size or split is asked for than the store has.
        DataError: the store is damaged, or not as ``medduet zarr`` writes it.
        DownloadError: the server doesn't answer.
        MissingFileError: there is no such folder, or it isn't complete.

    Example:
        >>> import tempfile, medduet
        >>> from medduet.data.zarr_writer import write_zarr
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> path = write_zarr(images, Path(tempfile.mkdtemp()) / "set.zarr")
        >>> open_zarr(DataConfig(name=str(path))).train.images[2:5].shape
        (3, 16, 16)
    """
    source = data.name.rstrip("/")
    if "://" not in source:
        source = str(Path(source).expanduser().absolute())
    content = _read_file(source, METADATA, MOST_METADATA)
    about = parse_metadata(content, source)
    if data.size is not None and about.shape[:2] != (data.size, data.size):
        raise ConfigError(
            f"{source} has images of {about.shape[0]} x {about.shape[1]}, but --size {data.size} "
            "was given: leave it out, or write a store of that size with 'medduet zarr'"
        )
    if data.folds is not None or data.split not in ("auto", "given"):
        raise ConfigError(
            f"{source} has the split that it was written with: leave out --data.split and "
            "--data.folds, or give them to 'medduet zarr'"
        )
    splits: dict[str, Any] = {
        name: _open_split(source, name, about, data.cache_gb) for name in SPLITS
    }
    return ImageSet(
        name=about.name,
        **splits,
        class_names=about.class_names,
        mask_names=about.mask_names,
        multi_label=about.multi_label,
        fingerprint=hashlib.sha256(content).hexdigest(),
        info={**about.info, "source": source},
    )


def _open_split(source: str, split: str, about: SetAttributes, cache_gb: float) -> Split:
    fields: dict[str, Any] = {}
    for field in getattr(about, split).fields:
        reader = ArrayReader(source, f"{split}/{field}", about)
        if field in PIXELS:
            highest = 255 if field == "images" else len(about.mask_names) - 1
            fields[field] = ZarrRows(reader, highest, cache_gb)
        else:
            fields[field] = np.concatenate([reader.read(n) for n in range(reader.shards)])
    with misread(f"{source}/{split}"):
        highest = 1 if about.multi_label else len(about.class_names) - 1
        if not -1 <= fields["labels"].min() <= fields["labels"].max() <= highest:
            raise ValueError(f"labels beyond {highest}")
        if "ids" in fields:
            ids = fields["ids"]
            fields["ids"] = np.char.decode(ids.view(f"S{ids.shape[1]}")[:, 0], "utf-8")
        return Split(**fields)


def _read_file(source: str, key: str, most: int) -> bytes:
    if "://" in source:
        return read_url(f"{source}/{key}", most)
    try:
        with Path(source, key).open("rb") as file:
            return file.read(most)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{source} is not complete, as there is no {key}: copy it again, or run the 'medduet "
            "zarr' command that writes it, which continues where it was stopped"
        ) from error


class ArrayReader:
    """Decodes the shards (or chunks, where there are none) of the array at `path` of a store."""

    def __init__(self, source: str, path: str, about: SetAttributes) -> None:
        self.source, self.path = source, path
        self.metadata = about.arrays()[path]
        self.shape: tuple[int, ...] = tuple(self.metadata["shape"])
        self.rows: int = self.metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        self.shards = ceil(self.shape[0] / self.rows)
        self._chunk_rows = about.chunk_rows
        self._sharded = path.endswith(PIXELS)

    def read(self, number: int) -> NDArray[Any]:
        """Return the rows of one shard.

        Raises:
            DataError: it is damaged.
            DownloadError, MissingFileError: it isn't there.
        """
        import zarr
        from zarr.buffer.cpu import Buffer
        from zarr.storage import MemoryStore

        key = f"c/{number}" + "/0" * (len(self.shape) - 1)
        rows = slice(number * self.rows, min((number + 1) * self.rows, self.shape[0]))
        # 8 bytes a label; blosc, the checksum and the place in the index add some to each chunk.
        most = self.rows * prod(self.shape[1:]) * (1 if self._sharded else 8) + 4
        most += 64 * self.rows // self._chunk_rows
        with misread(f"{self.source}/{self.path}/{key}"):
            content = _read_file(self.source, f"{self.path}/{key}", most)
            if self._sharded:
                self._check_chunks(content, ceil((rows.stop - rows.start) / self._chunk_rows))
            # In memory, where no file can be missing: zarr would take it for zeros.
            files = {METADATA: json.dumps(self.metadata).encode(), key: content}
            store = MemoryStore({name: Buffer.from_bytes(b) for name, b in files.items()})
            return np.asarray(zarr.open_array(store, mode="r")[rows])

    def _check_chunks(self, content: bytes, used: int) -> None:
        """Raise a ValueError if a chunk is missing, or would unpack to more than it should."""
        entries = self.rows // self._chunk_rows
        index = np.frombuffer(content[-16 * entries - 4 : -4], "<u8").reshape(entries, 2)
        for offset in index[:used, 0].tolist():
            header = content[offset : offset + 8]
            if len(header) < 8:
                raise ValueError("expected all chunks")
            size = int.from_bytes(header[4:], "little")  # by the header of blosc
            if self.path.endswith("masks") and size != self._chunk_rows * prod(self.shape[1:]):
                raise ValueError(f"a chunk would unpack to {size} bytes")


class ZarrRows(Rows):
    """The images or masks of one split; shards are read when they are asked for, or just before.

    Args:
        reader: of the array.
        highest: value that may occur.
        cache_gb: memory for shards; the ones in use, and as many to come, are always kept.
    """

    def __init__(self, reader: ArrayReader, highest: int = 255, cache_gb: float = 0) -> None:
        self.reader, self.highest = reader, highest
        self.shape, self.dtype = reader.shape, np.dtype(np.uint8)
        starts = np.arange(0, len(self), reader.rows, dtype=np.int64)
        self.sizes = np.minimum(reader.rows, len(self) - starts)
        self._kept = max(2 * WINDOW, int(cache_gb * 1e9 / (reader.rows * prod(self.shape[1:]))))
        self._plan: Sequence[int] = ()
        self._place: dict[int, int] = {}
        self._lock = threading.Lock()
        self._shards: OrderedDict[int, Future[NDArray[np.uint8]]] = OrderedDict()

    def __len__(self) -> int:
        return self.shape[0]

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Read shards in this order from now on, each before it is asked for."""
        self._plan, self._place = shards, {number: place for place, number in enumerate(shards)}

    def __getitem__(self, key: slice | NDArray[Any]) -> NDArray[np.uint8]:
        positions = np.arange(*key.indices(len(self))) if isinstance(key, slice) else key
        out = np.empty((len(positions), *self.shape[1:]), self.dtype)
        shard_of = positions // self.reader.rows
        # In the order of the plan, so that what is needed longest is used last.
        for number in sorted(np.unique(shard_of).tolist(), key=lambda n: self._place.get(n, n)):
            shard = self._request(number)
            place = self._place.get(number, len(self._plan))
            for following in self._plan[place + 1 : place + 1 + WINDOW]:
                self._request(following)
            here = shard_of == number
            out[here] = shard.result()[positions[here] - number * self.reader.rows]
        return out

    def _request(self, number: int) -> Future[NDArray[np.uint8]]:
        """Return a shard that is in memory, or begin to read it."""
        with self._lock:
            shard = self._shards.get(number)
            if shard is None or (shard.done() and shard.exception() is not None):
                shard = self._shards[number] = Future()
                # A daemon: the end of the process need not wait for it.
                threading.Thread(target=self._read, args=(number, shard), daemon=True).start()
            self._shards.move_to_end(number)
            while len(self._shards) > self._kept:
                self._shards.popitem(last=False)
            return shard

    def _read(self, number: int, shard: Future[NDArray[np.uint8]]) -> None:
        try:
            pixels = self.reader.read(number)
            if self.highest < 255 and pixels.max() > self.highest:
                path = f"{self.reader.source}/{self.reader.path}"
                raise DataError(f"{path}: expected mask classes up to {self.highest}")
            shard.set_result(pixels)
        except Exception as error:
            shard.set_exception(error)
