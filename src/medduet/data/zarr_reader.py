"""Sets larger than one disk: a zarr store in a folder or at a URL, read shard by shard."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.config import DataConfig
from medduet.data.batches import WINDOW
from medduet.data.cache import cache_folder
from medduet.data.download import download
from medduet.data.imageset import ImageSet, Rows, Split
from medduet.data.zarr_format import METADATA, MOST_METADATA, SetAttributes, parse_metadata
from medduet.errors import ConfigError, DataError, DownloadError, MissingFileError
from medduet.utils.parsing import misread

_KEPT = 2 * WINDOW  # shards of an array in memory: those in use, and as many that come next


def is_zarr(name: str) -> bool:
    """Return whether a data set is a zarr store, by its name: a folder or URL ending in .zarr."""
    return name.rstrip("/").endswith(".zarr")


def open_zarr(data: DataConfig) -> ImageSet:
    """Open the zarr store at ``data.name``, a folder or URL that ends in ``.zarr``.

    Labels, ids and groups are read at once. Images and masks come shard by shard when they are
    used; those of a server are kept in the cache folder, up to ``data.cache_gb``.

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
    source, remote = data.name.rstrip("/"), "://" in data.name
    if not remote:
        source = str(Path(source).expanduser().absolute())
    content = _fetch_metadata(source) if remote else _read_metadata(source)
    about = parse_metadata(content, source)
    _check_options(data, about.shape)
    fingerprint = hashlib.sha256(content).hexdigest()
    cache = cache_folder(data.cache) / "zarr" / fingerprint[:32] if remote else None
    files = StoreFiles(source, cache, round(data.cache_gb * 1e9))
    return ImageSet(
        name=about.name,
        train=_open_split(files, "train", about),
        val=_open_split(files, "val", about),
        test=_open_split(files, "test", about),
        class_names=about.class_names,
        mask_names=about.mask_names,
        multi_label=about.multi_label,
        fingerprint=fingerprint,
        info={**about.info, "source": source},
    )


def _read_metadata(source: str) -> bytes:
    with suppress(FileNotFoundError), Path(source, METADATA).open("rb") as file:
        return file.read(MOST_METADATA)
    raise MissingFileError(
        f"{source} is not a complete zarr store: write it with 'medduet zarr DATA --out "
        f"{source}', which continues where it was stopped"
    )


def _fetch_metadata(source: str) -> bytes:
    with TemporaryDirectory() as folder:
        return _fetch(f"{source}/{METADATA}", Path(folder, METADATA), MOST_METADATA).read_bytes()


def _fetch(url: str, path: Path, most: int) -> Path:
    if path.is_file():
        return path
    try:
        return download(url, path, most=most)
    except DownloadError as error:
        raise DownloadError(f"{error}; check the address, and that the server runs") from error


def _check_options(data: DataConfig, shape: tuple[int, ...]) -> None:
    """Refuse what has to be decided when the store is written."""
    if data.size is not None and shape[:2] != (data.size, data.size):
        raise ConfigError(
            f"{data.name} has images of {shape[0]} x {shape[1]}, but --size {data.size} was given: "
            "leave it out, or write a store of that size with 'medduet zarr'"
        )
    if data.folds is not None or data.split not in ("auto", "given"):
        option = f"split {data.split}" if data.folds is None else f"folds {data.folds}"
        raise ConfigError(
            f"a zarr store has the split that it was written with, but --data.{option} was given: "
            "leave it out, or give it to 'medduet zarr'"
        )


class StoreFiles:
    """The files of a store; those of a server are kept in a folder of limited size.

    Args:
        source: folder or URL of the store.
        cache: folder for what is fetched; ``None`` if `source` is a folder.
        limit: bytes that `cache` may have; the files that were not used for longest are removed.
    """

    def __init__(self, source: str, cache: Path | None, limit: int) -> None:
        self.source, self.cache, self.limit = source, cache, limit
        self._incoming: set[Path] = set()

    def map(self, key: str, most: int) -> NDArray[np.uint8]:
        """Return the bytes of the file `key`, memory-mapped, fetched if need be.

        Raises:
            DownloadError: after all attempts, or if it has more than `most` bytes.
            MissingFileError: it is not in the local folder.
        """
        if self.cache is None:
            try:
                return np.memmap(Path(self.source, key), np.uint8, "r")
            except FileNotFoundError as error:
                missing = f"there is no {self.source}/{key}: copy the whole store again"
                raise MissingFileError(missing) from error
        path = self.cache / key.replace("/", "-")
        self._incoming.add(path)
        while True:
            _fetch(f"{self.source}/{key}", path, most)
            with suppress(FileNotFoundError):  # another process removed it to make room
                content = np.memmap(path, np.uint8, "r")
                os.utime(path)
                self._incoming.discard(path)
                self._make_room(path.parent)
                return content

    def _make_room(self, cache: Path) -> None:
        files = []
        for path in {*cache.glob("[!.]*-c-*")} - self._incoming:
            with suppress(FileNotFoundError):
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total > self.limit:
                path.unlink(missing_ok=True)  # who has it mapped can read on
                total -= size


