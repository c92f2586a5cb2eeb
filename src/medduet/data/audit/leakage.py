"""Data leakage, found and mended: pictures and groups, such as patients, in several splits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medduet.data.audit.findings import Findings, per_split, plural, split_numbers
from medduet.data.cache import Progress
from medduet.data.duplicates import Duplicates, duplicates_file, find_duplicates
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.data.splits import apply_split, merge_groups
from medduet.types import IGNORED_MASK, UNKNOWN_LABEL

MAX_SEARCHED = 20_000  # images up to which training searches for duplicates, which takes seconds
_SIMILAR_MASKS = 0.5  # intersection over union, below which masks of near-duplicates differ
_BLOCK = 256
_TEST, _DROPPED = len(SPLITS) - 1, -1


def find_leaks(findings: Findings, duplicates: Duplicates | None, pool: Split) -> None:
    """Add the duplicates, if they were searched, and the groups that are in several splits."""
    splits, copied = findings.splits, dict[str, NDArray[np.bool_]]()
    own_split = splits[:, None] == np.arange(len(SPLITS))

    def in_splits(groups: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the group of each image is in train, val and test, ``(N, 3)``."""
        present = pd.DataFrame(own_split).groupby(groups).transform("any")
        return np.asarray(present, dtype=bool) & (groups >= 0)[:, None]

    if duplicates is not None:
        first = _first_copies(duplicates, len(splits))
        copies, near = in_splits(first), np.zeros_like(own_split)
        # Pairs name the first copy of an image only, and hold for all its copies.
        one, two = duplicates.pairs[~duplicates.exact].T
        np.logical_or.at(near, one, copies[two])
        np.logical_or.at(near, two, copies[one])
        copied = {"Exact duplicates": copies, "Near-duplicates": near[first]}
    if pool.groups is not None:
        copied["Groups"] = in_splits(pool.groups)
    for title, present in copied.items():
        leaked = np.flatnonzero(present[:, 0] & (splits > 0))
        text = f"; also in train: {per_split(leaked, splits)}" if len(leaked) else ""
        across = (present & ~own_split).any(axis=1)
        findings.of_images(f"{title} across splits", "leak", across, text)


def find_repetitions(findings: Findings, duplicates: Duplicates, pool: Split) -> None:
    """Add duplicates within a split, and those of any splits whose labels differ."""
    splits = findings.splits
    first, groups = _first_copies(duplicates, len(pool)), duplicates.groups(len(pool))
    conflicts = _conflicting(groups, pool.labels)
    count = plural(len(np.unique(groups[conflicts])), "group")
    text = f" in {count} of duplicates with different labels"
    findings.of_images("Label conflicts", "warning", conflicts, text)
    repeated = pd.DataFrame({"first": first, "split": splits}).duplicated()
    findings.of_images("Exact duplicates within a split", "note", np.asarray(repeated))
    near, within = duplicates.pairs[~duplicates.exact], np.zeros(len(pool), dtype=bool)
    within[near[splits[near[:, 0]] == splits[near[:, 1]]]] = True
    distinct = [f"{len(np.unique(groups[splits == k])):,}" for k in range(len(SPLITS))]
    text = f"; {' / '.join(distinct)} distinct pictures are in {' / '.join(SPLITS)}, so confidence "
    text += "intervals over images are too narrow"
    findings.of_images("Near-duplicates within a split", "note", within, text)


def leak_warning(images: ImageSet, cache: Path | None = None) -> str | None:
    """Return a line on the leaks of a set, or ``None``; large sets aren't searched."""
    findings, duplicates = Findings(images), None
    if len(findings.splits) <= MAX_SEARCHED or duplicates_file(images, cache).is_file():
        duplicates = find_duplicates(images, cache)
    find_leaks(findings, duplicates, images.pool())
    if not findings:
        return None
    source = images.name if "medmnist" in images.info else images.info.get("source", images.name)
    leaks = " ".join(leak.message for leak in findings)
    return f"warning: data leakage inflates the scores: medduet audit {source}. {leaks}"


def _first_copies(duplicates: Duplicates, count: int) -> NDArray[np.int64]:
    """Return the first image with the same pixels, for each of `count` images."""
    first, exact = np.arange(count), duplicates.pairs[duplicates.exact]
    first[exact[:, 1]] = exact[:, 0]
    return first


