"""Writes a set as a zarr store, which `medduet.data.zarr_reader.open_zarr` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from medduet.data.cache import ProgressFactory, counted
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.data.store import check_room
from medduet.data.zarr_format import FIELDS, METADATA, MOST_SHARD, PIXELS, SetAttributes
from medduet.errors import ConfigError
from medduet.utils.files import storage_errors, sync, write_json
from medduet.utils.parsing import read_json

_PLAN = "plan.json"
_CHUNK_BYTES = 1 << 20


def write_zarr(
    images: ImageSet, out: Path, *, shard_mb: float = 64, progress: ProgressFactory | None = None
) -> Path:
    """Write `images` into the zarr store `out`, in the split that they have, and return `out`.

    The images of train are dealt to shards at random, since images of one class often stand
    together; val and test keep their order. Each shard is whole or not there and the metadata of
    the group come last, so the same call continues where one was stopped.

    Args:
        images: the set.
        out: a folder ``NAME.zarr`` that is new, empty, or in which the same call was stopped.
        shard_mb: size of the images of a shard in MB.
        progress: makes a bar.

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
    if out.suffix != ".zarr":
        raise ConfigError(f"expected a folder that ends in .zarr, given --out {out}")
    splits = {name: _fields(images.split(name), name) for name in SPLITS}
    about = _attributes(images, splits, int(shard_mb * 1e6))
    total = sum(len(fields["labels"]) for fields in splits.values()) * prod(about.shape)
    _take_folder(out, {"fingerprint": images.fingerprint, "rows": about.shard_rows})
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    nodes = dict.fromkeys(SPLITS, group) | about.arrays()
    with storage_errors(out):
        check_room(out, total - sum(path.stat().st_size for path in out.glob("*/images/c/**/0")))
        for name, metadata in nodes.items():
            write_json(out / name / METADATA, metadata)
        with counted(progress, f"write {out.name}", total) as count:
            for name, fields in splits.items():
                _write_split(out / name, fields, about, count)
        consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
        group["attributes"] = {"medduet": about.model_dump()}
        write_json(out / METADATA, group | {"consolidated_metadata": consolidated})
        (out / _PLAN).unlink()
    return out


def _fields(split: Split, name: str) -> dict[str, Any]:
    """Return the fields of a split; images of train are called by their place if unnamed."""
    fields = {field: values for field in FIELDS if (values := getattr(split, field)) is not None}
    if name == "train" and "ids" not in fields:
        fields["ids"] = np.char.add("train/", np.arange(len(split)).astype(np.str_))
    if "ids" in fields:
        fields["ids"] = np.char.encode(fields["ids"], "utf-8")
    return fields


def _attributes(
    images: ImageSet, splits: dict[str, dict[str, Any]], shard_bytes: int
) -> SetAttributes:
    """Return how the set will lie in its store."""
    shape = images.train.images.shape[1:]
    chunk_rows = max(1, min(_CHUNK_BYTES, shard_bytes) // prod(shape))
    # How the set was split would ask for the split to be made again.
    renamed = {"split": "source_split", "undivided": "source_undivided"}
    info = {renamed.get(key, key): value for key, value in images.info.items()}
    return SetAttributes(
        name=re.sub(r"[^\w.-]+", "-", images.name).strip("-.")[:200] or "set",
        class_names=images.class_names,
        mask_names=images.mask_names,
        multi_label=images.multi_label,
        shape=shape,
        chunk_rows=chunk_rows,
        shard_rows=chunk_rows * max(1, shard_bytes // (chunk_rows * prod(shape))),
        info=json.loads(json.dumps(info, default=str)) | {"written_from": images.fingerprint},
        **{
            name: {
                "count": len(fields["labels"]),
                "fields": tuple(fields),
                "id_bytes": max(1, fields["ids"].itemsize) if "ids" in fields else 1,
            }
            for name, fields in splits.items()
        },
    )


def _take_folder(out: Path, plan: dict[str, Any]) -> None:
    """Make the folder, or go on in one where the same `plan` was stopped; refuse all others."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / _PLAN).is_file():
        if read_json(out / _PLAN) != plan:
            raise ConfigError(f"{out} holds a part of another set: delete it, or change --out")
        for leftover in (*out.rglob("*.partial"), *out.rglob(".*.tmp")):  # of a killed process
            leftover.unlink(missing_ok=True)
    elif any(out.iterdir()):
        raise ConfigError(f"{out} holds files already: change --out")
    else:
        write_json(out / _PLAN, plan)


def _write_split(
    folder: Path, fields: dict[str, Any], about: SetAttributes, count: Callable[[int], object]
) -> None:
    import zarr

    order, rows = np.arange(len(fields["labels"])), about.shard_rows
    if folder.name == "train":
        order = np.random.default_rng(0).permutation(order)
    # Zeros are written too: a file that is missing is to be an error, not zeros.
    config: Any = {"write_empty_chunks": True}
    arrays = {f: zarr.open_array(folder / f, mode="r+").with_config(config) for f in fields}
    for number, start in enumerate(range(0, len(order), rows)):
        here = np.sort(order[start : start + rows])  # which is read faster from the source
        order[start : start + rows] = here
        for field in fields.keys() & {*PIXELS}:
            path = folder / field / f"c/{number}" / "/".join("0" * (arrays[field].ndim - 1))
            if not path.is_file():
                arrays[field][start : start + len(here)] = fields[field][here]
                sync(path)
        count(len(here) * prod(about.shape))
    for field in fields.keys() - {*PIXELS}:
        values = fields[field][order]
        arrays[field][:] = values[:, None].view(np.uint8) if field == "ids" else values
