"""Which images go into which batch, on which process."""

from math import prod

import numpy as np
from numpy.typing import NDArray

from medduet.types import UNKNOWN_LABEL

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
    smallest: int = 1,
    shares: NDArray[np.float64] | None = None,
    shards: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Return the image positions of each step of one epoch, for one process of `world_size`.

    They depend on ``(seed, epoch)`` alone; a last batch with fewer than `smallest` images on each
    process is left out. With `shards` each process takes a stretch of shards, `WINDOW` of them
    shuffled together.
    """
    rng = np.random.default_rng([seed, epoch])
    whole, rest = divmod(count, batch_size)
    rest = 0 if rest < smallest * world_size else rest
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

    Images of no class are a class of their own; those of unknown label keep their share.
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


def evaluation_batch_size(kind: str, *sides: int) -> int:
    """Return how many images of that size are evaluated at a time: 16 of 224 pixels on a CPU."""
    pixels, most = (128 * 224**2, 2048) if kind == "cuda" else (16 * 224**2, 256)
    return max(1, min(most, pixels // prod(sides)))


def evaluation_batches(
    count: int, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> list[NDArray[np.int64]]:
    """Return the image positions that one process judges, a stretch: each image on one process."""
    mine = np.array_split(np.arange(count, dtype=np.int64), world_size)[rank]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
