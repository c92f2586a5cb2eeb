"""Which images go into which batch, on which process."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import overload

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
) -> Sequence[NDArray[np.int64]]:
    """Return the image positions of each step of one epoch, for one process.

    The order depends on ``(seed, epoch)`` alone, so a resumed run sees the order that it would
    have seen, and any number of processes share the same global batches. The last batch may be
    smaller; it is left out in the rare case that it has fewer than two images per process, which
    batch normalisation can't use (another shuffle leaves out other images).

    Args:
        count: images of the split.
        batch_size: images of a step over all processes together.
        seed: of the run.
        epoch: the first is 1.
        rank: of this process.
        world_size: number of processes.
        shares: ``(count,)`` probability of each image, as of `balanced_shares`: as many images are
            drawn with replacement. ``None``: each image comes once.
        shards: ``(S,)`` images of each shard, see `ShardedBatches`; without `shares`.

    Returns:
        An ``(n,)`` int64 array for each step.

    Example:
        >>> [len(index) for index in train_batches(10, 4, seed=0, epoch=1)]
        [4, 4, 2]
    """
    if shards is not None:
        return ShardedBatches(shards, batch_size, seed, epoch, rank, world_size)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(count) if shares is None else rng.choice(count, count, p=shares)
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    if len(batches[-1]) < MIN_BATCH * world_size:
        batches.pop()
    return [np.sort(batch[rank::world_size]) for batch in batches]


class ShardedBatches(Sequence[NDArray[np.int64]]):
    """The batches of an epoch over shards: shuffled, but few shards are needed at a time.

    The shards come in random order. The images of `WINDOW` shards are shuffled together, then
    those of the next ones. Of the line that results, each process takes a stretch, so no two of
    them read the same shards, but for those at the ends of the stretches. Whatever the number of
    images, only the batches asked for are computed.

    Args:
        sizes: ``(S,)`` images of each shard; positions count through the shards.
        batch_size, seed, epoch, rank, world_size: as in `train_batches`.

    Example:
        >>> batches = ShardedBatches(np.array([4, 4, 4, 3]), 4, seed=0, epoch=1)
        >>> batches.shards, [index.tolist() for index in batches[1:]]
        ([3, 0, 2, 1], [[0, 2, 7, 14], [4, 5, 8, 9], [6, 10, 11]])
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._starts, self._sizes = np.cumsum(sizes) - sizes, sizes
        self._seed = [seed, epoch]
        self._order = np.random.default_rng(self._seed).permutation(len(sizes))
        every = np.append(np.arange(WINDOW, len(sizes), WINDOW), len(sizes)) - 1
        self._ends = np.cumsum(sizes[self._order])[every]
        whole, rest = divmod(int(self._ends[-1]), batch_size)
        if rest < MIN_BATCH * world_size:
            rest = 0
        self._steps = range(whole + (rest > 0))
        totals = [
            whole * len(range(each, batch_size, world_size)) + len(range(each, rest, world_size))
            for each in range(world_size)
        ]
        self._share = len(range(rank, batch_size, world_size))
        self._start = sum(totals[:rank])
        self._end = self._start + totals[rank]
        self._mixed: tuple[int, NDArray[np.int64]] = -1, np.empty(0, dtype=np.int64)

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards that these batches need, in that order."""
        if not self._steps:
            return []
        first = self._window_of(self._start + self._steps[0] * self._share)
        last = self._window_of(self._end - 1)
        return [int(number) for number in self._order[first * WINDOW : (last + 1) * WINDOW]]

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, key: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, key: slice) -> ShardedBatches: ...
    def __getitem__(self, key: int | slice) -> NDArray[np.int64] | ShardedBatches:
        if isinstance(key, slice):
            some = copy.copy(self)
            some._steps = self._steps[key]
            return some
        place = self._start + self._steps[key] * self._share
        end, pieces = min(place + self._share, self._end), []
        while place < end:
            window = self._window_of(place)
            begin = int(self._ends[window - 1]) if window else 0
            pieces.append(self._window(window)[place - begin : end - begin])
            place += len(pieces[-1])
        return np.sort(np.concatenate(pieces))

    def _window_of(self, place: int) -> int:
        return int(np.searchsorted(self._ends, place, side="right"))

    def _window(self, number: int) -> NDArray[np.int64]:
        """Return the positions in one window, mixed; the last one is kept for the next batch."""
        if self._mixed[0] != number:
            shards = self._order[number * WINDOW : (number + 1) * WINDOW]
            starts, sizes = self._starts[shards], self._sizes[shards]
            rows = [np.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)]
            rng = np.random.default_rng([*self._seed, number + 1])
            self._mixed = number, rng.permutation(np.concatenate(rows))
        return self._mixed[1]


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
        member = labels[:, None] == np.unique(labels[labels != UNKNOWN_LABEL])
        known = labels != UNKNOWN_LABEL
    else:
        known = (labels != UNKNOWN_LABEL).any(axis=1)
        none = known & ~(labels == 1).any(axis=1)
        member = np.column_stack([labels == 1, none])
    member = member[:, member.any(axis=0)]
    shares: NDArray[np.float64] = np.where(known, 0.0, 1 / len(labels))
    if known.any():
        shares += (member / member.sum(axis=0)).mean(axis=1) * known.mean()
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
    begin = rank * (count // world_size) + min(rank, count % world_size)
    end = begin + count // world_size + (rank < count % world_size)
    mine = np.arange(begin, end, dtype=np.int64)
    step = max(1, batch_size // world_size)
    return [mine[start : start + step] for start in range(0, len(mine), step)]
