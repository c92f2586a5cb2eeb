"""Splits: made so that classes are alike and groups stay whole, read from a table, and written.

A split of a set is one number for each image of its pool (`medduet.data.ImageSet.pool`): 0 train,
1 val, 2 test, -1 left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medduet.data.imageset import SPLITS, ImageSet
from medduet.errors import DataError, MissingFileError
from medduet.utils.files import write_text
from medduet.utils.parsing import csv_rows

LEFT_OUT = "drop"
_NAMES = (*SPLITS, LEFT_OUT)


def share_out(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Deal images into parts of given sizes; each part gets its share of every class.

    Groups are dealt one by one, large ones first and equal ones in random order, each to the part
    whose counts come nearest to what they should be (by chi-square over classes and all images).
    Single images are so stratified to about one image of each class; with groups, classes agree
    as well as the groups allow.

    Args:
        labels: ``(N,)`` class index or ``(N, K)`` of 0 and 1; -1 is unknown, and is stratified
            like a class.
        groups: ``(N,)``; images with the same number stay together.
        shares: of the images for each part; they are scaled to a sum of 1.
        seed: of the order.

    Returns:
        ``(N,)`` int64, the part of each image.

    Raises:
        DataError: there are fewer groups than parts.

    Example:
        >>> labels = np.repeat([0, 1], [80, 20])
        >>> parts = share_out(labels, np.arange(100), (0.7, 0.1, 0.2), seed=0)
        >>> np.bincount(parts).tolist(), np.bincount(parts[labels == 1]).tolist()
        ([70, 10, 20], [14, 2, 4])
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    share = np.asarray(shares, dtype=np.float64) / sum(shares)
    if len(sizes) < np.count_nonzero(share):
        raise DataError(
            f"expected at least one group of images for each of {np.count_nonzero(share)} parts, "
            f"given {len(sizes)} group(s); near-duplicates and patients stay together unless "
            "--data.group-by none is given"
        )
    known = _columns(labels)
    counts = np.zeros((len(sizes), known.shape[1]))
    np.add.at(counts, member, known)
    wanted = np.outer(share, counts.sum(axis=0))
    filled = np.zeros_like(wanted)
    part = np.zeros(len(sizes), dtype=np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    # Among equals, those of rare classes first: they have the fewest places to go.
    rarity = counts @ (1 / np.maximum(counts.sum(axis=0), 1)) / sizes
    order = shuffled[np.lexsort((-rarity[shuffled].round(12), -sizes[shuffled]))]
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(wanted > 0, 1 / wanted, 0)
    weight[share == 0] = np.inf
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        cost = counts[group] * (2 * (filled - wanted) + counts[group])
        with np.errstate(invalid="ignore"):
            costs = np.where(counts[group] > 0, cost * weight, 0).sum(axis=1)
        empty = (filled[:, -1] == 0) & (share > 0)
        if empty.sum() >= left:  # the last groups go where there is nothing yet
            costs[~empty] = np.inf
        part[group] = np.argmin(costs)
        filled[part[group]] += counts[group]
    return part[member]


def _columns(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what is to be alike, one column each: every class, unknown, and the number itself."""
    if labels.ndim == 2:
        classes = labels == 1
    else:
        classes = labels[:, None] == np.unique(labels)
    return np.column_stack([classes, np.ones(len(labels))]).astype(np.float64)


def folded(parts: NDArray[np.int64], folds: int, fold: int) -> NDArray[np.int64]:
    """Return the split of one fold: that part is test, the next one val, the others train.

    Example:
        >>> folded(np.array([0, 1, 2, 3, 0]), folds=4, fold=3).tolist()
        [1, 0, 0, 2, 1]
    """
    return np.where(parts == fold, 2, np.where(parts == (fold + 1) % folds, 1, 0))


def united(*partitions: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return groups ``(N,)`` in which images are together that any partition puts together.

    A negative number in a partition is a group unknown: such an image stands alone in it.

    Example:
        >>> united(np.array([0, 0, -1, -1, 1]), np.array([0, 1, 1, 2, 3])).tolist()
        [0, 0, 0, 1, 2]
    """
    given = [partition for partition in partitions if partition is not None]
    count = len(given[0])
    first, second = [], []
    for partition in given:
        order = np.argsort(partition, kind="stable")
        same = (partition[order][1:] == partition[order][:-1]) & (partition[order][1:] >= 0)
        first.append(order[:-1][same])
        second.append(order[1:][same])
    pairs = np.concatenate(first), np.concatenate(second)
    graph = coo_array((np.ones(len(pairs[0]), dtype=bool), pairs), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def divided(images: ImageSet, parts: NDArray[np.int64], note: Mapping[str, object]) -> ImageSet:
    """Return the same images in another split; they are read when they are used.

    Args:
        images: the set.
        parts: ``(N,)`` for its pool: 0 train, 1 val, 2 test, -1 left out.
        note: how the split came about, for the record.

    Raises:
        DataError: a split would be empty.
    """
    pool = images.pool()
    splits: dict[str, Any] = {}
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(parts == number)
        if not len(rows):
            raise DataError(
                f"the split of {images.name} leaves no image for {name}: give more images, or "
                "other --data.fractions"
            )
        splits[name] = pool.take(rows)
    digest = hashlib.sha256(f"{images.fingerprint} ".encode() + parts.astype(np.int8).tobytes())
    info = {**images.info, "split": dict(note), "undivided": images.fingerprint}
    return replace(images, **splits, fingerprint=digest.hexdigest(), info=info)


def write_split(path: Path, images: ImageSet) -> None:
    """Write which split each image of a set is in, as a CSV that ``--data.split`` reads.

    Its columns are ``image``, the id of the image, and ``split``; an image that is left out is not
    in it.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    pool = images.pool()
    assert pool.ids is not None
    writer.writerow(["image", "split"])
    names = [name for name in SPLITS for _ in range(len(images.split(name)))]
    writer.writerows(zip(pool.ids.tolist(), names, strict=True))
    write_text(path, table.getvalue())


def read_split(path: Path, images: ImageSet) -> NDArray[np.int64]:
    """Read which split each image of the pool of `images` is in; those not listed are left out.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is no such table, or lists images that the set doesn't have.
    """
    if not path.is_file():
        raise MissingFileError(f"expected a split at {path}, but there is no such file")
    header, *lines = [row for row in csv_rows(path) if row] or [[]]
    if not {"image", "split"} <= set(header):
        raise DataError(f"{path}: expected a CSV with the columns image and split, given {header}")
    image_at, split_at = header.index("image"), header.index("split")
    rows = [
        (row[image_at], row[split_at]) if len(row) > max(image_at, split_at) else ("", "")
        for row in lines
    ]
    ids = images.pool().ids
    assert ids is not None
    place = {name: number for number, name in enumerate(ids.tolist())}
    if len(place) < len(ids):
        raise DataError(f"{images.name} has several images of one id; {path} can't tell them apart")
    parts = np.full(len(ids), -1, dtype=np.int64)
    seen = set()
    for image, split in rows:
        if split not in _NAMES:
            raise DataError(f"{path}: expected split {', '.join(_NAMES)}, given '{split}'")
        if image not in place or image in seen:
            wrong = "listed twice" if image in seen else f"not in {images.name}"
            raise DataError(f"{path}: expected every image of the set once, but {image} is {wrong}")
        seen.add(image)
        parts[place[image]] = _NAMES.index(split) if split != LEFT_OUT else -1
    return parts
