"""Images and patients that are in several splits, and duplicates within one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medduet.data.audit.findings import (
    Finding,
    Pairs,
    counted_images,
    listed,
    per_split,
    split_numbers,
)
from medduet.data.duplicates import Duplicates, known_duplicates, remembered_duplicates
from medduet.data.imageset import SPLITS, ImageSet, Split
from medduet.types import UNKNOWN_LABEL

SMALL = 20_000
"""Images up to which training looks for duplicates by itself; it takes seconds."""
_AGREE = 0.5  # intersection over union, below which masks of near-duplicates disagree
_PIECE = 256


@dataclass(frozen=True, eq=False)
class Reach:
    """In which splits each of N images is found again.

    Attributes:
        first: ``(N,)`` int64, the first image with the same pixels.
        copies: ``(N, 3)`` bool, whether a copy of it is in train, val and test; itself counts.
        near: ``(N, 3)`` bool, whether a near-duplicate is there.
    """

    first: NDArray[np.int64]
    copies: NDArray[np.bool_]
    near: NDArray[np.bool_]


def reach(found: Duplicates, splits: NDArray[np.int64]) -> Reach:
    """Return where each image is found again; `splits` ``(N,)`` is the split of each.

    Example:
        >>> pairs = np.array([[0, 1], [1, 2]])
        >>> found = Duplicates(pairs, np.ones(2, np.float32), np.array([False, True]))
        >>> reach(found, np.array([0, 1, 2])).near.tolist()
        [[False, True, True], [True, False, False], [True, False, False]]
    """
    first = np.arange(len(splits))
    first[found.pairs[found.exact, 1]] = found.pairs[found.exact, 0]
    copies = np.zeros((len(splits), len(SPLITS)), dtype=bool)
    copies[first, splits] = True
    near = np.zeros_like(copies)
    # Near-duplicates are known of the first copy; they are those of all its copies, too.
    one, two = first[found.pairs[~found.exact]].T
    np.logical_or.at(near, one, copies[two])
    np.logical_or.at(near, two, copies[one])
    return Reach(first, copies[first], near[first])


def pair_facts(images: ImageSet, pool: Split, found: Duplicates) -> Pairs:
    """Return the pairs with what differs between the two, the worst first."""
    splits, labels = split_numbers(images), pool.labels.reshape(len(pool), -1)
    one, two = found.pairs.T
    both = (labels[one] != UNKNOWN_LABEL) & (labels[two] != UNKNOWN_LABEL)
    labels_differ = ((labels[one] != labels[two]) & both).any(axis=1) & bool(images.class_names)
    across = splits[one] != splits[two]
    masks_differ = _masks_differ(pool, found)
    order = np.lexsort((-found.likeness, ~found.exact, ~masks_differ, ~labels_differ, ~across))
    return Pairs(
        found.pairs[order],
        found.likeness[order],
        found.exact[order],
        across[order],
        labels_differ[order],
        masks_differ[order],
    )


def _masks_differ(pool: Split, found: Duplicates) -> NDArray[np.bool_]:
    differ = np.zeros(len(found.pairs), dtype=bool)
    if pool.masks is None:
        return differ
    known = pool.known_masks[found.pairs].all(axis=1)
    places = np.flatnonzero(known)
    for start in range(0, len(places), _PIECE):
        some = places[start : start + _PIECE]
        one, two = (np.asarray(pool.masks[found.pairs[some, side]]) for side in (0, 1))
        alike = ((one == two) & (one > 0)).sum(axis=(1, 2))
        either = ((one > 0) | (two > 0)).sum(axis=(1, 2))
        iou = np.divide(alike, either, out=np.ones(len(some)), where=either > 0)
        differ[some] = iou < np.where(found.exact[some], 1.0, _AGREE)
    return differ


def duplicate_findings(
    images: ImageSet, pool: Split, found: Duplicates, pairs: Pairs
) -> list[Finding]:
    """Return copies and near-duplicates across and within splits, and labels at odds."""
    splits = split_numbers(images)
    again = reach(found, splits)
    findings = []
    for kind, noun, where in (
        ("copies", "an exact copy", again.copies),
        ("near", "a near-duplicate", again.near),
    ):
        rows, phrases = _across(where, splits)
        if len(rows):
            findings.append(
                Finding(
                    f"{kind}-across", "leak", f"{_capital(noun)} in another split: {phrases}.", rows
                )
            )
    return findings + _within(found, again, splits) + _conflicts(images, pool, found, pairs)


def _across(where: NDArray[np.bool_], splits: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """Return the images that are found again in another split, and how many in words."""
    phrases = []
    rows = np.flatnonzero((where & (splits[:, None] != np.arange(len(SPLITS)))).any(axis=1))
    for low, high in combinations(range(len(SPLITS)), 2):
        count = int((where[:, low] & (splits == high)).sum())
        if count:
            verb = "has" if count == 1 else "have"
            phrases.append(f"{counted_images(count)} of {SPLITS[high]} {verb} one in {SPLITS[low]}")
    return rows, listed(phrases) if phrases else ""


def _within(found: Duplicates, again: Reach, splits: NDArray[np.int64]) -> list[Finding]:
    findings = []
    if len(extra := later_copies(again.first, splits)):
        text = f"{counted_images(len(extra))} repeat{'s' * (len(extra) == 1)} another of the same "
        text += f"split pixel for pixel: {per_split(extra, splits)}."
        findings.append(Finding("copies-within", "note", text, extra))
    near = found.pairs[~found.exact]
    inside = np.unique(near[splits[near[:, 0]] == splits[near[:, 1]]])
    if len(inside):
        groups = found.groups(len(splits))
        kinds = [len(np.unique(groups[splits == number])) for number in range(len(SPLITS))]
        text = f"{counted_images(len(inside))} have a near-duplicate in their own split "
        text += f"({per_split(inside, splits)}), so the splits show "
        text += f"{' / '.join(f'{n:,}' for n in kinds)} distinct pictures: intervals that count "
        text += "images are too narrow."
        findings.append(Finding("near-within", "note", text, inside))
    return findings


def later_copies(first: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the images that have a copy before them in the same split.

    Example:
        >>> later_copies(np.array([0, 1, 0, 0]), np.array([0, 0, 0, 1])).tolist()
        [2]
    """
    _, kept = np.unique(first * len(SPLITS) + splits, return_index=True)
    return np.setdiff1d(np.arange(len(first)), kept)


