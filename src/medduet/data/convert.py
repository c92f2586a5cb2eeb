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
        if not path.exists():
            return []
        stat = path.stat()
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
    files: list[_File] = []
    with WorkerPool(max(1, min(len(os.sched_getaffinity(0)), len(listing.items)))) as pool:
        with counted(progress, f"check {listing.name}", len(listing.items)) as count:
            for number, facts in pool.map(probe, [item.path for item in listing.items]):
                count(1)
                if isinstance(facts, str):
                    faults.append((listing.items[number].name, facts))
                else:
                    files.append(_File(listing.items[number], facts))
        if config.skip_broken or not files:  # before hours of work for nothing
            _check(faults, files, listing, config, root)
        colour = any(file.facts.channels == 3 for file in files)
        options = ReadOptions(
            size=config.size or _common_size(files),
            fit=config.fit,
            channels=config.channels or (3 if colour else 1),
            window=config.window,
        )
        with counted(
            progress, f"convert {listing.name}", sum(file.facts.frames for file in files)
        ) as count:
            done = _convert(pool, files, options, folder, count)
    faults += done.faults
    _check(faults, done.kept, listing, config, root)
    for name, array in _truth(done.kept, listing).items():
        np.save(folder / f"{name}.npy", array)
        done.digest.update(array.tobytes())
    mask_names = ["background", *(f"mask {number}" for number in range(1, done.mask_classes))]
    if done.mask_classes <= 2:
        mask_names = ["background", "lesion"] if done.mask_classes else []
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


def _common_size(files: Sequence[_File]) -> int:
    """Return the size of the files if all are small squares of one size, else the default."""
    sizes = {side for file in files for side in (file.facts.height, file.facts.width)}
    return sizes.pop() if len(sizes) == 1 and max(sizes) <= DEFAULT_SIZE else DEFAULT_SIZE


class _Converted(NamedTuple):
    """What came of the files; `mask_classes` is 0 without masks, `digest` is of all pixels."""

    kept: list[_File]
    faults: list[Fault]
    mask_classes: int
    digest: Any


def _convert(
    pool: WorkerPool,
    files: Sequence[_File],
    options: ReadOptions,
    folder: Path,
    count: Callable[[int], object],
) -> _Converted:
    """Write the pixels of all files into `folder`, one after the other as they are read."""
    with_masks = any(file.item.masks for file in files)
    colour = (3,) * (options.channels == 3)
    tails = {"images": (*options.sides, *colour)}
    if with_masks:
        tails["masks"] = options.sides
    check_room(folder, sum(file.facts.frames for file in files) * sum(map(prod, tails.values())))
    kept: list[_File] = []
    faults: list[Fault] = []
    digest, highest = hashlib.sha256(), 1
    with ExitStack() as stack:
        arrays = [
            stack.enter_context(growing_array(folder / f"{_WHOLE}_{name}.npy", tail))
            for name, tail in tails.items()
        ]
        jobs = [ReadJob(file.item.path, file.item.masks, file.facts) for file in files]
        for number, result in pool.map(partial(read_job, options=options), jobs):
            count(files[number].facts.frames)
            if isinstance(result, str):
                faults.append((files[number].item.name, result))
                continue
            images, masks = result
            pieces = [images]
            if with_masks:
                pieces.append(np.zeros(images.shape[:3], np.uint8) if masks is None else masks)
                highest = max(highest, int(pieces[1].max()))
            for append, pixels in zip(arrays, pieces, strict=True):
                append(pixels)
                digest.update(pixels.tobytes())
            kept.append(files[number])
    return _Converted(kept, faults, (highest + 1) * with_masks, digest)


def _truth(kept: Sequence[_File], listing: Listing) -> dict[str, NDArray[Any]]:
    """Return labels, groups, splits and ids of the images, by the name of their file."""
    names = listing.class_names
    rows: dict[str, list[Any]] = {"labels": [], "has_mask": [], "split": [], "group": []}
    ids: list[str] = []
    for item, facts in kept:
        if listing.multi_label:
            unknown = [UNKNOWN_LABEL] * len(names)
            label: Any = unknown if item.labels is None else [int(n in item.labels) for n in names]
        else:
            label = names.index(item.labels[0]) if item.labels else UNKNOWN_LABEL
        rows["labels"].append(label)
        rows["has_mask"].append(bool(item.masks))
        rows["split"].append(SPLITS.index(item.split) if item.split else NO_SPLIT)
        # The frames of one file belong together whether or not its patient is known.
        rows["group"].append(item.group or (f"file {item.name}" if facts.frames > 1 else ""))
        several = [f"{item.name}#{frame + 1}" for frame in range(facts.frames)]
        ids += several if facts.frames > 1 else [item.name]
    groups = sorted(set(rows["group"]) - {""})
    numbers = {"": -1} | {name: number for number, name in enumerate(groups)}
    columns = {f"{_WHOLE}_labels": rows["labels"], GIVEN: rows["split"]}
    if groups:
        columns[f"{_WHOLE}_groups"] = [numbers[group] for group in rows["group"]]
    if any(rows["has_mask"]):
        columns[f"{_WHOLE}_has_mask"] = rows["has_mask"]
    frames = [facts.frames for _, facts in kept]
    arrays = {name: np.repeat(np.array(row), frames, axis=0) for name, row in columns.items()}
    return arrays | {f"{_WHOLE}_ids": np.array(ids, dtype=np.str_)}


def _check(
    faults: Sequence[Fault],
    files: Sequence[_File],
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
    if config.skip_broken:
        if missing := [fault for fault in faults if "pip install" in fault[1]]:
            raise DataError(f"{name}: {_summary(missing, total)}")
        if transient := [fault for fault in faults if isinstance(fault[1], Transient)]:
            raise DataError(
                f"{name}: {_summary(transient, total)}; they may be whole, so they are not "
                "skipped: try again with more time and memory, or take them out"
            )
        if not files:
            raise DataError(f"{name}: none of its {total} files can be read")
    elif faults:
        path = root / "broken" / f"{name}.csv"
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("file", "reason"), *faults])
        write_text(path, table.getvalue())
        raise DataError(
            f"{name}: {_summary(faults, total)}{f' (all in {path})' * (len(faults) > _SHOWN)}; "
            "repair them, or leave them out with --data.skip-broken"
        )


def _summary(faults: Sequence[Fault], total: int) -> str:
    """Return in one line which files can't be read, and why."""
    shown = [reason if name in reason else f"{name}: {reason}" for name, reason in faults[:_SHOWN]]
    more = [f"and {len(faults) - _SHOWN} more"] * (len(faults) > _SHOWN)
    return f"{len(faults)} of {total} files that can't be read: {'; '.join([*shown, *more])}"
