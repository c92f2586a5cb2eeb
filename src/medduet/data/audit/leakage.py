"""Data leakage: duplicates and groups, such as patients, in several splits; label conflicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medduet.data.audit.findings import Finding, of_images, per_split, plural, split_numbers
from medduet.data.duplicates import Duplicates, cached_duplicates, find_duplicates
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.types import UNKNOWN_LABEL

MAX_SEARCHED = 20_000
"""Images up to which training searches for duplicates by itself; it takes seconds."""
_SIMILAR_MASKS = 0.5  # intersection over union, below which masks of near-duplicates differ
_BLOCK = 256


def first_copies(duplicates: Duplicates, count: int) -> NDArray[np.int64]:
    """Return the first image with the same pixels, for each of `count` images."""
    first, exact = np.arange(count), duplicates.pairs[duplicates.exact]
    first[exact[:, 1]] = exact[:, 0]
    return first


def repeated(groups: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the images with another of their group before them in the same split.

    Example:
        >>> repeated(np.array([0, 1, 0, 0]), np.array([0, 0, 0, 1])).tolist()
        [2]
    """
    return np.flatnonzero(pd.DataFrame({"group": groups, "split": splits}).duplicated())


def conflicting(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the images of all groups whose labels differ; -1 is unknown and differs from none.

    Example:
        >>> conflicting(np.array([0, 0, 1, 1, 1]), np.array([2, 2, 0, 1, -1])).tolist()
        [2, 3, 4]
    """
    columns = pd.DataFrame(labels.reshape(len(labels), -1))
    distinct = columns.where(columns != UNKNOWN_LABEL).groupby(groups).nunique()
    return np.flatnonzero((distinct > 1).any(axis=1).loc[groups])


def presence(groups: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether the group of each image is in train, val and test, ``(N, 3)``; -1 is none."""
    grouped = groups >= 0
    _, member = np.unique(groups[grouped], return_inverse=True)
    present = np.zeros((member.max(initial=-1) + 1, len(SPLITS)), dtype=bool)
    present[member, splits[grouped]] = True
    where = np.zeros((len(groups), len(SPLITS)), dtype=bool)
    where[grouped] = present[member]
    return where


def near_presence(duplicates: Duplicates, splits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether a near-duplicate of each image is in train, val and test, ``(N, 3)``.

    Example:
        >>> pairs = np.array([[0, 1], [1, 2]])
        >>> duplicates = Duplicates(pairs, np.ones(2, np.float32), np.array([False, True]))
        >>> near_presence(duplicates, np.array([0, 1, 2])).tolist()
        [[False, True, True], [True, False, False], [True, False, False]]
    """
    first = first_copies(duplicates, len(splits))
    copies, near = presence(first, splits), np.zeros((len(splits), len(SPLITS)), dtype=bool)
    # Pairs name the first copy of an image only, and hold for all its copies.
    one, two = duplicates.pairs[~duplicates.exact].T
    np.logical_or.at(near, one, copies[two])
    np.logical_or.at(near, two, copies[one])
    return near[first]


def leak_findings(images: ImageSet, duplicates: Duplicates) -> list[Finding]:
    """Return duplicates and groups in several splits, and duplicates within one."""
    pool, splits = images.pool(), split_numbers(images)
    first, groups = first_copies(duplicates, len(pool)), duplicates.groups(len(pool))
    findings = []
    for title, where in (
        ("Exact duplicates", presence(first, splits)),
        ("Near-duplicates", near_presence(duplicates, splits)),
    ):
        across = (where & (splits[:, None] != np.arange(len(SPLITS)))).any(axis=1)
        leaked = np.flatnonzero(where[:, 0] & (splits > 0))
        text = f"; also in train: {per_split(leaked, splits)}" if len(leaked) else ""
        findings += of_images(f"{title} across splits", "leak", across, splits, text)
    if pool.groups is not None:
        across = presence(pool.groups, splits).sum(axis=1) > 1
        text = f" of {plural(len(np.unique(pool.groups[across])), 'group')}, such as patients"
        findings += of_images("Groups across splits", "leak", across, splits, text)
    near = duplicates.pairs[~duplicates.exact]
    within = np.unique(near[splits[near[:, 0]] == splits[near[:, 1]]])
    distinct = [f"{len(np.unique(groups[splits == k])):,}" for k in range(len(SPLITS))]
    text = f"; {' / '.join(distinct)} distinct pictures are in {' / '.join(SPLITS)}, so confidence "
    text += "intervals over images are too narrow"
    return [
        *findings,
        *of_images("Exact duplicates within a split", "note", repeated(first, splits), splits),
        *of_images("Near-duplicates within a split", "note", within, splits, text),
    ]


def conflict_findings(
    images: ImageSet, duplicates: Duplicates, masks_differ: NDArray[np.bool_]
) -> list[Finding]:
    """Return duplicates whose labels or masks contradict each other."""
    pool, splits = images.pool(), split_numbers(images)
    groups = duplicates.groups(len(pool))
    labels, masks = conflicting(groups, pool.labels), np.unique(duplicates.pairs[masks_differ])
    count = plural(len(np.unique(groups[labels])), "group")
    text = f" in {count} of duplicates with different labels"
    findings = of_images("Label conflicts", "warning", labels, splits, text)
    text = f" in {plural(int(masks_differ.sum()), 'pair')} of duplicates with different masks"
    return findings + of_images("Mask conflicts", "note", masks, splits, text)


def pair_table(
    images: ImageSet,
    table: pd.DataFrame,
    duplicates: Duplicates,
    masks_differ: NDArray[np.bool_],
) -> pd.DataFrame:
    """Return the pairs of duplicates as in `Audit.pairs`; `table` is `Audit.images`."""
    pool, (a, b) = images.pool(), duplicates.pairs.T
    labels = pool.labels.reshape(len(pool), -1)
    labelled = (labels[a] != UNKNOWN_LABEL) & (labels[b] != UNKNOWN_LABEL)
    index = pd.MultiIndex.from_arrays([a, b], names=["a", "b"])
    first, second = (table.iloc[rows].set_axis(index) for rows in (a, b))
    pairs = pd.concat([first.add_suffix("_a"), second.add_suffix("_b")], axis=1).assign(
        similarity=duplicates.similarity,
        exact=duplicates.exact,
        across_splits=first["split"] != second["split"],
        labels_differ=((labels[a] != labels[b]) & labelled).any(axis=1),
        masks_differ=masks_differ,
    )
    worst = ["across_splits", "labels_differ", "masks_differ", "exact", "similarity"]
    return pairs.sort_values(worst, ascending=False)


def mask_conflicts(pool: Split, duplicates: Duplicates) -> NDArray[np.bool_]:
    """Return which pairs of duplicates have masks that differ, ``(P,)``."""
    differ = np.zeros(len(duplicates.pairs), dtype=bool)
    if pool.masks is None:
        return differ
    both = np.flatnonzero(pool.known_masks[duplicates.pairs].all(axis=1))
    for start in range(0, len(both), _BLOCK):
        block = both[start : start + _BLOCK]
        one, two = (np.asarray(pool.masks[rows]) for rows in duplicates.pairs[block].T)
        intersection = ((one == two) & (one > 0)).sum(axis=(1, 2))
        union = ((one > 0) | (two > 0)).sum(axis=(1, 2))
        least = np.where(duplicates.exact[block], 1.0, _SIMILAR_MASKS)
        differ[block] = intersection < least * union
    return differ


def leak_warning(images: ImageSet, cache: Path | None = None) -> str | None:
    """Return a line on images of val and test that leak from train; ``None`` if there are none.

    Sets above 20,000 images are not searched for duplicates, but the search of an audit counts.

    Example:
        >>> import tempfile, medduet
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> leak_warning(images, Path(tempfile.mkdtemp())) is None
        True
    """
    splits = [images.split(name) for name in SPLITS]
    duplicates = cached_duplicates(images, cache)
    if duplicates is None and sum(map(len, splits)) <= MAX_SEARCHED:
        duplicates = find_duplicates(images, cache)
    groups = [split.groups for split in splits if split.groups is not None]
    if duplicates is None and len(groups) < len(splits):
        return None  # before anything is made that is as long as the set
    numbers, causes = split_numbers(images), {}
    if duplicates is not None:
        copies = presence(first_copies(duplicates, len(numbers)), numbers)
        causes["duplicates"] = (copies | near_presence(duplicates, numbers))[:, 0]
    if len(groups) == len(splits):
        causes["shared groups"] = presence(np.concatenate(groups), numbers)[:, 0]
    leaks = {cause: np.flatnonzero(where & (numbers > 0)) for cause, where in causes.items()}
    texts = [f"{cause}: {per_split(rows, numbers)}" for cause, rows in leaks.items() if len(rows)]
    if not texts:
        return None
    source = images.name if "medmnist" in images.info else images.info.get("source", images.name)
    return (
        f"warning: data leakage from train ({'; '.join(texts)}) inflates the scores: "
        f"medduet audit {source}"
    )