def _conflicts(images: ImageSet, pool: Split, found: Duplicates, pairs: Pairs) -> list[Finding]:
    """Return groups of duplicates whose labels, and pairs whose masks, are at odds."""
    findings, splits = [], split_numbers(images)
    if images.class_names:
        groups = found.groups(len(pool))
        rows = at_odds(groups, pool.labels)
        if len(rows):
            count = len(np.unique(groups[rows]))
            text = f"{count:,} group{'s' * (count != 1)} of duplicates ({counted_images(len(rows))}"
            text += f": {per_split(rows, splits)}) hold conflicting labels, so some are wrong."
            findings.append(Finding("labels-conflict", "warning", text, rows))
    differ = pairs.masks_differ
    if differ.any():
        rows, count = np.unique(pairs.rows[differ]), int(differ.sum())
        text = f"{count:,} pair{'s' * (count != 1)} of duplicates ({counted_images(len(rows))}) "
        text += "have masks that disagree."
        findings.append(Finding("masks-conflict", "note", text, rows))
    return findings


def at_odds(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the images of all groups in which known labels differ.

    Example:
        >>> at_odds(np.array([0, 0, 1, 1, 1]), np.array([2, 2, 0, 1, -1])).tolist()
        [2, 3, 4]
    """
    columns = labels.reshape(len(labels), -1)
    odd = np.zeros(int(groups.max()) + 1, dtype=bool)
    for column in columns.T:
        known = column != UNKNOWN_LABEL
        least = np.full(len(odd), np.iinfo(np.int64).max)
        most = np.full(len(odd), -1)
        np.minimum.at(least, groups[known], column[known])
        np.maximum.at(most, groups[known], column[known])
        odd |= most > least
    return np.flatnonzero(odd[groups])


def group_reach(groups: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether the group of each image has any in train, val and test, ``(N, 3)``."""
    known = groups >= 0
    where = np.zeros((len(groups), len(SPLITS)), dtype=bool)
    if known.any():
        _, member = np.unique(groups[known], return_inverse=True)
        present = np.zeros((member.max() + 1, len(SPLITS)), dtype=bool)
        present[member, splits[known]] = True
        where[known] = present[member]
    return where


def group_findings(images: ImageSet, pool: Split) -> list[Finding]:
    """Return the groups, such as patients, that are in several splits."""
    if pool.groups is None:
        return []
    splits = split_numbers(images)
    where = group_reach(pool.groups, splits)
    rows = np.flatnonzero(where.sum(axis=1) > 1)
    if not len(rows):
        return []
    count = len(np.unique(pool.groups[rows]))
    text = f"{count:,} group{'s' * (count != 1)} (such as patients) {'are' if count > 1 else 'is'} "
    text += f"in several splits, with {counted_images(len(rows))}: {per_split(rows, splits)}."
    return [Finding("groups-across", "leak", text, rows)]


def leak_warning(images: ImageSet, cache: Path | None = None) -> str | None:
    """Return a line on images of val and test that are in train, too; ``None`` if there are none.

    Sets above 20,000 images are not searched for duplicates here, but what an audit found before
    counts.

    Example:
        >>> import tempfile, medduet
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> leak_warning(images, Path(tempfile.mkdtemp())) is None
        True
    """
    parts = [images.split(name) for name in SPLITS]
    found = remembered_duplicates(images, cache)
    if found is None and sum(map(len, parts)) <= SMALL:
        found = known_duplicates(images, cache)
    groups = [part.groups for part in parts if part.groups is not None]
    if found is None and len(groups) < len(parts):
        return None  # before anything is made that is as long as the set
    splits, causes = split_numbers(images), []
    if found is not None:
        again = reach(found, splits)
        causes.append(("a duplicate", (again.copies | again.near)[:, 0]))
    if len(groups) == len(parts):
        causes.append(("others of their group", group_reach(np.concatenate(groups), splits)[:, 0]))
    phrases = []
    for what, in_train in causes:
        rows = np.flatnonzero(in_train & (splits > 0))
        if len(rows):
            counts = np.bincount(splits[rows], minlength=len(SPLITS))
            where = [
                f"{counted_images(n)} of {SPLITS[k]}" for k, n in enumerate(counts.tolist()) if n
            ]
            phrases.append(f"{listed(where)} have {what} in train")
    if not phrases:
        return None
    return f"warning: {listed(phrases)}, so scores come out too good: {_to_type(images)}"


def _to_type(images: ImageSet) -> str:
    source = str(images.info.get("source", images.name))
    return f"medduet audit {images.name if 'medmnist' in images.info else source}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
