"""The files of a set in shards, in a folder or on a server, opened when they are needed."""

from __future__ import annotations

import gzip
import io
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.archive import map_array, read_header
from medduet.data.batches import WINDOW
from medduet.data.cache import ProgressFactory, file_digests
from medduet.data.download import fetch_any
from medduet.data.imageset import Rows
from medduet.data.shard_index import Kind, ShardIndex, shard_name
from medduet.errors import DataError, DownloadError, MissingFileError

_KEPT_OPEN = 4 * WINDOW  # images and masks of two windows


class ShardFiles:
    """Opens the files of one set; those of a server are kept in a folder of limited size.

    Every file is checked against the hash that the index has for it: at the download, or for a
    local folder once, as long as the file stays the same.

    Args:
        source: the folder or URL of the set.
        folder: for what is fetched; ``None`` if `source` is a folder, which is read where it is.
        limit: bytes of shards in `folder`. Processes that share it may each be over by one shard.
        cache: folder where it is remembered which local files were checked.
        processes: that share `folder`.
    """

    def __init__(
        self, source: str, folder: Path | None, limit: int, cache: Path, processes: int = 1
    ) -> None:
        self.source, self.folder, self.limit, self.cache = source, folder, limit, cache
        self.processes = processes
        self._lock = threading.RLock()
        self._of_file = [threading.Lock() for _ in range(256)]  # a file has one by its name
        self._coming: dict[str, int] = {}
        self._open: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()

    def path(
        self, name: str, sha256: str, most: int, progress: ProgressFactory | None = None
    ) -> Path:
        """Return where the file called `name` is, checked, once it is there.

        Args:
            name: of the file.
            sha256: which it must have.
            most: bytes that it may have.
            progress: makes a bar for a download.

        Raises:
            DataError: a local file is damaged.
            DownloadError: after all attempts.
            MissingFileError: a local file is not there.
        """
        if self.folder is None:
            return self._local(name, sha256)
        path = self.folder / name
        if not path.is_file():
            try:
                fetch_any(
                    f"{self.source}/{name}", path, sha256=sha256, most=most, progress=progress
                )
            except DownloadError as error:
                raise DownloadError(
                    f"{error}; see whether the server runs and has the file, then try again"
                ) from error
        return path

    def _local(self, name: str, sha256: str) -> Path:
        path = Path(self.source) / name
        try:
            found = file_digests(path, self.cache).sha256
        except FileNotFoundError as error:
            raise MissingFileError(
                f"expected {path}, but there is no such file: copy the whole folder again"
            ) from error
        if found != sha256:
            raise DataError(
                f"{path} is damaged: expected SHA-256 {sha256[:12]}..., found {found[:12]}...; "
                "copy it again, or write the set again with 'medduet shard'"
            )
        return path

    def shard(
        self,
        name: str,
        sha256: str,
        shape: tuple[int, ...],
        most: int,
        highest: int,
        wanted: Callable[[], bool],
    ) -> NDArray[np.uint8] | None:
        """Return a shard, memory-mapped, or unpacked if it is packed; fetched if need be.

        Args:
            name: of the file.
            sha256: which it must have.
            shape: of the array in it.
            most: bytes that the file and what is in it may have.
            highest: value that it may have, which is looked at in packed ones alone.
            wanted: asked when nobody else is at this shard; ``None`` is returned if it says no.
        """
        with self._of_file[hash(name) % len(self._of_file)]:  # who comes second finds it open
            if not wanted():
                return None
            with self._lock:
                array = self._open.get(name)
                if array is not None:
                    self._open.move_to_end(name)
            try:
                if array is None:
                    array = self._read(name, sha256, shape, most, highest)
                    with self._lock:
                        self._open[name] = array
                        while len(self._open) > _KEPT_OPEN:
                            self._open.popitem(last=False)
                self.mark(name)
            finally:
                with self._lock:
                    self._coming.pop(name, None)
        return array

    def mark(self, name: str) -> None:
        """Count a shard as used now, if it is kept in the folder."""
        if self.folder is not None:
            # The file system's own clock ticks in milliseconds: too few to tell two uses apart. A
            # thread that looked at the clock and then had to wait would set a use back.
            with self._lock, suppress(OSError):  # it is not there, or another process removed it
                used = time.time_ns()
                os.utime(self.folder / name, ns=(used, used))

    def _read(
        self, name: str, sha256: str, shape: tuple[int, ...], most: int, highest: int
    ) -> NDArray[np.uint8]:
        path = None
        while path is None:
            path = self._arrived(name, sha256, most)
            try:
                array = _load(path, most)
            except FileNotFoundError:  # another process removed it just now to make room
                path = None
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise DataError(f"{path} can't be read: {' '.join(str(error).split())}") from error
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(
                f"{path} is not as its index says: expected uint8 {shape}, "
                f"given {array.dtype} {array.shape}"
            )
        if name.endswith(".gz") and array.max() > highest:
            raise DataError(f"{path}: expected mask classes up to {highest}, given {array.max()}")
        return array

    def _arrived(self, name: str, sha256: str, most: int) -> Path:
        """Return the path of a shard, after room was made for it."""
        if self.folder is not None:
            with self._lock:
                if not (self.folder / name).is_file():
                    self._make_room(most)
                self._coming[name] = most
        return self.path(name, sha256, most)

    def _make_room(self, incoming: int) -> None:
        """Remove the shards that were not used for the longest time, as far as the limit asks."""
        assert self.folder is not None
        found = []
        for path in self.folder.glob("*-*-*.npy*"):
            if path.name in self._coming:  # until it is marked as used; reckoned with below
                continue
            with suppress(OSError):  # another process may have removed it
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in found) + sum(self._coming.values()) + incoming
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            self._open.pop(path.name, None)  # the disk is free when nobody has it open
            total -= size


