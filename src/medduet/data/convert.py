"""Turns image files into a store: once, in parallel, and without losing sight of broken files."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medduet.config import DataConfig
from medduet.data.cache import Progress, cache_folder, counted
from medduet.data.imageset import SPLITS, ImageSet
from medduet.data.listing import Item, Listing
from medduet.data.mask_values import meaning_of
from medduet.data.pixels import for_each_axis
from medduet.data.reading.core import MAX_FRAME_PIXELS, ReadOptions, channel_paths
from medduet.data.reading.masks import (
    LIKE_MASKS,
    MaskValues,
    Probe,
    foreground,
    probe_pair,
    read_pair,
)
from medduet.data.reading.shape import inner_sides
from medduet.data.splits import NO_SPLIT
from medduet.data.store import check_room, growing_array, open_split, stored
from medduet.data.volumes import SMALLEST, common_window, volume_options, with_series
from medduet.data.workers import Transient, WorkerPool
from medduet.errors import DataError
from medduet.types import UNKNOWN_LABEL, Modality
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

logger = logging.getLogger(__name__)

DEFAULT_SIZE = 224
_FORMAT = "files-11"  # part of each store's key; raise it when what `_build` writes changes
_SHOWN = 5
Fault = tuple[str, str]
R = TypeVar("R")


def open_files(
    listing: Listing, config: DataConfig, progress: Progress = None
) -> tuple[ImageSet, NDArray[np.int64]]:
    """Open the images of a listing, converting them at the first time; and their given splits.

    Every image becomes uint8 of one size, grey if all files are grey (or ``config.channels`` says
    so). Each frame of a file is an image; those of one file are one group. All are in train.
    """
    root, listing = cache_folder(config.cache), with_series(listing, config)
    build = partial(_build, listing, config, progress)
    folder = stored(root, f"{_digest(listing, config)}-{_FORMAT}", build)
    meta = read_json(folder / "meta.json")
    if meta["skipped"]:
        logger.warning("%s: left out %s", listing.name, _summary(meta["skipped"], meta["files"]))
    whole = open_split(folder, "all")
    nothing = whole.take(np.zeros(0, dtype=np.int64))
    kept = "files", "kinds", "skipped", "mask_values", "fit", "spacing", "window", "modality"
    info = {key: meta[key] for key in kept}
    info["source"] = str(Path(config.name).expanduser().absolute())
    united = sum(len(item.masks) > 1 for item in listing.items)
    of_masks = [f"{united} images have several masks each, which are united"] * bool(united)
    info["notes"] = [*listing.notes, *of_masks, *meta["notes"]]
    images = ImageSet(
        name=listing.name,
        train=whole,
        val=nothing,
        test=nothing,
        class_names=listing.class_names,
        mask_names=tuple(meta["mask_names"]),
        multi_label=listing.multi_label,
        fingerprint=meta["fingerprint"],
        info=info,
    )
    return images, np.load(folder / "given.npy", allow_pickle=False)


def _digest(listing: Listing, config: DataConfig) -> str:
    """Return what tells one state of the files from another without reading them."""

    def stamp(path: Path) -> list[str | int]:
        if path.is_dir():
            return [x for file in sorted(path.iterdir()) if file.is_file() for x in stamp(file)]
        stat = path.stat() if path.exists() else None
        about = [path.name, *([stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] if stat else ())]
        # The voxels of these headers are in a file beside them.
        ends = (".raw", ".zraw", ".raw.gz") if path.suffix.lower() in (".mhd", ".nhdr") else ()
        return about + [x for end in ends for x in stamp(path.with_suffix(end))]

    fields = {"size", "channels", "fit", "window", "skip_broken", "mask_values", "dims", "spacing"}
    options = config.model_dump(include=fields)
    rows = [
        (
            *(item.name, *item[3:]),
            [stamp(path) for path in (*channel_paths(item.path, item.channels), *item.masks)],
        )
        for item in listing.items
    ]
    listed = listing.multi_label, listing.faults, listing.mask_values
    whole = json.dumps([options, listed, _modality(listing, config), rows])
    return hashlib.sha256(whole.encode()).hexdigest()


def _build(listing: Listing, config: DataConfig, progress: Progress, folder: Path) -> None:
    items, faults = listing.items, list(listing.faults)
    workers = max(1, min(len(os.sched_getaffinity(0)), len(items)))
    bar = counted(progress, f"convert {listing.name}", 2 * len(items))
    with WorkerPool(workers) as pool, bar as count:

        def read(read_one: Callable[[Any], R], jobs: dict[Item, Any]) -> Iterator[tuple[Item, R]]:
            for item, result in zip(jobs, pool.map(read_one, jobs.values()), strict=True):
                count(1)
                if isinstance(result, str):
                    faults.append((item.name, result))
                else:
                    yield item, result

        probes, masks, kinds = dict[Item, Probe](), dict[Path, MaskValues](), Counter[str]()
        jobs = {item: (item.path, item.masks) for item in items}
        for item, probe in read(probe_pair, jobs):
            probes[item] = probe
            kinds[probe.kind] += 1
            masks |= zip(item.masks, probe.masks, strict=True)
        options, notes = _options(listing.name, {x.name: probes[x] for x in probes}, config)
        patients = {item: probe.patient for item, probe in probes.items() if probe.patient}
        if any(item.group for item in items) or len({*patients.values()}) < 2:  # or one for all
            patients = {}
        notes += ["groups are patients, by the PatientID of DICOM"] * bool(patients)
        if config.window != "own":
            options = options._replace(window=config.window)
        if len(counts := {item.channels: item.name for item in items}) > 1:
            given = " and ".join(f"{count} of {name}" for count, name in sorted(counts.items()))
            raise DataError(f"{listing.name}: expected as many channels of each, given {given}")
        if (channels := items[0].channels) > 1 and len(options.sides) == 2:
            raise DataError(f"{listing.name}: expected one channel of images, given {channels}")
        options = options._replace(channels=max(channels, options.channels))
        tails = {"images": (*options.sides, *(options.channels,) * (options.channels > 1))}
        stated = config.mask_values or listing.mask_values
        meaning = meaning_of(listing.name, masks, stated) if masks else None
        if meaning:
            tails["masks"] = options.sides
        classes, volumes = meaning and meaning.classes, len(options.sides) == 3
        total = len(probes) if volumes else sum(x.facts.frames for x in probes.values())
        check_room(folder, total * sum(map(prod, tails.values())))
        jobs = {item: jobs[item] for item in probes}
        modality = _modality(listing, config, probes.values())
        usual = volumes and config.window is None
        if usual and modality == "mri":
            options = options._replace(window="zscore")
            notes.append("MR: each volume is shown by its z-score, cut at -4 and 4")
        if usual and modality == "ct" and channels == 1:
            learnt = {item: jobs[item] for item in jobs if item.split in ("", "train")}
            sampled = dict(read(partial(foreground, meaning=classes), learnt))
            window, more = common_window([*sampled.values()])
            options, notes = options._replace(window=window), [*notes, more]
            jobs = {item: jobs[item] for item in jobs if item in sampled or item not in learnt}
        read_one = partial(read_pair, options=options, meaning=classes)
        frames, remarks, digest = dict[Item, int](), Counter[str](), hashlib.sha256()
        lossless, example = list[int](), ""
        with ExitStack() as stack:
            append = {
                name: stack.enter_context(growing_array(folder / f"all_{name}.npy", tail))
                for name, tail in tails.items()
            }
            for item, pair in read(read_one, jobs):
                remarks.update(pair.remarks)
                example = item.name if LIKE_MASKS in pair.remarks else example
                lossless.append(pair.lossless_side)
                drawn = pair.masks
                if drawn is None:
                    drawn = np.zeros((len(pair.images), *options.sides), np.uint8)
                for name, pixels in zip(append, (pair.images, drawn), strict=False):
                    append[name](pixels)
                    digest.update(pixels.tobytes())
                frames[item] = len(pair.images)
    _check(faults, listing, config)
    if not frames:
        raise DataError(f"{listing.name}: none of its {len(items)} files can be read")
    like_masks = remarks[LIKE_MASKS]
    if len(frames) / 10 <= like_masks < len(frames) and Path(config.name).expanduser().is_dir():
        raise DataError(
            f"{listing.name}: expected images, given {like_masks} of {len(frames)} that "
            f"{LIKE_MASKS}, such as {example}: say which are, as in --data.masks '*_lesion.png' or "
            "'lung masks/*', and move others away; or list images and masks in a table (.csv)"
        )
    frames = {x._replace(group=patients.get(x, x.group)): count for x, count in frames.items()}
    for name, array in _truth(frames, listing).items():
        np.save(folder / f"{name}.npy", array)
        digest.update(array.tobytes())
    notes += [f"{count} of {len(frames)} files {remark}" for remark, count in remarks.items()]
    if any(lossless):
        lost, side = np.count_nonzero(lossless), max(lossless)
        notes.append(
            f"{lost} masks lose all pixels of a class at this size: "
            + ("a smaller --spacing" if options.spacing else f"--size {side}")
            + " keeps them"
        )
    meta: dict[str, Any] = {"files": len(items), "kinds": kinds, "skipped": faults, "notes": notes}
    meta |= {"fingerprint": digest.hexdigest(), "modality": modality}
    meta |= {"fit": options.fit, "spacing": options.spacing, "window": options.window}
    meta["mask_names"] = meaning.mask_names if meaning else []
    meta["mask_values"] = meaning.words if meaning else {}
    write_json(folder / "meta.json", meta)


def _modality(listing: Listing, config: DataConfig, probes: Collection[Probe] = ()) -> Modality:
    """Return what images show: as it is typed, or said of the set, or by all files alike."""
    of_files = {probe.modality for probe in probes}
    known: list[Modality] = [config.modality, listing.modality]
    known += of_files if len(of_files) == 1 else []
    return next((each for each in known if each != "auto"), "auto")


def _options(
    name: str, probes: Mapping[str, Probe], config: DataConfig
) -> tuple[ReadOptions, list[str]]:
    """Return what files become, images or volumes, and sentences on how that was decided."""
    flat = [file for file, probe in probes.items() if not probe.are_slices]
    dims = config.dims or (2 if flat or not probes else 3)
    if flat and (dims == 3 or len(flat) < len(probes)) and config.dims != 2:
        raise DataError(
            f"{name}: expected volumes or images alone, given {len(flat)} of {len(probes)} files "
            f"with one slice, such as {flat[0]}: --data.dims 2 takes every slice as an image"
        )
    if dims == 3 and probes:
        return volume_options([*probes.values()], config)
    notes = ["every slice of a file is an image"] * (len(flat) < len(probes))
    options = _image_options(name, probes, config)
    spacing = " x ".join(f"{x:.3g}" for x in options.spacing or ())
    notes += [f"pixels of {spacing} mm (rows x columns)"] * bool(spacing)
    return options, notes


def _image_options(name: str, probes: Mapping[str, Probe], config: DataConfig) -> ReadOptions:
    """Return what images become; of their own size if all are small squares of one size."""
    facts = [probe.facts for probe in probes.values()]
    sides = {side for header in facts for side in (header.height, header.width)}
    side = sides.pop() if len(sides) == 1 and max(sides) <= DEFAULT_SIZE else DEFAULT_SIZE
    size, least = for_each_axis(config.size or (side,), 2), for_each_axis((SMALLEST,), 2)
    channels = config.channels or (3 if any(header.channels == 3 for header in facts) else 1)
    if config.fit != "longest" and config.spacing is None:
        return ReadOptions(size, config.fit, channels)
    around = ReadOptions(size, "pad", channels)
    if config.spacing is not None:
        if config.fit != "pad":
            raise DataError(f"--spacing pads: omit --data.fit {config.fit}")
        if without := [file for file, probe in probes.items() if not probe.pixel]:
            raise DataError(
                f"{name}: --spacing expected the distance of pixels in mm in all files, as DICOM "
                f"and NIfTI have it, given none in {len(without)} of {len(probes)}, such as "
                f"{without[0]}: omit --spacing, or move them away"
            )
        around = around._replace(spacing=for_each_axis(config.spacing, 2, "spacing"))
        least = for_each_axis(config.size or (SMALLEST,), 2)
    shapes = [inner_sides(x.facts[2:], around, x.pixel) for x in probes.values()]
    height, width = np.max([*shapes, least], axis=0).tolist()
    too_small = max(map(max, shapes), default=SMALLEST) < SMALLEST
    if config.spacing is not None and (too_small or height * width > MAX_FRAME_PIXELS):
        largest, file = max(zip(shapes, probes, strict=True))
        expected = f"expected images of {SMALLEST} to about 8,000 pixels"
        raise DataError(f"{name}: {expected}, given up to {largest}, of {file}: --spacing is in mm")
    return around._replace(sides=(height, width))


def _truth(frames: Mapping[Item, int], listing: Listing) -> dict[str, NDArray[Any]]:
    """Return labels, splits, groups and ids of the images, by the name of their file."""
    classes = listing.class_names

    def label(item: Item) -> Any:
        labels = item.labels
        if listing.multi_label:
            return [UNKNOWN_LABEL if labels is None else int(x in labels) for x in classes]
        return classes.index(labels[0]) if labels else UNKNOWN_LABEL

    rows = [(item, f"#{k + 1}" * (n > 1)) for item, n in frames.items() for k in range(n)]
    # The frames of one file belong together whether or not its patient is known.
    groups = [item.group or (f"file {item.name}" if frame else "") for item, frame in rows]
    numbers = {name: number for number, name in enumerate(sorted({*groups} - {""}))}
    columns = {
        "all_labels": [label(item) for item, _ in rows],
        "given": [SPLITS.index(item.split) if item.split else NO_SPLIT for item, _ in rows],
    }
    if numbers:
        columns["all_groups"] = [numbers.get(group, -1) for group in groups]
    if any(item.masks for item in frames):
        columns["all_has_mask"] = [bool(item.masks) for item, _ in rows]
    columns["all_ids"] = [item.name + frame for item, frame in rows]
    return {name: np.array(column) for name, column in columns.items()}


def _check(faults: Sequence[Fault], listing: Listing, config: DataConfig) -> None:
    """Raise a DataError that names what can't be read, unless that may be skipped.

    Only what is wrong with a file itself may be: the store is kept until a file changes, and what
    was left out because the machine was busy, or had a library missing, would stay out.
    """
    remedy = "repair or remove them, or leave them out with --data.skip-broken"
    if config.skip_broken:
        remedy = "they may be intact, so they are not skipped: fix the cause, or remove them"
        faults = [x for x in faults if isinstance(x[1], Transient) or "pip install" in x[1]]
    if faults:
        raise DataError(f"{listing.name}: {_summary(faults, len(listing.items))}; {remedy}")


def _summary(faults: Sequence[Fault], total: int) -> str:
    """Return in one line which files can't be read, and why."""
    named = [reason if name in reason else f"{name}: {reason}" for name, reason in faults]
    different = {each.partition(": ")[2]: each for each in reversed(named)}
    shown = [*different.values()][: -_SHOWN - 1 : -1]
    more = [f"and {len(faults) - len(shown)} more"] * (len(faults) > len(shown))
    return f"{len(faults)} of {total} files that can't be used: {'; '.join([*shown, *more])}"
