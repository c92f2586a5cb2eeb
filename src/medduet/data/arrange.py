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
from medduet.data.splits import divided, folded, read_split, share_out, united, write_split
from medduet.errors import ConfigError, DataError

NO_SPLIT = 3
"""The given split of an image that has none."""
_PLAN = 1  # part of each saved split's name; raise it when splits are made otherwise


def arrange(
    images: ImageSet,
    given: NDArray[np.int64] | None,
    config: DataConfig,
    progress: ProgressFactory | None = None,
) -> ImageSet:
    """Return `images` in the splits that `config` asks for.

    Args:
        images: the set, in its own splits if it has them.
        given: ``(N,)`` for its pool: 0 train, 1 val, 2 test, or `NO_SPLIT`; ``None`` if the set is
            in its own splits already.
        config: ``split``, ``fractions``, ``folds``, ``fold``, ``group_by`` and ``seed`` of it.
        progress: draws the search for near-duplicates.

    Raises:
        ConfigError: a split is to be given, and there is none.
        DataError: the images don't suffice for the splits.
        MissingFileError: the file of the split is not there.
    """
    if config.folds is not None and config.split not in ("auto", "made"):
        raise ConfigError(
            f"folds make splits of their own, but --data.split {config.split} was given: "
            "leave one out"
        )
    if config.split.endswith(".csv"):
        path = Path(config.split).expanduser()
        return divided(images, read_split(path, images), {"file": str(path)})
    has_own = given is None or bool((given != NO_SPLIT).any())
    if config.split == "given" and not has_own:
        raise ConfigError(
            f"{images.name} gives no splits: name its folders train, val and test, or give "
            "--data.split made"
        )
    if config.folds is not None or config.split == "made" or not has_own:
        return _made(images, config, progress)
    if given is None:
        return images
    return _given(images, given, config, progress)


def _given(
    images: ImageSet,
    given: NDArray[np.int64],
    config: DataConfig,
    progress: ProgressFactory | None,
) -> ImageSet:
    parts = given.copy()
    note: dict[str, object] = {"given": True}
    missing = [name for number, name in enumerate(SPLITS) if not (given == number).any()]
    if missing == ["val"]:  # as many published sets have it
        train = np.flatnonzero(given == 0)
        shares = config.fractions[:2]
        groups = _groups(images, config, progress)[train]
        parts[train] = share_out(images.pool().labels[train], groups, shares, config.seed)
        note |= {"val": "made from train", "fractions": list(shares), "seed": config.seed}
    elif missing:
        raise DataError(
            f"{images.name} has no images for {' and '.join(missing)}: expected train and test at "
            "least, or give --data.split made"
        )
    return divided(images, parts, note)


def _made(images: ImageSet, config: DataConfig, progress: ProgressFactory | None) -> ImageSet:
    plan: dict[str, Any] = {"seed": config.seed, "group_by": config.group_by}
    if config.folds is None:
        plan |= {"fractions": list(config.fractions)}
    else:
        plan |= {"folds": config.folds, "fold": config.fold}
    key = hashlib.sha256(json.dumps([_PLAN, images.fingerprint, plan]).encode()).hexdigest()[:32]
    path = cache_folder(config.cache) / "splits" / f"{images.name}-{key}.csv"
    if path.is_file():
        return divided(images, read_split(path, images), {"made": plan})
    groups, labels = _groups(images, config, progress), images.pool().labels
    if config.folds is None:
        parts = share_out(labels, groups, config.fractions, config.seed)
    else:
        shares = [1.0] * config.folds
        parts = folded(share_out(labels, groups, shares, config.seed), config.folds, config.fold)
    made = divided(images, parts, {"made": plan})
    write_split(path, made)
    return made


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
        from medduet.data.duplicates import known_duplicates

        found = known_duplicates(images, config.cache, progress)
        partitions.append(found.groups(len(pool)))
    return united(*partitions)
