"""A cleaned split: no picture and no group is in two splits, and training sees no copies.

Two ways are there. ``drop`` leaves images out of train (and of val, where test has the same), so
that test stays as it was published and scores compare; of copies within train or val the first one
stays. ``regroup`` keeps what is there: each group of duplicates or patients moves to the last
split (train, val, test) that any of it was in, so test grows and scores no longer compare; of
copies within any split the first one stays. Where copies contradict each other in their labels, all
of them are left out, since nobody knows which is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medduet.data.audit.findings import per_split, split_numbers
from medduet.data.audit.overlap import at_odds, later_copies, reach
from medduet.data.cache import ProgressFactory
from medduet.data.duplicates import Duplicates, known_duplicates
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.data.splits import divided, united
from medduet.errors import DataError

By = Literal["drop", "regroup"]
_TEST = len(SPLITS) - 1
_OUT = -1


@dataclass(frozen=True, eq=False)
class Cleaned:
    """A set in a cleaned split.

    Attributes:
        images: the set as it is now; write it by `medduet.data.splits.write_split`.
        changes: what was done, one sentence each; empty if nothing had to be.
    """

    images: ImageSet
    changes: tuple[str, ...]


def clean(
    images: ImageSet,
    by: By = "drop",
    *,
    cache: Path | None = None,
    progress: ProgressFactory | None = None,
) -> Cleaned:
    """Return the set in a split without leaks.

    What is alike by chance is judged by the whole set, so the cleaned one is searched again, until
    an audit finds no leak in it.

    Args:
        images: the set.
        by: ``"drop"`` or ``"regroup"``, see above.
        cache: where found duplicates are remembered.
        progress: draws the searches.

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
            f"{images.name} has several images of one id; a split can't tell them apart"
        )
    parts, current = before, images
    while True:
        found = _in_pool(known_duplicates(current, cache, progress), parts)
        after = _once(pool, found, parts, by)
        if (after == parts).all():
            return Cleaned(current, _changes(before, parts, by))
        parts = after
        current = divided(images, parts, {"cleaned": by})


def _in_pool(found: Duplicates, parts: NDArray[np.int64]) -> Duplicates:
    """Return duplicates of the set divided by `parts` as places of the undivided one."""
    rows = np.concatenate([np.flatnonzero(parts == number) for number in range(len(SPLITS))])
    return Duplicates(rows[found.pairs], found.likeness, found.exact)


def _once(pool: Split, found: Duplicates, parts: NDArray[np.int64], by: By) -> NDArray[np.int64]:
    """Return `parts` ``(N,)``, cleaned of the duplicates that were found; -1 is left out."""
    count, kept = len(parts), parts != _OUT
    groups = united(np.arange(count), found.groups(count), pool.groups)
    last = np.full(count, _OUT)
    np.maximum.at(last, groups[kept], parts[kept])
    target = last[groups]
    if by == "drop":
        out = np.where(parts < target, _OUT, parts)
    else:
        out = np.where(kept, target, _OUT)
    stays = out != _OUT
    if by == "drop":
        stays &= out != _TEST
    first = reach(found, np.maximum(parts, 0)).first
    here = np.flatnonzero(stays)
    out[here[later_copies(first[here], out[here])]] = _OUT
    # By the labels of all copies in the split, of which the first would else stay.
    _, twins = np.unique(first[here] * len(SPLITS) + parts[here], return_inverse=True)
    out[here[at_odds(twins.astype(np.int64), pool.labels[here])]] = _OUT
    return out


def _changes(before: NDArray[np.int64], after: NDArray[np.int64], by: By) -> tuple[str, ...]:
    left = np.flatnonzero(after == _OUT)
    moved = np.flatnonzero((after != _OUT) & (after != before))
    changes = []
    if len(left):
        changes.append(f"left out {len(left):,}: {per_split(left, before)}")
    if len(moved):
        changes.append(
            f"moved {len(moved):,}: {per_split(moved, before)}, to {per_split(moved, after)}"
        )
    if changes and by == "drop":
        changes.append("test is as it was")
    sizes = np.bincount(after[after != _OUT], minlength=len(SPLITS))
    if changes:
        changes.append("now " + ", ".join(f"{n:,} {s}" for s, n in zip(SPLITS, sizes, strict=True)))
    return tuple(changes)
