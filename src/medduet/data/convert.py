"""Turns image files into a store: once, in parallel, and without losing sight of broken files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.config import DataConfig
from medduet.data.arrange import NO_SPLIT
from medduet.data.cache import ProgressFactory, cache_folder, counted
from medduet.data.imageset import SPLITS, ImageSet
from medduet.data.listing import Item, Listing
from medduet.data.reading.core import Facts, ReadOptions
from medduet.data.reading.images import probe, read_pair
from medduet.data.store import check_room, growing_array, open_split, stored
from medduet.data.workers import Transient, WorkerPool
from medduet.errors import DataError
from medduet.types import UNKNOWN_LABEL
from medduet.utils.files import write_json, write_text
from medduet.utils.parsing import read_json

logger = logging.getLogger(__name__)

DEFAULT_SIZE = 224
_FORMAT = "files-2"  # part of each store's key; raise it when what `_build` writes changes
_SHOWN = 5
Fault = tuple[str, str]


class _File(NamedTuple):
    """An image file and what its header says."""

    item: Item
    facts: Facts


def open_files(
    listing: Listing, config: DataConfig, progress: ProgressFactory | None = None
) -> tuple[ImageSet, NDArray[np.int64]]:
    """Open the images of a listing, converting them at the first time.

    Every image becomes uint8 of one size, grey if all files are grey (or ``config.channels`` says
    so). Each frame of a file is an image; those of one file are one group.

    Returns:
        The set, all of whose images are in train, and for each image its given split: 0 train,
        1 val, 2 test, or `medduet.data.arrange.NO_SPLIT`.

    Raises:
        DataError: files can't be read and ``config.skip_broken`` is not set.
    """
    root = cache_folder(config.cache)
    build = partial(_build, listing, config, root, progress=progress)
    folder = stored(root, f"{_digest(listing, config)}-{_FORMAT}", build)
    meta = read_json(folder / "meta.json")
    if meta["skipped"]:
        logger.warning("%s: left out %s", listing.name, _summary(meta["skipped"], meta["files"]))
    whole = open_split(folder, "all")
    nothing = whole.take(np.zeros(0, dtype=np.int64))
    images = ImageSet(
        name=listing.name,
        train=whole,
        val=nothing,
        test=nothing,
        class_names=listing.class_names,
        mask_names=tuple(meta["mask_names"]),
        multi_label=listing.multi_label,
        fingerprint=meta["fingerprint"],
        info={
            "source": str(Path(config.name).expanduser().absolute()),
            "files": meta["files"],
            "skipped": meta["skipped"],
            "fit": config.fit,
            "window": config.window,
        },
    )
    return images, np.load(folder / "given.npy", allow_pickle=False)


def _digest(listing: Listing, config: DataConfig) -> str:
    """Return what tells one state of the files from another without reading them."""

    def stamp(path: Path) -> list[int]:
        stat = path.stat() if path.exists() else None
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] if stat else []

    digest = hashlib.sha256()
    names = ("size", "channels", "fit", "window", "skip_broken")
    whole = [[getattr(config, name) for name in names], listing.multi_label, listing.faults]
    digest.update(json.dumps(whole).encode())
    for item in listing.items:
        facts = [item.name, item.labels, item.group, item.split, stamp(item.path)]
        masks = [[path.name, stamp(path)] for path in item.masks]
        digest.update(json.dumps([facts, masks]).encode())
    return digest.hexdigest()


def _build(
    listing: Listing,
    config: DataConfig,
    root: Path,
    folder: Path,
    progress: ProgressFactory | None,
) -> None:
    """Read every file and fill `folder` with the store."""
    items, faults = listing.items, list(listing.faults)
    files: list[_File] = []
    with WorkerPool(max(1, min(len(os.sched_getaffinity(0)), len(items)))) as pool:
        with counted(progress, f"check {listing.name}", len(items)) as count:
            found = pool.map(probe, [item.path for item in items])
            for item, facts in zip(items, found, strict=True):
                count(1)
                if isinstance(facts, str):
                    faults.append((item.name, facts))
                else:
                    files.append(_File(item, facts))
        total = sum(file.facts.frames for file in files)
        with counted(progress, f"convert {listing.name}", total) as count:
            kept, classes, digest = _convert(pool, files, config, folder, count, faults)
    _check(faults, kept, listing, config, root)
    for name, array in _truth(kept, listing).items():
        np.save(folder / f"{name}.npy", array)
        digest.update(array.tobytes())
    several = ["background", *(f"mask {number}" for number in range(1, classes))]
    meta = {
        "mask_names": several if classes > 2 else ["background", "lesion"] if classes else [],
        "fingerprint": digest.hexdigest(),
        "files": len(items),
        "skipped": faults,
    }
    write_json(folder / "meta.json", meta)


def _convert(
    pool: WorkerPool,
    files: Sequence[_File],
    config: DataConfig,
    folder: Path,
    count: Callable[[int], object],
    faults: list[Fault],
) -> tuple[list[_File], int, Any]:
    """Write the pixels of all files into `folder` as they are read.

    Returns:
        The files that were read, the number of mask classes, 0 without masks, and a digest of all
        pixels.
    """
    options = _options(files, config)
    tails = {"images": (*options.sides, *(3,) * (options.channels == 3))}
    if any(file.item.masks for file in files):
        tails["masks"] = options.sides
    check_room(folder, sum(file.facts.frames for file in files) * sum(map(prod, tails.values())))
    kept: list[_File] = []
    highest, digest = 1, hashlib.sha256()
    jobs = [(file.item.path, file.item.masks, file.facts) for file in files]
    with ExitStack() as stack:
        append = {
            name: stack.enter_context(growing_array(folder / f"all_{name}.npy", tail))
            for name, tail in tails.items()
        }
        results = pool.map(partial(read_pair, options=options), jobs)
        for file, result in zip(files, results, strict=True):
            count(file.facts.frames)
            if isinstance(result, str):
                faults.append((file.item.name, result))
                continue
            images, masks = result
            if masks is None:
                masks = np.zeros(images.shape[:3], np.uint8)
            highest = max(highest, int(masks.max()))
            for pixels, name in zip((images, masks), append, strict=False):
                append[name](pixels)
                digest.update(pixels.tobytes())
            kept.append(file)
    return kept, (highest + 1) * ("masks" in tails), digest


def _options(files: Sequence[_File], config: DataConfig) -> ReadOptions:
    """Return what files become; their own size if all are small squares of one size."""
    sides = {side for file in files for side in (file.facts.height, file.facts.width)}
    size = sides.pop() if len(sides) == 1 and max(sides) <= DEFAULT_SIZE else DEFAULT_SIZE
    colour = any(file.facts.channels == 3 for file in files)
    channels = config.channels or (3 if colour else 1)
    return ReadOptions(config.size or size, config.fit, channels, config.window)


def _truth(kept: Sequence[_File], listing: Listing) -> dict[str, NDArray[Any]]:
    """Return labels, groups, splits and ids of the images, by the name of their file."""
    classes = listing.class_names
    unknown: Any = [UNKNOWN_LABEL] * len(classes) if listing.multi_label else UNKNOWN_LABEL
    labels, groups, ids = [], [], []
    for item, facts in kept:
        if item.labels is None:
            labels.append(unknown)
        elif listing.multi_label:
            labels.append([int(name in item.labels) for name in classes])
        else:
            labels.append(classes.index(item.labels[0]))
        # The frames of one file belong together whether or not its patient is known.
        groups.append(item.group or (f"file {item.name}" if facts.frames > 1 else ""))
        several = [f"{item.name}#{frame + 1}" for frame in range(facts.frames)]
        ids += several if facts.frames > 1 else [item.name]
    given = [SPLITS.index(item.split) if item.split else NO_SPLIT for item, _ in kept]
    has_mask = [bool(item.masks) for item, _ in kept]
    columns: dict[str, list[Any]] = {"all_labels": labels, "given": given}
    if any(groups):
        numbers = {name: number for number, name in enumerate(sorted({*groups} - {""}))}
        columns["all_groups"] = [numbers.get(group, -1) for group in groups]
    if any(has_mask):
        columns["all_has_mask"] = has_mask
    frames = [facts.frames for _, facts in kept]
    arrays = {name: np.repeat(np.array(rows), frames, axis=0) for name, rows in columns.items()}
    return arrays | {"all_ids": np.array(ids, dtype=np.str_)}


def _check(
    faults: Sequence[Fault],
    kept: Sequence[_File],
    listing: Listing,
    config: DataConfig,
    root: Path,
) -> None:
    """Raise a DataError that names what can't be read, unless that may be skipped.

    Only what is wrong with a file itself may be: the store is kept until a file changes, so what
    was left out for another reason would stay out, and which images a set has would depend on how
    busy the machine was. What a library would mend, and what is `Transient`, is always an error.
    """
    name, total = listing.name, len(listing.items)
    if not config.skip_broken and faults:
        path = root / "broken" / f"{name}.csv"
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("file", "reason"), *faults])
        write_text(path, table.getvalue())
        raise DataError(
            f"{name}: {_summary(faults, total)}{f' (all in {path})' * (len(faults) > _SHOWN)}; "
            "repair them, or leave them out with --data.skip-broken"
        )
    if missing := [fault for fault in faults if "pip install" in fault[1]]:
        raise DataError(f"{name}: {_summary(missing, total)}")
    if transient := [fault for fault in faults if isinstance(fault[1], Transient)]:
        raise DataError(
            f"{name}: {_summary(transient, total)}; they may be whole, so they are not "
            "skipped: try again with more time and memory, or take them out"
        )
    if not kept:
        raise DataError(f"{name}: none of its {total} files can be read")


def _summary(faults: Sequence[Fault], total: int) -> str:
    """Return in one line which files can't be read, and why."""
    shown = [reason if name in reason else f"{name}: {reason}" for name, reason in faults[:_SHOWN]]
    more = [f"and {len(faults) - _SHOWN} more"] * (len(faults) > _SHOWN)
    return f"{len(faults)} of {total} files that can't be read: {'; '.join([*shown, *more])}"