def _load(path: Path, most: int) -> NDArray[np.uint8]:
    """Return the array at `path`; at most `most` bytes are unpacked."""
    if path.suffix != ".gz":
        return map_array(path, "r")
    with gzip.open(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError("it unpacks to more than its index says")
    unpacked = io.BytesIO(content)
    shape, fortran, dtype = read_header(unpacked)
    if dtype != np.uint8 or fortran:
        raise ValueError(f"{dtype} {shape}")
    return np.frombuffer(content, np.uint8, offset=unpacked.tell()).reshape(shape)


class ShardRows(Rows):
    """The images or masks of one split, of which shards are fetched when they are asked for.

    Args:
        files: of the set.
        index: of the set.
        split: name of the split.
        kind: images, or masks.
        beside: masks of these images, which are fetched ahead with them.
    """

    def __init__(
        self,
        files: ShardFiles,
        index: ShardIndex,
        split: str,
        kind: Kind,
        beside: ShardRows | None = None,
    ) -> None:
        own = index.split(split)
        hashes = own.images if kind == "images" else own.masks
        assert hashes is not None
        self.files, self.split, self.kind, self.hashes = files, split, kind, hashes
        self.shape = (own.count, *index.tail(kind))
        self.dtype = np.dtype(np.uint8)
        sizes = np.full(len(hashes), index.rows, dtype=np.int64)
        sizes[-1] = own.count - index.rows * (len(hashes) - 1)
        self.sizes = self._sizes = sizes
        self._rows = index.rows
        self._highest = 255 if kind == "images" else max(len(index.mask_names) - 1, 0)
        self._beside = beside
        self._most = index.shard_bytes(kind)
        needed = self._most + (beside._most if beside else 0)
        room = (
            WINDOW if files.folder is None else files.limit // (needed * files.processes) - WINDOW
        )
        self._ahead = max(0, min(WINDOW, room))
        self._plan: Sequence[int] = range(len(hashes))
        self._places: dict[int, int] | None = None
        self._asked: set[int] = set()
        self._reached = -1
        if beside is not None:
            beside._ahead = 0  # they are fetched with these

    def __len__(self) -> int:
        return self.shape[0]

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Fetch shards in this order from now on, each before it is asked for."""
        self._plan = shards
        self._places = {number: place for place, number in enumerate(shards)}
        self._asked, self._reached = set(), -1
        if self._beside is not None:
            self._beside.read_ahead(shards)

    def __getitem__(self, key: slice | NDArray[Any]) -> NDArray[np.uint8]:
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)), dtype=np.int64)
        elif key.dtype == np.bool_:
            key = np.flatnonzero(key)
        key = np.where(key < 0, key + len(self), key)
        if len(key) and not (key.min() >= 0 and key.max() < len(self)):
            raise IndexError(f"expected positions below {len(self)}")
        out = np.empty((len(key), *self.shape[1:]), self.dtype)
        of = key // self._rows
        for number in self._in_turn(np.unique(of).tolist()):
            here = of == number
            self._keep_before(self._place(number))
            shard = self._shard(number, partial(self._ask, self._place(number)))
            assert shard is not None
            out[here] = shard[key[here] - number * self._rows]
            self._look_ahead(number)
        return out

    def _place(self, number: int) -> int:
        return number if self._places is None else self._places.get(number, -1)

    def _in_turn(self, numbers: list[int]) -> list[int]:
        """Return `numbers` as planned, so that the ones that are needed longest are used last."""
        return sorted(numbers, key=self._place)

    def _keep_before(self, place: int) -> None:
        """Let what was fetched ahead and passed over, for now, not be what makes room."""
        if self._places is not None:
            for skipped in range(max(self._reached + 1, place - WINDOW), place):
                if skipped not in self._asked:
                    self.files.mark(shard_name(self.split, self.kind, self._plan[skipped]))

    def _ask(self, place: int) -> bool:
        if place == 0 and self._places is None:  # read once more from the beginning
            self._asked, self._reached = set(), -1
        self._asked.add(place)
        return True

    def _shard(self, number: int, wanted: Callable[[], bool]) -> NDArray[np.uint8] | None:
        return self.files.shard(
            shard_name(self.split, self.kind, number),
            self.hashes[number],
            (int(self._sizes[number]), *self.shape[1:]),
            self._most,
            self._highest,
            wanted,
        )

    def _look_ahead(self, number: int) -> None:
        """Let the shards after `number` be fetched, if it is reached for the first time."""
        place = self._place(number)
        if place <= self._reached:
            return
        in_turn, self._reached = place == self._reached + 1, place
        ahead = self._ahead if self._places is not None else int(in_turn)
        end = min(place + 1 + ahead, len(self._plan))
        if following := range(place + 1, end):
            # Not waited for at the end of the process, which may be before they are there.
            arguments = self._plan, following
            threading.Thread(target=self._fetch, args=arguments, daemon=True).start()

    def _fetch(self, plan: Sequence[int], following: range) -> None:
        # Those that are there already count as used, so that they are not what makes room. One
        # that was asked for meanwhile is left to who asked: it may be used up and removed by now.
        for place in following:
            wanted = partial(self._wants, plan, place)
            for rows in (self, self._beside):
                if rows is not None:
                    with suppress(DataError, DownloadError, OSError):  # told when it is asked for
                        rows._shard(plan[place], wanted)

    def _wants(self, plan: Sequence[int], place: int) -> bool:
        return plan is self._plan and place not in self._asked