class ArrayReader:
    """Decodes the shards (or chunks, where there are none) of the array at `path` of a store."""

    def __init__(self, files: StoreFiles, path: str, about: SetAttributes) -> None:
        self.files, self.path = files, path
        self.metadata = about.arrays()[path]
        self.shape: tuple[int, ...] = tuple(self.metadata["shape"])
        self.rows: int = self.metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        self._chunk_rows = about.chunk_rows
        self._sharded = self.metadata["codecs"][0]["name"] == "sharding_indexed"

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
        with misread(f"{self.files.source}/{self.path}/{key}"):
            content = self.files.map(f"{self.path}/{key}", most)
            if self._sharded:
                self._check_chunks(content, ceil((rows.stop - rows.start) / self._chunk_rows))
            # In memory, where no file can go missing: zarr would take it for zeros.
            files = {METADATA: Buffer.from_bytes(json.dumps(self.metadata).encode())}
            store = MemoryStore({**files, key: Buffer(content)}, read_only=True)
            return np.asarray(zarr.open_array(store, mode="r")[rows])

    def _check_chunks(self, content: NDArray[np.uint8], used: int) -> None:
        """Raise a ValueError if a chunk is missing, or would unpack to more than it should."""
        entries = self.rows // self._chunk_rows
        index = np.frombuffer(content[-16 * entries - 4 : -4].tobytes(), "<u8").reshape(entries, 2)
        for offset in index[:used, 0].tolist():
            header = content[offset : offset + 8].tobytes()
            if len(header) < 8:
                raise ValueError("expected all chunks")
            size = int.from_bytes(header[4:], "little")  # by the header of blosc
            if self.path.endswith("masks") and size != self._chunk_rows * prod(self.shape[1:]):
                raise ValueError(f"a chunk would unpack to {size} bytes")

    def read_all(self) -> NDArray[Any]:
        """Return the whole array."""
        numbers = range(ceil(self.shape[0] / self.rows))
        return np.concatenate([self.read(number) for number in numbers])


class ZarrRows(Rows):
    """The images or masks of one split; shards are read when they are asked for, or just before.

    Args:
        reader: of the array.
        highest: value that may occur.
    """

    def __init__(self, reader: ArrayReader, highest: int = 255) -> None:
        self.reader, self.highest = reader, highest
        self.shape, self.dtype = reader.shape, np.dtype(np.uint8)
        starts = np.arange(0, len(self), reader.rows, dtype=np.int64)
        self.sizes = np.minimum(reader.rows, len(self) - starts)
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
            while len(self._shards) > _KEPT:
                self._shards.popitem(last=False)
            return shard

    def _read(self, number: int, shard: Future[NDArray[np.uint8]]) -> None:
        try:
            pixels = self.reader.read(number)
            if self.highest < 255 and pixels.max() > self.highest:
                path = f"{self.reader.files.source}/{self.reader.path}"
                raise DataError(f"{path}: expected mask classes up to {self.highest}")
            shard.set_result(pixels)
        except Exception as error:
            shard.set_exception(error)


def _open_split(files: StoreFiles, split: str, about: SetAttributes) -> Split:
    fields: dict[str, Any] = {}
    for field in getattr(about, split).fields:
        reader = ArrayReader(files, f"{split}/{field}", about)
        if field in ("images", "masks"):
            highest = 255 if field == "images" else len(about.mask_names) - 1
            fields[field] = ZarrRows(reader, highest)
        else:
            fields[field] = reader.read_all()
    with misread(f"{files.source}/{split}"):
        highest = 1 if about.multi_label else len(about.class_names) - 1
        if not -1 <= fields["labels"].min() <= fields["labels"].max() <= highest:
            raise ValueError(f"labels beyond {highest}")
        if "ids" in fields:
            ids = fields["ids"]
            fields["ids"] = np.char.decode(ids.view(f"S{ids.shape[1]}")[:, 0], "utf-8")
        return Split(**fields)
