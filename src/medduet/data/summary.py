"""What was understood of a data set: the first lines of a training and of an audit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.imageset import SPLITS, ImageSet, Split, iterate_chunks
from medduet.errors import one_line
from medduet.types import IGNORED_MASK, KINDS, UNKNOWN_LABEL

_MOST_CLASSES = 40
_MOST_MASKS = 10_000  # of each split whose pixels are counted; of shards, only the first one's


def data_summary(images: ImageSet) -> list[str]:
    """Return lines that tell images, classes, masks, files, groups and what was left out.

    Example:
        >>> from medduet import open_images
        >>> lines = data_summary(open_images("phantom", size=16, count=20))
        >>> lines[0], lines[2].split()
        ('phantom: 20 images of 16 x 16, grey', ['images', '14', '2', '4'])
    """
    info, splits = images.info, [images.split(name) for name in SPLITS]
    noun, size = KINDS[images.dims], " x ".join(map(str, images.size))
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in info.get("kinds", {}).items())
    title = f"{images.name}: {sum(map(len, splits)):,} {noun} of {size}, "
    colours = {1: "grey", 3: "RGB"} if images.dims == 2 else {1: "grey"}
    title += colours.get(images.in_channels, f"{images.in_channels} channels")
    title += f" (files: {kinds})" * bool(kinds)
    rows: list[list[Any]] = [["", *SPLITS], [noun, *map(len, splits)]]
    names = images.class_names[:_MOST_CLASSES]
    for k, name in enumerate(names):
        members = (x.labels == k if x.labels.ndim == 1 else x.labels[:, k] == 1 for x in splits)
        rows.append([f"  {one_line(name, 60)}", *(int(each.sum()) for each in members)])
    if more := len(images.class_names) - len(names):
        rows.append([f"  and {more} more classes"])
    unlabelled = [int((x.labels.reshape(len(x), -1) == UNKNOWN_LABEL).all(1).sum()) for x in splits]
    if images.class_names and any(unlabelled):
        rows.append(["  class unknown", *unlabelled])
    if images.mask_names:
        rows += _mask_rows(images.mask_names, splits)
    first, table = max(len(row[0]) for row in rows), []
    for name, *counts in rows:
        numbers = "".join(f"{count:>9}" for count in counts[:3])
        table.append("  ".join([f"{name:<{first}}{numbers}", *counts[3:]]).rstrip())
    return [one_line(title, 500), *table, *(one_line(fact, 500) for fact in _facts(images))]


def _mask_rows(names: Sequence[str], splits: Sequence[Split]) -> list[list[Any]]:
    """Return in how many images each mask class is, and of how many pixels it has which share."""
    counts = [_mask_counts(split) for split in splits]
    total = sum(each.sum() for each in counts)
    numbers = [*range(1, len(names)), IGNORED_MASK]
    rows: list[list[Any]] = [["masks", *(int(split.known_masks.sum()) for split in splits)]]
    for number, name in zip(numbers, [*names[1:], "ignored"], strict=True):
        pixels = sum(int(each[:, number].sum()) for each in counts)
        if pixels or name != "ignored":
            shown = [int((each[:, number] > 0).sum()) for each in counts]
            share = f"{pixels / max(total, 1):.2%} of pixels"
            rows.append([f"  {one_line(name, 60)}", *shown, share])
    rows.append(["  none of these", *(int((~each[:, 1:].any(axis=1)).sum()) for each in counts)])
    if any(unknown := [int((~split.known_masks).sum()) for split in splits]):
        rows.append(["  mask unknown", *unknown])
    if any(len(each) < count for each, count in zip(counts, rows[0][1:], strict=True)):
        rows.append(["  (looked at)", *map(len, counts)])
    return rows


def _mask_counts(split: Split) -> NDArray[np.int64]:
    """Return how many pixels of known masks have each value, ``(N, 256)``, of a sample if many."""
    rows = np.flatnonzero(split.known_masks)
    if split.shard_sizes is not None:  # a start must not fetch all of them from a server
        rows = rows[rows < split.shard_sizes[0]]
    if split.masks is None or not len(rows):
        return np.zeros((0, 256), np.int64)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MOST_MASKS)).astype(np.int64)]
    masks = (mask for _, chunk in iterate_chunks(split.take(rows).masks) for mask in chunk)
    return np.stack([np.bincount(mask.ravel(), minlength=256) for mask in masks])


def _facts(images: ImageSet) -> list[str]:
    info = images.info
    facts = [f"split: {_split(info.get('split'))}"]
    if (groups := images.pool().groups) is not None:
        without = int((groups < 0).sum())
        count = len(np.unique(groups[groups >= 0]))
        facts.append(f"groups: {count:,}" + f"; {without:,} images are in none" * bool(without))
    if values := info.get("mask_values"):
        facts.append("mask values: " + ", ".join(f"{x} {name}" for x, name in values.items()))
    if skipped := info.get("skipped"):  # opening the set has told which, and why
        facts.append(f"left out: {len(skipped)} of {info['files']} files, see above")
    return facts + [f"note: {note}" for note in info.get("notes", ())]


def _split(note: Any) -> str:
    """Return where the split comes from, as `medduet.data.splits` notes it."""
    if not note or "given" in note:
        made = (note or {}).get("given", {}).get("val")
        return "as given" + "; val is made from train" * bool(made)
    if "file" in note:
        return f"from {note['file']}"
    made = note["made"]
    how = f"fold {made['fold']} of {made['folds']}" if "folds" in made else "made"
    how += " of train and val" * made.get("keep_test", False)
    kinds = {"groups": ("auto", "given"), "near-duplicates": ("auto", "duplicates")}
    kept = [kind for kind, by in kinds.items() if made["group_by"] in by] or ["no images"]
    return f"{how}, seed {made['seed']}; {' and '.join(kept)} stay together"
