"""Sets larger than one disk: opened from a folder or a server, shard by shard."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.config import DataConfig
from medduet.data.archive import map_array
from medduet.data.batches import WINDOW
from medduet.data.cache import ProgressFactory, cache_folder
from medduet.data.download import fetch_any
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.data.shard_files import ShardFiles, ShardRows
from medduet.data.shard_index import (
    INDEX,
    MOST_INDEX,
    Fact,
    Kind,
    ShardIndex,
    check_fact,
    parse_index,
)
from medduet.errors import ConfigError, DataError, DownloadError, MissingFileError

PREFIX = "shards:"
_STALE_SECONDS = 24 * 3600
_KINDS: tuple[Kind, ...] = ("images", "masks")


def open_shards(data: DataConfig, progress: ProgressFactory | None = None) -> ImageSet:
    """Open the set in shards that ``data.name`` names, ``shards:`` and a folder or a URL.

    Labels, ids and groups are fetched once. Images and masks come shard by shard when they are
    used; those of a server are kept in the cache folder, up to ``data.shard_cache_gb``.

    Raises:
        ConfigError: settings that can't be had of shards, or too little room for them.
        DataError: the index or a file is damaged, or it contradicts itself.
        DownloadError: the server doesn't answer.
        MissingFileError: there is no such folder.

    Example:
        >>> import tempfile, medduet
        >>> from medduet.data.shard_writer import write_shards
        >>> folder = Path(tempfile.mkdtemp()) / "set"
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> _ = write_shards(images, folder)
        >>> open_shards(DataConfig(name=f"shards:{folder}")).train.images[2:5].shape
        (3, 16, 16)
    """
    source, root = data.name.removeprefix(PREFIX).rstrip("/"), cache_folder(data.cache)
    remote = "://" in source
    if not remote:
        source = str(Path(source).expanduser().absolute())
    content = _read_index(source) if not remote else _fetch_index(source)
    index = parse_index(content, f"{source}/{INDEX}")
    _check(data, index)
    fingerprint = hashlib.sha256(content).hexdigest()
    folder = root / "shards" / fingerprint[:32] if remote else None
    if folder is not None:
        _sweep(folder)
    limit = round(data.shard_cache_gb * 1e9)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun says
    if remote:
        _check_limit(data, index, limit, processes)
    files = ShardFiles(source, folder, limit, root, processes)
    splits: dict[str, Any] = {name: _open_split(files, index, name, progress) for name in SPLITS}
    return ImageSet(
        name=index.name,
        **splits,
        class_names=index.class_names,
        mask_names=index.mask_names,
        multi_label=index.multi_label,
        fingerprint=fingerprint,
        info={**index.info, "source": f"{PREFIX}{source}"},
    )


def _read_index(source: str) -> bytes:
    path = Path(source) / INDEX
    if not path.is_file():
        raise MissingFileError(
            f"expected a set in shards, but there is no {path}: write it by 'medduet shard DATA "
            f"--out {source}', which goes on where it was stopped"
        )
    if path.stat().st_size > MOST_INDEX:
        raise DataError(f"{path} is no index of shards: it has more than {MOST_INDEX >> 20} MB")
    return path.read_bytes()


def _fetch_index(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / INDEX
        try:
            fetch_any(f"{source}/{INDEX}", path, sha256=None, most=MOST_INDEX)
        except DownloadError as error:
            raise DownloadError(
                f"{error}; see whether the server runs and whether the address is right: --data "
                f"{PREFIX}URL, below which {INDEX} lies"
            ) from error
        return path.read_bytes()


def _check(data: DataConfig, index: ShardIndex) -> None:
    """Refuse what would have to be decided before shards are written."""
    own = max(index.shape[:2])
    if data.size is not None and data.size != own:
        raise ConfigError(
            f"{data.name} has images of {index.shape[0]} x {index.shape[1]}, but --size "
            f"{data.size} was given: leave it out, or write shards of that size with "
            "'medduet shard'"
        )
    if data.folds is not None or data.split not in ("auto", "given"):
        what = f"split {data.split}" if data.folds is None else f"folds {data.folds}"
        raise ConfigError(
            f"shards are written in one split, but --data.{what} was given: leave it out, or give "
            "it to 'medduet shard'"
        )


def _check_limit(data: DataConfig, index: ShardIndex, limit: int, processes: int) -> None:
    """Refuse so little room that shards would be fetched again and again."""
    per_shard, whole = 0, 0
    for kind in _KINDS:
        files = sum(len(getattr(index.split(name), kind) or ()) for name in SPLITS)
        size = index.shard_bytes(kind) if files else 0
        per_shard, whole = per_shard + size, whole + files * size
    number = processes * (WINDOW + 1)
    needed = min(whole, number * per_shard)
    if limit < needed:
        raise ConfigError(
            f"{data.name} needs room for {number} shards of {per_shard / 1e6:.1f} MB: give "
            f"--data.shard-cache-gb {np.ceil(needed / 1e5) / 1e4:g} or more"
        )


def _sweep(folder: Path) -> None:
    """Remove what killed downloads left in `folder`, once it is surely not in use."""
    for left in folder.glob("tmp*"):
        with suppress(OSError):  # another process removes it too
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


def _open_split(
    files: ShardFiles, index: ShardIndex, name: str, progress: ProgressFactory | None
) -> Split:
    own = index.split(name)
    facts = {each: _open_fact(files, index, name, each, progress) for each in own.facts}
    masks = None if own.masks is None else ShardRows(files, index, name, "masks")
    return Split(
        images=ShardRows(files, index, name, "images", beside=masks),
        labels=facts["labels"],
        masks=masks,
        has_mask=facts.get("has_mask"),
        ids=facts.get("ids"),
        groups=facts.get("groups"),
    )


def _open_fact(
    files: ShardFiles, index: ShardIndex, split: str, name: Fact, progress: ProgressFactory | None
) -> NDArray[Any]:
    """Return what is known of each image, memory-mapped."""
    fact, file = index.split(split).facts[name], f"{split}-{name}.npy"
    if files.folder is not None:
        free = shutil.disk_usage(_existing(files.folder)).free
        if not (files.folder / file).is_file() and free < fact.bytes:
            raise DataError(
                f"{file} of {files.source} takes {fact.bytes:,} bytes, but there are {free:,} on "
                "the disk; make room, or choose another --data.cache"
            )
    path = files.path(file, fact.sha256, fact.bytes, progress)
    try:
        # Writable in memory alone, as torch takes no others.
        values = map_array(path, "c")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    check_fact(name, values, index.split(split).count, index, str(path))
    return values


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
