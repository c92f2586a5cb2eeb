"""Splits: made so that classes are alike and groups stay whole, read from a table, and written.

A split of a set is one number for each image of its pool (`medduet.data.ImageSet.pool`): 0 train,
1 val, 2 test, -1 left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medduet.data.imageset import SPLITS, ImageSet
from medduet.errors import DataError, MissingFileError
from medduet.utils.files import write_text
from medduet.utils.parsing import csv_rows

LEFT_OUT = "drop"


def stratified_group_split(
    labels: NDArray[np.int64], groups: NDArray[np.int64], fractions: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Split images into parts of given sizes; each part gets its share of every class.

    Groups are assigned one by one, large ones first and equal ones in random order, each to the
    part whose counts come nearest to what they should be (by chi-square over classes and all
    images). Single images are so stratified to about one image of each class; with groups, classes
    agree as well as the groups allow.

    Args:
        labels: ``(N,)`` class index or ``(N, K)`` of 0 and 1; -1 is unknown, and is stratified
            like a class.
        groups: ``(N,)``; images with the same number stay together.
        fractions: of the images for each part; they are scaled to a sum of 1.
        seed: of the order.

    Returns:
        ``(N,)`` int64, the part of each image.

    Raises:
        DataError: there are fewer groups than parts.

    Example:
        >>> labels = np.repeat([0, 1], [80, 20])
        >>> parts = stratified_group_split(labels, np.arange(100), (0.7, 0.1, 0.2), seed=0)
        >>> np.bincount(parts).tolist(), np.bincount(parts[labels == 1]).tolist()
        ([70, 10, 20], [14, 2, 4])
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    share = np.asarray(fractions, dtype=np.float64) / sum(fractions)
    if len(sizes) < np.count_nonzero(share):
        raise DataError(
            f"expected at least one group of images for each of {np.count_nonzero(share)} parts, "
            f"given {len(sizes)} group(s); near-duplicates and patients stay together unless "
            "--data.group-by none is given"
        )
    classes = labels == 1 if labels.ndim == 2 else labels[:, None] == np.unique(labels)
    columns = np.column_stack([classes, np.ones(len(labels))]).astype(np.float64)
    counts = np.zeros((len(sizes), columns.shape[1]))
    np.add.at(counts, member, columns)
    target = np.outer(share, counts.sum(axis=0))
    filled, part = np.zeros_like(target), np.zeros(len(sizes), dtype=np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    # Among equals, those of rare classes first: they have the fewest places to go.
    rarity = counts @ (1 / np.maximum(counts.sum(axis=0), 1)) / sizes
    order = shuffled[np.lexsort((-rarity[shuffled].round(12), -sizes[shuffled]))]
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(target > 0, 1 / target, 0)
    weight[share == 0] = np.inf
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        cost = counts[group] * (2 * (filled - target) + counts[group])
        with np.errstate(invalid="ignore"):
            costs = np.where(counts[group] > 0, cost * weight, 0).sum(axis=1)
        empty = (filled[:, -1] == 0) & (share > 0)
        if empty.sum() >= left:  # the last groups go where there is nothing yet
            costs[~empty] = np.inf
        part[group] = np.argmin(costs)
        filled[part[group]] += counts[group]
    return part[member]


def merge_groups(*partitions: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return groups ``(N,)`` in which images are together that any partition puts together.

    A negative number in a partition is a group unknown: such an image stands alone in it.

    Example:
        >>> merge_groups(np.array([0, 0, -1, -1, 1]), np.array([0, 1, 1, 2, 3])).tolist()
        [0, 0, 0, 1, 2]
    """
    groupings = [partition for partition in partitions if partition is not None]
    first, second = [], []
    for partition in groupings:
        order = np.argsort(partition, kind="stable")
        same = (partition[order][1:] == partition[order][:-1]) & (partition[order][1:] >= 0)
        first.append(order[:-1][same])
        second.append(order[1:][same])
    pairs, count = (np.concatenate(first), np.concatenate(second)), len(groupings[0])
    graph = coo_array((np.ones(len(pairs[0]), dtype=bool), pairs), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def apply_split(images: ImageSet, parts: NDArray[np.int64], note: Mapping[str, object]) -> ImageSet:
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
    pool = images.pool()
    assert pool.ids is not None
    names = np.repeat(SPLITS, [len(images.split(name)) for name in SPLITS])
    table = pd.DataFrame({"image": pool.ids, "split": names})
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


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
    ids = images.pool().ids
    assert ids is not None
    place = {name: number for number, name in enumerate(ids.tolist())}
    if len(place) < len(ids):
        raise DataError(f"{images.name} has several images of one id; {path} can't tell them apart")
    parts, seen = np.full(len(ids), -1, dtype=np.int64), set()
    for line in lines:
        row = dict(zip(header, line, strict=False))
        image, split = row.get("image", ""), row.get("split", "")
        if split not in (*SPLITS, LEFT_OUT):
            expected = ", ".join((*SPLITS, LEFT_OUT))
            raise DataError(f"{path}: expected split {expected}, given '{split}'")
        if image not in place or image in seen:
            wrong = "listed twice" if image in seen else f"not in {images.name}"
            raise DataError(f"{path}: expected every image of the set once, but {image} is {wrong}")
        seen.add(image)
        parts[place[image]] = SPLITS.index(split) if split != LEFT_OUT else -1
    return parts
