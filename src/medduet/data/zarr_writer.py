"""Writes a set as a zarr store, which `medduet.data.zarr_reader.open_zarr` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.cache import ProgressFactory, counted
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.data.store import check_room
from medduet.data.zarr_format import (
    FIELDS,
    METADATA,
    MOST_SHARD,
    PIXELS,
    SetAttributes,
    group_metadata,
)
from medduet.errors import ConfigError
from medduet.utils.files import storage_errors, sync, write_json
from medduet.utils.parsing import read_json

_PLAN = "plan.json"
_CHUNK_BYTES = 1 << 20
_MOST_NAMED = 10**6  # names of more would be the largest array that every machine reads


def write_zarr(
    images: ImageSet,
    out: Path,
    *,
    shard_mb: float = 64,
    seed: int = 0,
    progress: ProgressFactory | None = None,
) -> Path:
    """Write `images` into the zarr store `out`, in the split that they have.

    The images of train are dealt to shards at random, since images of one class often stand
    together. They keep their ids or, up to a million, are called by their place in the source. val
    and test keep their order. Each shard is whole or not there and the group's metadata come last,
    so the same call goes on where one was stopped.

    Args:
        images: the set.
        out: a folder ``NAME.zarr`` that is new, empty, or in which the same call was stopped.
        shard_mb: size of the images of a shard in MB.
        seed: of the dealing.
        progress: makes a bar.

    Returns:
        `out`.

    Raises:
        ConfigError: the folder holds something else, or the size makes no sense.
        StorageError: the disk is full.

    Example:
        >>> import tempfile, medduet
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> write_zarr(images, Path(tempfile.mkdtemp()) / "set.zarr", shard_mb=0.002).name
        'set.zarr'
    """
    if not 0 < shard_mb * 1e6 <= MOST_SHARD:
        raise ConfigError(
            f"expected --shard-mb above 0 and up to {MOST_SHARD // 10**6}, given {shard_mb}"
        )
    about = _attributes(images, int(shard_mb * 1e6), seed)
    nodes = {split: group_metadata() for split in SPLITS} | about.arrays()
    total = sum(len(images.split(name)) for name in SPLITS) * prod(about.shape)
    _take_folder(out, {"fingerprint": images.fingerprint, "rows": about.shard_rows, "seed": seed})
    with storage_errors(out):
        check_room(out, total - sum(path.stat().st_size for path in out.glob("*/images/c/**/0")))
        for name, metadata in nodes.items():
            write_json(out / name / METADATA, metadata)
        with counted(progress, f"write {out.name}", total) as count:
            for split in SPLITS:
                _write_split(out / split, images.split(split), about, seed, count)
        inside = {"kind": "inline", "must_understand": False, "metadata": nodes}
        group = group_metadata(medduet=about.model_dump())
        write_json(out / METADATA, group | {"consolidated_metadata": inside})
        (out / _PLAN).unlink()
    return out


def _attributes(images: ImageSet, shard_bytes: int, seed: int) -> SetAttributes:
    """Return how the set will lie in its store."""
    shape = images.train.images.shape[1:]
    chunk_rows = max(1, min(_CHUNK_BYTES, shard_bytes) // prod(shape))
    splits = {}
    for name in SPLITS:
        split = images.split(name)
        fields = [field for field in FIELDS if getattr(split, field) is not None]
        longest = 1
        if split.ids is not None:
            longest = max(1, np.char.encode(split.ids, "utf-8").dtype.itemsize)
        elif name == "train" and len(split) <= _MOST_NAMED:
            fields, longest = [*fields, "ids"], len(f"train/{len(split)}")
        splits[name] = {"count": len(split), "fields": fields, "id_bytes": longest}
    return SetAttributes.model_validate(
        {
            "name": re.sub(r"[^\w.-]+", "-", images.name).strip("-.")[:200] or "set",
            "class_names": images.class_names,
            "mask_names": images.mask_names,
            "multi_label": images.multi_label,
            "shape": shape,
            "chunk_rows": chunk_rows,
            "shard_rows": chunk_rows * max(1, shard_bytes // (chunk_rows * prod(shape))),
            "info": _plain_info(images) | {"shuffle_seed": seed},
            **splits,
        }
    )


def _take_folder(out: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or go on in one where the same `plan` was stopped; refuse all others."""
    if out.suffix != ".zarr":
        raise ConfigError(f"expected a folder that ends in .zarr, given --out {out}")
    out.mkdir(parents=True, exist_ok=True)
    if (out / _PLAN).is_file():
        if read_json(out / _PLAN) != plan:
            raise ConfigError(f"{out} holds a part of another set: delete it, or change --out")
        for left in (*out.rglob("*.partial"), *out.rglob(".*.tmp")):  # of a process that was killed
            left.unlink(missing_ok=True)
    elif any(out.iterdir()):
        what = "a set" if (out / METADATA).is_file() else "other files"
        raise ConfigError(f"{out} holds {what} already: change --out")
    else:
        write_json(out / _PLAN, plan)


def _write_split(
    folder: Path, split: Split, about: SetAttributes, seed: int, count: Callable[[int], object]
) -> None:
    import zarr

    order, rows = np.arange(len(split)), about.shard_rows
    if folder.name == "train":
        order = np.random.default_rng(seed).permutation(order)
    # Within a shard in the order of the source, which is read faster so.
    order = np.concatenate([np.sort(order[at : at + rows]) for at in range(0, len(order), rows)])
    fields = getattr(about, folder.name).fields
    # Zeros too: a file that is missing is to be an error, not zeros.
    config: Any = {"write_empty_chunks": True}
    stored = {f: zarr.open_array(folder / f, mode="r+").with_config(config) for f in fields}
    for number, start in enumerate(range(0, len(order), rows)):
        here = order[start : start + rows]
        for field in PIXELS:
            if field in stored:
                path = folder / field / f"c/{number}" / "/".join("0" * (stored[field].ndim - 1))
                if not path.is_file():
                    stored[field][start : start + len(here)] = getattr(split, field)[here]
                    sync(path)
        count(len(here) * prod(about.shape))
    for field in set(fields) - {*PIXELS}:
        stored[field][:] = (
            _ids(split, order, stored[field].shape[1])
            if field == "ids"
            else (getattr(split, field)[order])
        )


def _ids(split: Split, order: NDArray[np.int64], length: int) -> NDArray[np.uint8]:
    """Return ids as UTF-8 ``(N, length)``; without any, the places in train."""
    ids = [f"train/{row}" for row in order] if split.ids is None else split.ids[order]
    return np.char.encode(ids, "utf-8").astype(f"S{length}")[:, None].view(np.uint8)


def _plain_info(images: ImageSet) -> dict[str, Any]:
    """Return the facts on the set that JSON has; how it was split becomes one text."""
    info: dict[str, Any] = {"written_from": images.fingerprint}
    for key, value in images.info.items():
        if key in ("split", "undivided"):  # they would ask for the split to be made again
            info[f"source_{key}"] = json.dumps(value)
        elif isinstance(value, str | int | float | bool):
            info[key] = value
        elif isinstance(value, list | tuple):
            info[key] = [each for each in value if isinstance(each, str | int | float | bool)]
    return info
