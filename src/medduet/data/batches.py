"""Which images go into which batch, on which process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medduet.types import UNKNOWN_LABEL

MIN_BATCH = 2  # batch normalisation of a 1 x 1 map needs two images
WINDOW = 2
"""Shards whose images are mixed; so many are read at a time."""


def train_batches(
    count: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    shares: NDArray[np.float64] | None = None,
    shards: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Return the image positions of each step of one epoch, for one process.

    The order depends on ``(seed, epoch)`` alone, so a resumed run sees the order that it would
    have seen, and any number of processes share the same global batches. The last batch may be
    smaller; it is left out in the rare case that it has fewer than two images per process, which
    batch normalisation can't use.

    With `shards`, these come in random order; the images of `WINDOW` shards are shuffled together,
    then those of the next ones. Of that line each process takes a stretch, so no two of them read
    the same shards, but for those at the ends of the stretches.

    Args:
        count: images of the split.
        batch_size: images of a step over all processes together.
        seed: of the run.
        epoch: the first is 1.
        rank: of this process, of `world_size` processes.
        world_size: number of processes.
        shares: ``(count,)`` probability of each image, as of `balanced_shares`: as many images are
            drawn with replacement. ``None``: each image comes once.
        shards: ``(S,)`` images of each shard, one after the other; without `shares`.

    Example:
        >>> [len(index) for index in train_batches(10, 4, seed=0, epoch=1)]
        [4, 4, 2]
    """
    rng = np.random.default_rng([seed, epoch])
    whole, rest = divmod(count, batch_size)
    rest = 0 if rest < MIN_BATCH * world_size else rest
    if shards is None:
        order = rng.permutation(count) if shares is None else rng.choice(count, count, p=shares)
        starts = range(0, whole * batch_size + rest, batch_size)
        return [np.sort(order[start : start + batch_size][rank::world_size]) for start in starts]
    ends = np.cumsum(shards)
    rows = [np.arange(end - size, end) for end, size in zip(ends, shards, strict=True)]
    order = rng.permutation(len(shards))
    windows = [order[start : start + WINDOW] for start in range(0, len(order), WINDOW)]
    line = np.concatenate(
        [rng.permutation(np.concatenate([rows[shard] for shard in window])) for window in windows]
    )
    shares_of = [len(range(each, batch_size, world_size)) for each in range(world_size)]
    totals = [whole * shares_of[r] + len(range(r, rest, world_size)) for r in range(world_size)]
    begin = sum(totals[:rank])
    stretch, step = line[begin : begin + totals[rank]], shares_of[rank]
    return [stretch[start : start + step] for start in range(0, len(stretch), step)]


def balanced_shares(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability of each image, ``(N,)``, by which each class is drawn as often.

    In multi-label sets, a class is chosen first and then one of its images, so an image of two
    classes comes for either; images of no class are a class of their own. Images whose label is
    not known keep their share of the split: their masks are worth as much as others.

    Args:
        labels: ``(N,)`` class index, or ``(N, K)`` of 0 and 1; -1 is unknown.

    Example:
        >>> balanced_shares(np.array([0, 0, 1, -1])).tolist()
        [0.1875, 0.1875, 0.375, 0.25]
        >>> balanced_shares(np.array([[1, 1], [1, 0], [0, 0]])).tolist()
        [0.5, 0.16666666666666666, 0.3333333333333333]
    """
    if labels.ndim == 1:
        labelled = labels != UNKNOWN_LABEL
        member = labels[:, None] == np.unique(labels[labelled])
    else:
        labelled = (labels != UNKNOWN_LABEL).any(axis=1)
        none = labelled & ~(labels == 1).any(axis=1)
        member = np.column_stack([labels == 1, none])
    member = member[:, member.any(axis=0)]
    shares: NDArray[np.float64] = np.where(labelled, 0.0, 1 / len(labels))
    if labelled.any():
        shares += (member / member.sum(axis=0)).mean(axis=1) * labelled.mean()
    return np.asarray(shares / shares.sum())


def evaluation_batches(
    count: int, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> list[NDArray[np.int64]]:
    """Return the image positions that one process judges: each image on exactly one process.

    Each process has a stretch of its own, as files are read fastest in their order.

    Example:
        >>> [index.tolist() for index in evaluation_batches(5, 4, rank=1, world_size=2)]
        [[3, 4]]
    """
    mine = np.array_split(np.arange(count, dtype=np.int64), world_size)[rank]
    step = max(1, batch_size // world_size)
    return [mine[start : start + step] for start in range(0, len(mine), step)]
