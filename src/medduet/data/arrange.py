"""From the settings of a set to its splits: given, made, or read from a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.config import DataConfig
from medduet.data.cache import ProgressFactory, cache_folder
from medduet.data.imageset import SPLITS, ImageSet
from medduet.data.splits import (
    apply_split,
    merge_groups,
    read_split,
    stratified_group_split,
    write_split,
)
from medduet.errors import ConfigError, DataError

NO_SPLIT = 3
"""The given split of an image that has none."""
_PLAN = 1  # part of each saved split's name; raise it when splits are made otherwise


def arrange(
    images: ImageSet,
    split: NDArray[np.int64] | None,
    config: DataConfig,
    progress: ProgressFactory | None = None,
    saved: Path | None = None,
) -> ImageSet:
    """Return `images` in the splits that `config` asks for.

    Args:
        images: the set, in its own splits if it has them.
        split: ``(N,)`` for its pool: 0 train, 1 val, 2 test, or `NO_SPLIT`; ``None`` if the set is
            in its own splits already.
        config: ``split``, ``fractions``, ``folds``, ``fold``, ``group_by`` and ``seed`` of it.
        progress: draws the search for near-duplicates.
        saved: file of a split that was made by these settings before, if it is there.

    Raises:
        ConfigError: a split is to be given, and there is none.
        DataError: the images don't suffice for the splits.
        MissingFileError: the file of the split is not there.
    """
    has_split = split is None or bool((split != NO_SPLIT).any())
    if config.folds is not None and config.split not in ("auto", "made"):
        raise ConfigError(f"--data.folds make a split: leave out --data.split {config.split}")
    if config.split == "given" and not has_split:
        raise ConfigError(
            f"{images.name} gives no splits: name its folders train, val and test, or give "
            "--data.split made"
        )
    if saved is not None and not saved.is_file():
        saved = None
    if config.split.endswith(".csv"):
        table = Path(config.split).expanduser().absolute()
        return apply_split(images, read_split(saved or table, images), {"file": str(table)})
    plan: dict[str, Any] = {"seed": config.seed, "group_by": config.group_by}
    if config.folds is not None:
        note = {"made": plan | {"folds": config.folds, "fold": config.fold}}
    elif config.split == "made" or not has_split:
        note = {"made": plan | {"fractions": list(config.fractions)}}
    elif split is None:
        return images
    elif _has_val(split, images.name):
        return apply_split(images, split, {"given": {}})
    else:
        note = {"given": {"val": plan | {"fractions": list(config.fractions[:2])}}}
    path = saved
    if path is None:
        key = json.dumps([_PLAN, images.fingerprint, note], sort_keys=True)
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.csv"
        path = cache_folder(config.cache) / "splits" / name
    if not path.is_file():
        parts = _make(images, split if "given" in note else None, config, progress)
        write_split(path, apply_split(images, parts, note))
    return apply_split(images, read_split(path, images), note)


def _has_val(split: NDArray[np.int64], name: str) -> bool:
    """Return whether the given splits have images for val; many published sets don't."""
    missing = [SPLITS[number] for number in range(3) if not (split == number).any()]
    if missing and missing != ["val"]:
        raise DataError(
            f"{name} has no images for {' and '.join(missing)}: expected train and test at least, "
            "or give --data.split made"
        )
    return not missing


def _make(
    images: ImageSet,
    split: NDArray[np.int64] | None,
    config: DataConfig,
    progress: ProgressFactory | None,
) -> NDArray[np.int64]:
    """Return a new split of all images; or, of a given `split`, of the images of train alone."""
    groups, labels = _groups(images, config, progress), images.pool().labels
    if config.folds is not None:
        parts = stratified_group_split(labels, groups, [1.0] * config.folds, config.seed)
        # That part is test, the next one val, the others train.
        return np.array([2, 1, *[0] * (config.folds - 2)])[(parts - config.fold) % config.folds]
    if split is None:
        return stratified_group_split(labels, groups, config.fractions, config.seed)
    parts, train = split.copy(), np.flatnonzero(split == 0)
    parts[train] = stratified_group_split(
        labels[train], groups[train], config.fractions[:2], config.seed
    )
    return parts


def _groups(
    images: ImageSet, config: DataConfig, progress: ProgressFactory | None
) -> NDArray[np.int64]:
    """Return which images stay together, ``(N,)`` for the pool."""
    pool = images.pool()
    alone = np.arange(len(pool), dtype=np.int64)
    if config.group_by == "none":
        return alone
    if config.group_by == "given" and pool.groups is None:
        raise ConfigError(
            f"{images.name} knows no groups: give a table with a column group, or another "
            "--data.group-by"
        )
    partitions = [alone]
    if config.group_by != "duplicates" and pool.groups is not None:
        partitions.append(pool.groups)
    if config.group_by != "given":
        from medduet.data.duplicates import find_duplicates

        duplicates = find_duplicates(images, config.cache, progress)
        partitions.append(duplicates.groups(len(pool)))
    return merge_groups(*partitions)
