"""A cleaned split: no picture and no group is in two splits, and training sees no copies.

``drop`` leaves images out of train (and of val, where test has the same), so that test stays as
published and scores compare; of exact duplicates within train or val the first one stays.
``regroup`` keeps more images: each group of duplicates or patients moves to the last split (train,
val, test) that any of it was in, so test grows and scores no longer compare; of exact duplicates
within any split the first one stays. Exact duplicates with different labels are all left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.data.audit.findings import per_split, split_numbers
from medduet.data.audit.leakage import conflicting, first_copies, repeated
from medduet.data.cache import ProgressFactory
from medduet.data.duplicates import Duplicates, find_duplicates
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.data.splits import apply_split, merge_groups
from medduet.errors import DataError

Method = Literal["drop", "regroup"]
_TEST = len(SPLITS) - 1
_DROPPED = -1


class Cleaned(NamedTuple):
    """A set in its cleaned split, and what was changed, one phrase each; none if it was clean."""

    images: ImageSet
    changes: tuple[str, ...]


def clean(
    images: ImageSet,
    method: Method = "drop",
    *,
    cache: Path | None = None,
    progress: ProgressFactory | None = None,
) -> Cleaned:
    """Return the set in a split without leaks.

    Similarity by chance is estimated from the whole set, so the cleaned one is searched again,
    until an audit finds no leak in it.

    Args:
        images: the set.
        method: ``"drop"`` or ``"regroup"``, see above.
        cache: folder of cached searches for duplicates.
        progress: shows the progress of the searches.

    Raises:
        DataError: several images have one id, or a split would be empty.

    Example:
        >>> import medduet
        >>> clean(medduet.open_images("phantom", size=32, count=20)).changes
        ()
    """
    pool, before = images.pool(), split_numbers(images)
    assert pool.ids is not None
    if len(np.unique(pool.ids)) < len(pool):
        raise DataError(
            f"expected a different id for every image of {images.name}, but some share one; a "
            "split can't tell them apart"
        )
    splits, current = before, images
    while True:
        duplicates = find_duplicates(current, cache, progress)
        # From rows of the cleaned pool to those of the original one.
        rows = np.concatenate([np.flatnonzero(splits == number) for number in range(len(SPLITS))])
        duplicates = Duplicates(rows[duplicates.pairs], duplicates.similarity, duplicates.exact)
        after = _cleaned_once(pool, duplicates, splits, method)
        if (after == splits).all():
            return Cleaned(current, _changes(before, splits, method))
        splits = after
        current = apply_split(images, splits, {"cleaned": method})


def _cleaned_once(
    pool: Split, duplicates: Duplicates, splits: NDArray[np.int64], method: Method
) -> NDArray[np.int64]:
    """Return the split of each image, ``(N,)``, without these leaks; -1 is dropped."""
    count, kept = len(splits), splits != _DROPPED
    groups = merge_groups(np.arange(count), duplicates.groups(count), pool.groups)
    last = np.full(count, _DROPPED)
    np.maximum.at(last, groups[kept], splits[kept])
    target = last[groups]
    if method == "drop":
        after = np.where(splits < target, _DROPPED, splits)
        changeable = (after != _DROPPED) & (after != _TEST)
    else:
        after = np.where(kept, target, _DROPPED)
        changeable = after != _DROPPED
    first, rows = first_copies(duplicates, count), np.flatnonzero(changeable)
    # Labels of all copies in a split, before the first one alone stays.
    _, copies = np.unique(first[rows] * len(SPLITS) + splits[rows], return_inverse=True)
    wrong = conflicting(copies.astype(np.int64), pool.labels[rows])
    after[rows[repeated(first[rows], after[rows])]] = _DROPPED
    after[rows[wrong]] = _DROPPED
    return after


def _changes(
    before: NDArray[np.int64], after: NDArray[np.int64], method: Method
) -> tuple[str, ...]:
    dropped = np.flatnonzero(after == _DROPPED)
    moved = np.flatnonzero((after != _DROPPED) & (after != before))
    changes = []
    if len(dropped):
        changes.append(f"dropped {len(dropped):,} ({per_split(dropped, before)})")
    if len(moved):
        changes.append(
            f"moved {len(moved):,} ({per_split(moved, before)}) to {per_split(moved, after)}"
        )
    if not changes:
        return ()
    if method == "drop":
        changes.append("test unchanged")
    return (*changes, f"now {per_split(np.flatnonzero(after != _DROPPED), after)}")