def _conflicting(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the images of all groups whose labels differ; -1 is unknown and differs from none."""
    columns = pd.DataFrame(labels.reshape(len(labels), -1))
    numbers = columns.where(columns != UNKNOWN_LABEL).groupby(groups).transform("nunique")
    return np.asarray((numbers > 1).any(axis=1))


def pair_table(pool: Split, images: pd.DataFrame, duplicates: Duplicates) -> pd.DataFrame:
    """Return the pairs of duplicates as in `Audit.pairs`; `images` is `Audit.images`."""
    a, b = duplicates.pairs.T
    labels = pool.labels.reshape(len(pool), -1)
    labelled = (labels[a] != UNKNOWN_LABEL) & (labels[b] != UNKNOWN_LABEL)
    masks_differ = np.zeros(len(a), dtype=bool)
    if pool.masks is not None:
        both = np.flatnonzero(pool.known_masks[duplicates.pairs].all(axis=1))
        for start in range(0, len(both), _BLOCK):
            block = both[start : start + _BLOCK]
            one, two = (pool.masks[rows] for rows in duplicates.pairs[block].T)
            ignored = (one == IGNORED_MASK) | (two == IGNORED_MASK)
            one[ignored] = two[ignored] = 0
            axes = tuple(range(1, one.ndim))
            intersection = ((one == two) & (one > 0)).sum(axis=axes)
            union = ((one > 0) | (two > 0)).sum(axis=axes)
            least = np.where(duplicates.exact[block], 1.0, _SIMILAR_MASKS)
            masks_differ[block] = intersection < least * union
    index = pd.MultiIndex.from_arrays([a, b], names=["a", "b"])
    first, second = (images.iloc[rows].set_axis(index) for rows in (a, b))
    pairs = pd.concat([first.add_suffix("_a"), second.add_suffix("_b")], axis=1).assign(
        similarity=duplicates.similarity,
        exact=duplicates.exact,
        across_splits=first["split"] != second["split"],
        labels_differ=((labels[a] != labels[b]) & labelled).any(axis=1),
        masks_differ=masks_differ,
    )
    worst = ["across_splits", "labels_differ", "masks_differ", "exact", "similarity"]
    return pairs.sort_values(worst, ascending=False)


def clean(
    images: ImageSet, *, cache: Path | None = None, progress: Progress = None
) -> tuple[ImageSet, str]:
    """Return the set in a split without leaks, and a line of what was changed.

    What leaks is left out of train and val, so that test stays as published. Of copies in one of
    them the first stays, or none if their labels differ. Similarity by chance is estimated from
    the whole set, so the cleaned one is searched again, until an audit finds no leak in it.

    Args:
        images: the set.
        cache: folder of cached searches for duplicates.
        progress: shows the progress of the searches.

    Raises:
        DataError: a split would be empty.
    """
    pool, before = images.pool(), split_numbers(images)
    count, splits, current = len(pool), before, images
    while True:
        duplicates = find_duplicates(current, cache, progress)
        # From rows of the cleaned pool to those of the original one.
        rows = np.concatenate([np.flatnonzero(splits == number) for number in range(len(SPLITS))])
        duplicates = replace(duplicates, pairs=rows[duplicates.pairs])
        groups = merge_groups(np.arange(count), duplicates.groups(count), pool.groups)
        last = np.full(count, _DROPPED)
        np.maximum.at(last, groups, splits)
        after = np.where(splits < last[groups], _DROPPED, splits)
        first, rows = _first_copies(duplicates, count), np.flatnonzero(after != _DROPPED)
        rows = rows[after[rows] != _TEST]
        # Labels of all copies in a split, before the first one alone stays.
        wrong = _conflicting(first[rows] * len(SPLITS) + splits[rows], pool.labels[rows])
        repeated = pd.DataFrame({"first": first[rows], "split": after[rows]}).duplicated()
        after[rows[wrong | repeated]] = _DROPPED
        if (after == splits).all():
            break
        splits, current = after, apply_split(images, after, {"cleaned": "drop"})
    dropped, kept = np.flatnonzero(splits == _DROPPED), np.flatnonzero(splits != _DROPPED)
    if not len(dropped):
        return current, "nothing to clean"
    lost = f"dropped {len(dropped):,} ({per_split(dropped, before)})"
    return current, f"{lost}; test unchanged; now {per_split(kept, splits)}"
