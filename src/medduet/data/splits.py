"""Splits: given, read from a table, or made so that classes are alike and groups stay whole.

A split of a set is one number for each image of its pool (`medduet.data.ImageSet.pool`): 0 train,
1 val, 2 test, -1 left out.
"""

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

from medduet.config import DataConfig
from medduet.data.cache import Progress
from medduet.data.imageset import SPLITS, ImageSet
from medduet.errors import ConfigError, DataError
from medduet.utils.files import write_text
from medduet.utils.parsing import csv_text, read_csv

NO_SPLIT = 3
"""The given split of an image that has none."""
_NUMBERS = {"train": 0, "val": 1, "test": 2, "drop": -1}


def stratified_group_split(
    labels: NDArray[np.int64], groups: NDArray[np.int64], fractions: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Split images into parts of given sizes; each part gets its share of every class.

    Groups are assigned one by one, large ones first and equal ones in random order, each to the
    part whose counts come nearest to what they should be (by chi-square over classes and all
    images). Single images are so stratified to about one image of each class.

    Args:
        labels: ``(N,)`` class index or ``(N, K)`` of 0 and 1; -1 is stratified like a class.
        groups: ``(N,)``; images with the same number stay together.
        fractions: of the images for each part, above 0; they are scaled to a sum of 1.
        seed: of the order.

    Example:
        >>> labels = np.repeat([0, 1], [80, 20])
        >>> parts = stratified_group_split(labels, np.arange(100), (0.7, 0.1, 0.2), seed=0)
        >>> np.bincount(parts).tolist(), np.bincount(parts[labels == 1]).tolist()
        ([70, 10, 20], [14, 2, 4])
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    share = np.asarray(fractions, dtype=np.float64) / sum(fractions)
    if len(sizes) < len(share):
        raise DataError(
            f"expected at least {len(share)} groups of images to split, given {len(sizes)}: "
            "near-duplicates and patients stay together unless you use --data.group-by none"
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
    weight = 1 / np.where(target > 0, target, 1)
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        cost = counts[group] * (2 * (filled - target) + counts[group])
        costs = np.where(counts[group] > 0, cost * weight, 0).sum(axis=1)
        empty = filled[:, -1] == 0
        if empty.sum() >= left:  # the last groups go where there is nothing yet
            costs[~empty] = np.inf
        part[group] = np.argmin(costs)
        filled[part[group]] += counts[group]
    return part[member]


def merge_groups(*partitions: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return groups ``(N,)`` of images that any partition puts together; negative is unknown."""
    ends = []
    for numbers in (numbers for numbers in partitions if numbers is not None):
        rows = np.arange(len(numbers))
        first = pd.Series(rows).groupby(numbers).transform("first").to_numpy()
        ends.append([rows, np.where(numbers < 0, rows, first)])
    pairs = tuple(np.concatenate(ends, axis=1))
    graph = coo_array((np.ones(len(pairs[0]), dtype=bool), pairs), shape=(len(rows), len(rows)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def apply_split(images: ImageSet, parts: NDArray[np.int64], note: Mapping[str, object]) -> ImageSet:
    """Return the images in the split `parts` ``(N,)`` of their pool, with a note for the record."""
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
    undivided = images.info.get("undivided", images.fingerprint)  # however often it was split
    info = {**images.info, "split": dict(note), "undivided": undivided}
    return replace(images, **splits, fingerprint=digest.hexdigest(), info=info)


def write_split(path: Path, images: ImageSet) -> None:
    """Write the ids and splits of a set as a CSV that ``--data.split`` reads."""
    pool = images.pool()
    names = np.repeat(SPLITS, [len(images.split(name)) for name in SPLITS])
    table = pd.DataFrame({"image": pool.ids, "split": names})
    write_text(path, csv_text(table))


def read_split(path: Path, images: ImageSet) -> NDArray[np.int64]:
    """Read which split each image of the pool of `images` is in; those not listed are left out."""
    try:
        table = read_csv(path, usecols=["image", "split"])
    except ValueError as error:
        raise DataError(f"{path}: expected columns image and split: {error}") from error
    ids = pd.Index(images.pool().ids)
    if not ids.is_unique:
        raise DataError(f"{images.name} has several images of one id; {path} can't tell them apart")
    rows, numbers = ids.get_indexer(table["image"]), table["split"].map(_NUMBERS)
    for wrong, reason in (
        (numbers.isna(), f"is in none of {', '.join(_NUMBERS)}"),
        (rows < 0, f"is not in {images.name}"),
        (table["image"].duplicated(), "is listed twice"),
    ):
        if wrong.any():
            raise DataError(f"{path}: {table['image'][np.argmax(wrong)]} {reason}")
    parts = np.full(len(ids), -1, dtype=np.int64)
    parts[rows] = numbers.astype(np.int64)
    return parts


def arrange(
    images: ImageSet,
    split: NDArray[np.int64] | None,
    config: DataConfig,
    progress: Progress = None,
    saved: Path | None = None,
) -> ImageSet:
    """Return `images` in the splits that `config` asks for.

    `split` ``(N,)`` is what their files say, or `NO_SPLIT`; ``None`` if they are in it already.
    `saved` is the file of a split that was made by these settings before, if it is there.
    """
    if config.keep_test:  # folds of train and val, in whatever split the images are without folds
        one_split = {"folds": None, "fold": 0, "keep_test": False}
        images = arrange(images, split, config.model_copy(update=one_split), progress)
        split, config = None, config.model_copy(update={"split": "made"})
    has_split = split is None or bool((split != NO_SPLIT).any())
    if config.folds is not None and config.split not in ("auto", "made"):
        raise ConfigError(f"--data.folds make a split: leave out --data.split {config.split}")
    if config.split == "given" and not has_split:
        raise ConfigError(
            f"{images.name} has no split: name its folders train, val and test, or use "
            "--data.split made"
        )
    saved = saved if saved and saved.is_file() else None
    plan: dict[str, Any] = {"seed": config.seed, "group_by": config.group_by}
    if config.split.endswith(".csv"):
        table = Path(config.split).expanduser().absolute()
        note, saved = dict[str, Any](file=str(table)), saved or table
    elif config.folds is not None:
        note = {"made": plan | config.model_dump(include={"folds", "fold", "keep_test"})}
    elif config.split == "made" or not has_split:
        note = {"made": plan | {"fractions": list(config.fractions)}}
    elif split is None:
        return images
    elif (missing := {0, 1, 2} - set(split.tolist())) == {1}:  # as in many published sets
        note = {"given": {"val": plan | {"fractions": list(config.fractions[:2])}}}
    elif not missing:
        return apply_split(images, split, {"given": {}})
    else:
        raise DataError(
            f"{images.name} has no images for {' and '.join(SPLITS[n] for n in sorted(missing))}: "
            "expected train and test at least, or use --data.split made"
        )
    if saved is not None:
        parts = read_split(saved, images)
    else:
        parts = _make(images, split if "given" in note else None, config, progress)
    return apply_split(images, parts, note)


def _groups(images: ImageSet, config: DataConfig, progress: Progress) -> NDArray[np.int64]:
    """Return the group ``(N,)`` of each image of the pool; what has the same stays together."""
    pool = images.pool()
    partitions = [np.arange(len(pool), dtype=np.int64)]
    if config.group_by == "given" and pool.groups is None:
        raise ConfigError(
            f"{images.name} has no groups: add a column group, or omit --data.group-by"
        )
    if config.group_by in ("auto", "given") and pool.groups is not None:
        partitions.append(pool.groups)
    if config.group_by in ("auto", "duplicates"):
        from medduet.data.duplicates import find_duplicates

        partitions.append(find_duplicates(images, config.cache, progress).groups(len(pool)))
    return merge_groups(*partitions)


def _make(
    images: ImageSet, split: NDArray[np.int64] | None, config: DataConfig, progress: Progress
) -> NDArray[np.int64]:
    """Return a new split of all images; or, of a given `split`, of the images of train alone."""
    labels, groups = images.pool().labels, _groups(images, config, progress)
    if config.folds is not None:
        count = len(images.train) + len(images.val) if config.keep_test else len(labels)
        equal, first = [1.0] * config.folds, [1] if config.keep_test else [2, 1]
        folds = stratified_group_split(labels[:count], groups[:count], equal, config.seed)
        # That fold is test, the next one val, the others train; val, if test is kept.
        numbers = np.array(first + [0] * (config.folds - len(first)))
        parts = np.full(len(labels), 2)
        parts[:count] = numbers[(folds - config.fold) % config.folds]
        return parts
    if split is None:
        return stratified_group_split(labels, groups, config.fractions, config.seed)
    parts, train, shares = split.copy(), split == 0, config.fractions[:2]
    parts[train] = stratified_group_split(labels[train], groups[train], shares, config.seed)
    return parts
