"""Which images go into which batch, on which process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_BATCH = 2  # batch normalisation of a 1 x 1 map needs two images


def train_batches(
    count: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[NDArray[np.int64]]:
    """Return the image positions of each step of one epoch, for one process.

    The order depends on ``(seed, epoch)`` alone, so a resumed run sees the order that it would
    have seen, and any number of processes share the same global batches. The last batch may be
    smaller; it is left out in the rare case that it has fewer than two images per process, which
    batch normalisation can't use (another shuffle leaves out other images).

    `count` are the images of the split, `batch_size` those of a step over all processes together;
    each step is an ``(n,)`` int64 array.

    Example:
        >>> [len(index) for index in train_batches(10, 4, seed=0, epoch=1)]
        [4, 4, 2]
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    if len(batches[-1]) < MIN_BATCH * world_size:
        batches.pop()
    return [np.sort(batch[rank::world_size]) for batch in batches]


def evaluation_batches(
    count: int, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> list[NDArray[np.int64]]:
    """Return the image positions that one process judges: each image on exactly one process.

    Example:
        >>> [index.tolist() for index in evaluation_batches(5, 4, rank=1, world_size=2)]
        [[1, 3]]
    """
    mine = np.arange(rank, count, world_size, dtype=np.int64)
    step = max(1, batch_size // world_size)
    return [mine[start : start + step] for start in range(0, len(mine), step)]
