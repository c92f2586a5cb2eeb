"""Writes a set as shards, which `medduet.data.shards.open_shards` reads."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medduet.data.cache import ProgressFactory, counted
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.data.shard_index import (
    INDEX,
    MOST_SHARD,
    Fact,
    FactFile,
    Kind,
    ShardIndex,
    SplitIndex,
    shard_name,
)
from medduet.data.store import check_room
from medduet.errors import ConfigError
from medduet.utils.files import atomic_path, write_json, write_text
from medduet.utils.parsing import read_json

_PLAN = "plan.json"
_FACTS: tuple[Fact, ...] = ("labels", "has_mask", "ids", "groups")
_PIECE_ROWS = 1 << 20
_MOST_NAMED = 10**6  # names of more would be the largest file that every machine fetches


def write_shards(
    images: ImageSet,
    out: Path,
    *,
    shard_mb: float = 64,
    seed: int = 0,
    progress: ProgressFactory | None = None,
) -> Path:
    """Write `images` into the folder `out` as shards, in the split that they have.

    The images of train are dealt to shards at random, since images of one class often stand
    together. They keep their ids or, up to a million, are called by their place in the source. val
    and test keep their order. Each file is whole or not there and the index comes last, so the
    same call goes on where one was stopped.

    Args:
        images: the set.
        out: an empty folder, a new one, or one in which the same call was stopped.
        shard_mb: size of the images of a shard in MB.
        seed: of the dealing.
        progress: makes a bar.

    Returns:
        The path of the index.

    Raises:
        ConfigError: the folder holds something else, or the size makes no sense.
        OSError: the disk is full.

    Example:
        >>> import tempfile, medduet
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> write_shards(images, Path(tempfile.mkdtemp()) / "set", shard_mb=0.002).name
        'index.json'
    """
    if not 0 < shard_mb * 1e6 <= MOST_SHARD:
        raise ConfigError(
            f"expected --shard-mb above 0 and up to {MOST_SHARD // 10**6}, given {shard_mb}"
        )
    shape, count = images.train.images.shape[1:], sum(len(images.split(name)) for name in SPLITS)
    rows, total = max(1, int(shard_mb * 1e6) // prod(shape)), count * prod(shape)
    _take_folder(out, {"fingerprint": images.fingerprint, "rows": rows, "seed": seed})
    check_room(out, total - sum(path.stat().st_size for path in out.glob("*-images-*")))
    with counted(progress, f"write {out.name}", total) as done:
        splits: dict[str, Any] = {
            name: _write_split(out, name, images.split(name), rows, seed, done) for name in SPLITS
        }
    index = ShardIndex(
        name=re.sub(r"[^\w.-]+", "-", images.name).strip("-.")[:200] or "shards",
        class_names=images.class_names,
        mask_names=images.mask_names,
        multi_label=images.multi_label,
        shape=cast(Any, shape),
        rows=rows,
        info=_plain_info(images),
        **splits,
    )
    write_text(out / INDEX, index.model_dump_json(indent=1, exclude_none=True) + "\n")
    (out / _PLAN).unlink()
    return out / INDEX


def _take_folder(out: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or go on in one where the same `plan` was stopped; refuse all others."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"expected a folder for the shards, but {out} is a file: change --out")
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".*.tmp"):  # of a process that was killed
        left.unlink(missing_ok=True)
    if (out / _PLAN).is_file():
        if read_json(out / _PLAN) != plan:
            raise ConfigError(
                f"{out} holds a part of other shards: delete it, or give another --out"
            )
    elif any(out.iterdir()):
        what = "a set in shards already" if (out / INDEX).is_file() else "other files"
        raise ConfigError(f"{out} holds {what}: give another --out")
    else:
        write_json(out / _PLAN, plan)


def _write_split(
    out: Path, name: str, split: Split, rows: int, seed: int, done: Callable[[int], object]
) -> SplitIndex:
    order = np.arange(len(split))
    if name == "train":
        order = np.random.default_rng(seed).permutation(order)
    # Within a shard in the order of the source, which is read faster so.
    order = np.concatenate([np.sort(order[at : at + rows]) for at in range(0, len(order), rows)])
    hashes: dict[Kind, list[str]] = {"images": [], "masks": []}
    for number, start in enumerate(range(0, len(order), rows)):
        here = order[start : start + rows]
        for kind, array in (("images", split.images), ("masks", split.masks)):
            if array is not None:
                kind = cast(Kind, kind)
                path = out / shard_name(name, kind, number)
                if not path.is_file():
                    _write_shard(path, np.asarray(array[here]))
                hashes[kind].append(_sha256(path))
        done(len(here) * prod(split.images.shape[1:]))
    facts = {
        fact: _write_fact(out / f"{name}-{fact}.npy", order, values)
        for fact in _FACTS
        if (values := getattr(split, fact)) is not None
    }
    if "ids" not in facts and name == "train" and len(order) <= _MOST_NAMED:
        # The others are in their places still.
        facts["ids"] = _write_fact(out / f"{name}-ids.npy", order, None)
    return SplitIndex(
        count=len(order),
        images=tuple(hashes["images"]),
        masks=tuple(hashes["masks"]) or None,
        facts=facts,
    )


def _write_shard(path: Path, pixels: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.suffix != ".gz":
            np.save(file, pixels, allow_pickle=False)
            return
        # Without name and time, so that the same masks are the same file.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            np.save(packed, pixels, allow_pickle=False)


def _write_fact(path: Path, order: NDArray[np.int64], values: NDArray[Any] | None) -> FactFile:
    """Write `values` in that `order`; without any, the places in train themselves as text."""
    digits = f"<U{len(f'train/{len(order)}')}"
    kind, tail = (np.dtype(digits), ()) if values is None else (values.dtype, values.shape[1:])
    header = {"descr": kind.str, "fortran_order": False, "shape": (len(order), *tail)}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(order), _PIECE_ROWS):
            rows = order[start : start + _PIECE_ROWS]
            piece = values[rows] if values is not None else [f"train/{row}" for row in rows]
            file.write(np.asarray(piece, dtype=kind).tobytes())
    return FactFile(sha256=_sha256(path), bytes=path.stat().st_size)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain_info(images: ImageSet) -> dict[str, Any]:
    """Return the facts on the set that JSON has; how it was split becomes one text."""
    info: dict[str, Any] = {"sharded_from": images.fingerprint}
    for key, value in images.info.items():
        if key in ("split", "undivided"):  # they would ask for the split to be made again
            info[f"source_{key}"] = json.dumps(value)
        elif isinstance(value, str | int | float | bool):
            info[key] = value
        elif isinstance(value, list | tuple):
            info[key] = [each for each in value if isinstance(each, str | int | float | bool)]
    return info
