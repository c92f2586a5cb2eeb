"""Turns image files into a store: once, in parallel, and without losing sight of broken files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
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
from medduet.data.reading.images import ReadJob, probe, read_job
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
_WHOLE, GIVEN = "all", "given"
Fault = tuple[str, str]


class _Probed(NamedTuple):
    """A file whose header was read."""

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
    options = {
        name: getattr(config, name) for name in ("size", "channels", "fit", "window", "skip_broken")
    }
    key = f"{_listing_digest(listing, options)}-{_FORMAT}"
    build = partial(_build, listing, config, root, progress=progress)
    folder = stored(root, key, build)
    meta = read_json(folder / "meta.json")
    whole = open_split(folder, _WHOLE)
    skipped = meta["skipped"]
    if skipped:
        logger.warning("%s: left out %s", listing.name, _summary(skipped, meta["files"]))
    nothing = np.zeros(0, dtype=np.int64)
    images = ImageSet(
        name=listing.name,
        train=whole,
        val=whole.take(nothing),
        test=whole.take(nothing),
        class_names=tuple(meta["class_names"]),
        mask_names=tuple(meta["mask_names"]),
        multi_label=meta["multi_label"],
        fingerprint=meta["fingerprint"],
        info={
            "source": str(Path(config.name).expanduser().absolute()),
            "files": meta["files"],
            "skipped": skipped,
            "fit": config.fit,
            "window": config.window,
        },
    )
    return images, np.load(folder / f"{GIVEN}.npy", allow_pickle=False)


def _listing_digest(listing: Listing, options: dict[str, Any]) -> str:
    """Return what tells one state of the files from another without reading them."""

    def stamp(path: Path) -> list[int]:
        try:
            stat = path.stat()
        except OSError:
            return []
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    digest = hashlib.sha256(json.dumps(options).encode())
    digest.update(json.dumps([listing.class_names, listing.multi_label, listing.faults]).encode())
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
    faults = list(listing.faults)
    with WorkerPool(max(1, min(len(os.sched_getaffinity(0)), len(listing.items)))) as pool:
        probed, broken = _probe(pool, listing, progress)
        faults += broken
        if config.skip_broken or not probed:  # before hours of work for nothing
            _refuse(faults, listing, config, root)
        if not probed:
            raise DataError(f"{listing.name}: none of its {len(listing.items)} files can be read")
        colour = any(file.facts.channels == 3 for file in probed)
        options = ReadOptions(
            size=config.size or _common_size(probed),
            fit=config.fit,
            channels=config.channels or (3 if colour else 1),
            window=config.window,
        )
        done = _convert(pool, probed, options, folder, f"convert {listing.name}", progress)
    faults += done.faults
    _refuse(faults, listing, config, root)
    if not done.kept:
        raise DataError(f"{listing.name}: none of its {len(listing.items)} files can be read")
    for name, array in _truth(done.kept, listing).items():
        np.save(folder / f"{name}.npy", array)
        done.digest.update(array.tobytes())
    mask_names: tuple[str, ...] = ()
    if done.mask_classes:
        others = [f"mask {number}" for number in range(1, done.mask_classes)]
        mask_names = ("background", *(others if len(others) > 1 else ["lesion"]))
    write_json(
        folder / "meta.json",
        {
            "class_names": listing.class_names,
            "mask_names": mask_names,
            "multi_label": listing.multi_label,
            "fingerprint": done.digest.hexdigest(),
            "files": len(listing.items),
            "skipped": faults,
        },
    )


def _probe(
    pool: WorkerPool, listing: Listing, progress: ProgressFactory | None
) -> tuple[list[_Probed], list[Fault]]:
    probed, faults = [], []
    with counted(progress, f"check {listing.name}", len(listing.items)) as count:
        for number, facts in pool.map(probe, [item.path for item in listing.items]):
            count(1)
            item = listing.items[number]
            if isinstance(facts, str):
                faults.append((item.name, facts))
            else:
                probed.append(_Probed(item, facts))
    return probed, faults


def _common_size(probed: Sequence[_Probed]) -> int:
    """Return the size of the files if all are small squares of one size, else the default."""
    sizes = {side for file in probed for side in (file.facts.height, file.facts.width)}
    return sizes.pop() if len(sizes) == 1 and max(sizes) <= DEFAULT_SIZE else DEFAULT_SIZE


class _Converted(NamedTuple):
    """What came of the files.

    `kept` are those that could be read, `faults` the others and why; `mask_classes` is 0 without
    masks; `digest` is of all pixels.
    """

    kept: list[_Probed]
    faults: list[Fault]
    mask_classes: int
    digest: Any


def _convert(
    pool: WorkerPool,
    probed: Sequence[_Probed],
    options: ReadOptions,
    folder: Path,
    description: str,
    progress: ProgressFactory | None,
) -> _Converted:
    """Write the pixels of all files into `folder`, one after the other as they are read."""
    with_masks = any(file.item.masks for file in probed)
    sides, colour = options.sides, (3,) * (options.channels == 3)
    tails = [(*sides, *colour)] + [sides] * with_masks
    check_room(folder, sum(file.facts.frames for file in probed) * sum(map(prod, tails)))
    done = _Converted([], [], 2 * with_masks, hashlib.sha256())
    highest = 1
    sizes = [file.item.path.stat().st_size for file in probed]
    with ExitStack() as stack:
        count = stack.enter_context(counted(progress, description, sum(sizes)))
        arrays = [
            stack.enter_context(growing_array(folder / f"{_WHOLE}_{name}.npy", tail))
            for name, tail in zip(("images", "masks"), tails, strict=False)
        ]
        jobs = [ReadJob(file.item.path, file.item.masks, file.facts) for file in probed]
        for number, result in pool.map(partial(read_job, options=options), jobs):
            count(sizes[number])
            if isinstance(result, str):
                done.faults.append((probed[number].item.name, result))
                continue
            images, masks = result
            pieces = [images]
            if with_masks:
                pieces.append(np.zeros(images.shape[:3], np.uint8) if masks is None else masks)
                highest = max(highest, int(pieces[1].max()))
            for append, pixels in zip(arrays, pieces, strict=True):
                append(pixels)
                done.digest.update(pixels.tobytes())
            done.kept.append(probed[number])
    return done._replace(mask_classes=(highest + 1) * with_masks)


def _truth(kept: Sequence[_Probed], listing: Listing) -> dict[str, NDArray[Any]]:
    """Return what is known of each image, by the name of its file in the store."""
    frames = [file.facts.frames for file in kept]
    items = [file.item for file in kept]
    ids = [
        item.name if count == 1 else f"{item.name}#{frame + 1}"
        for item, count in zip(items, frames, strict=True)
        for frame in range(count)
    ]
    # The frames of one file belong together whether or not its patient is known.
    groups = [
        item.group or (f"file {item.name}" if count > 1 else "")
        for item, count in zip(items, frames, strict=True)
    ]
    group_numbers = {name: number for number, name in enumerate(sorted(set(groups) - {""}))}
    split_numbers = {name: number for number, name in enumerate(SPLITS)}
    rows = {
        f"{_WHOLE}_labels": [_label(item, listing) for item in items],
        GIVEN: [split_numbers.get(item.split, NO_SPLIT) for item in items],
    }
    if group_numbers:
        rows[f"{_WHOLE}_groups"] = [group_numbers.get(group, -1) for group in groups]
    if any(item.masks for item in items):
        rows[f"{_WHOLE}_has_mask"] = [bool(item.masks) for item in items]
    arrays = {name: np.repeat(np.array(row), frames, axis=0) for name, row in rows.items()}
    return arrays | {f"{_WHOLE}_ids": np.array(ids, dtype=np.str_)}


def _label(item: Item, listing: Listing) -> int | list[int]:
    names = listing.class_names
    if listing.multi_label:
        known = item.labels
        return [UNKNOWN_LABEL if known is None else int(name in known) for name in names]
    return UNKNOWN_LABEL if item.labels is None else names.index(item.labels[0])


def _refuse(faults: Sequence[Fault], listing: Listing, config: DataConfig, root: Path) -> None:
    """Raise a DataError that names what can't be read, unless that may be skipped.

    Only what is wrong with a file itself may be: the store is kept until a file changes, so what
    was left out for another reason would stay out, and which images a set has would depend on how
    busy the machine was. What a library would mend, and what is `Transient`, is always an error.
    """
    files = len(listing.items)
    if config.skip_broken:
        if missing := [fault for fault in faults if "pip install" in fault[1]]:
            raise DataError(f"{listing.name}: {_summary(missing, files)}")
        if transient := [fault for fault in faults if isinstance(fault[1], Transient)]:
            raise DataError(
                f"{listing.name}: {_summary(transient, files)}; they may be whole, so they are not "
                "skipped: try again with more time and memory, or take them out"
            )
        return
    if not faults:
        return
    path = root / "broken" / f"{listing.name}.csv"
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("file", "reason"), *faults])
    write_text(path, table.getvalue())
    raise DataError(
        f"{listing.name}: {_summary(faults, files)}"
        f"{f' (all in {path})' if len(faults) > _SHOWN else ''}; repair them, or leave them out "
        "with --data.skip-broken"
    )


def _summary(faults: Sequence[Fault], files: int) -> str:
    """Return in one line which files can't be read, and why."""
    shown = [reason if name in reason else f"{name}: {reason}" for name, reason in faults[:_SHOWN]]
    more = [f"and {len(faults) - _SHOWN} more"] * (len(faults) > _SHOWN)
    return f"{len(faults)} of {files} files that can't be read: {'; '.join([*shown, *more])}"
