"""Exact and near-duplicates in a set of images.

Exact duplicates are found by a hash of their pixels. Near-duplicates (another crop, size,
compression or gain of the same picture) are pairs whose thumbnails of 32 x 32 pixels correlate by
more than 0.95, and still correlate by more than chance when the mean of the set is removed: chest
X-rays of two patients correlate, too, but their differences from the mean X-ray do not.

It takes 4 kB of memory per image, and time that grows with the square of their number
(``benchmarks/duplicates.py``).
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from torch import Tensor
from torch.nn.functional import interpolate

from medduet.data.cache import ProgressFactory, cache_folder, counted
from medduet.data.chunks import iterate_chunks
from medduet.data.imageset import Images, ImageSet
from medduet.data.thumbnails import (
    SIDE,
    THRESHOLD,
    chance_bound,
    grey,
    mean_vector,
    residual_correlation,
    unit_vectors,
)
from medduet.utils.files import atomic_path

MAX_PAIRS_PER_IMAGE = 20
"""Near-duplicates that are kept of one image, the most similar, beside those that join a group."""
_BLOCK = 2048
_FORMAT = 4  # of the cached result


@dataclass(frozen=True)
class Duplicates:
    """Pairs of images of the same picture.

    Attributes:
        pairs: ``(P, 2)`` int64 rows of the pool, the smaller first. Exact duplicates are paired
            with the first of their kind alone.
        similarity: ``(P,)`` float32 correlation of the thumbnails.
        exact: ``(P,)`` bool, whether all pixels are equal.
    """

    pairs: NDArray[np.int64]
    similarity: NDArray[np.float32]
    exact: NDArray[np.bool_]

    def groups(self, count: int) -> NDArray[np.int64]:
        """Return the group of each of `count` images that chains of pairs join, ``(count,)``.

        Example:
            >>> pairs = np.array([[0, 2], [2, 3]])
            >>> Duplicates(pairs, np.ones(2, np.float32), np.zeros(2, bool)).groups(5).tolist()
            [0, 1, 0, 0, 2]
        """
        weights = np.ones(len(self.pairs), dtype=bool)
        graph = coo_array((weights, tuple(self.pairs.T)), shape=(count, count))
        return connected_components(graph, directed=False)[1].astype(np.int64)


def find_duplicates(
    images: ImageSet, cache: Path | None = None, progress: ProgressFactory | None = None
) -> Duplicates:
    """Return the duplicates in the pool of a set; the result is cached by its fingerprint.

    Example:
        >>> import tempfile, medduet
        >>> images = medduet.open_images("phantom", size=32, count=20)
        >>> find_duplicates(images, Path(tempfile.mkdtemp())).pairs.shape
        (0, 2)
    """
    duplicates = cached_duplicates(images, cache)
    if duplicates is None:
        duplicates = search_duplicates(images.pool().images, progress)
        path = _cache_file(images, cache)
        with suppress(OSError), atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **vars(duplicates))
    return duplicates


def cached_duplicates(images: ImageSet, cache: Path | None = None) -> Duplicates | None:
    """Return the duplicates of an earlier search of this set; ``None`` if there was none."""
    try:
        with np.load(_cache_file(images, cache), allow_pickle=False) as file:
            return Duplicates(file["pairs"], file["similarity"], file["exact"])
    except (OSError, ValueError, KeyError):
        return None


def _cache_file(images: ImageSet, cache: Path | None) -> Path:
    return cache_folder(cache) / "duplicates" / f"{images.fingerprint}-{_FORMAT}.npz"


def search_duplicates(images: Images, progress: ProgressFactory | None = None) -> Duplicates:
    """Compare all images, ``(N, H, W)`` or ``(N, H, W, 3)`` uint8, with each other.

    Example:
        >>> import medduet
        >>> pool = medduet.open_images("phantom", size=64, count=20).pool().images[:]
        >>> brighter = (pool[3:4] * 0.8 + 40).astype(np.uint8)
        >>> search_duplicates(np.concatenate([pool, brighter, pool[:1]])).pairs.tolist()
        [[0, 21], [3, 20]]
    """
    first, vectors, flat = _describe(images, progress)
    is_first = first == np.arange(len(first))
    copies, distinct = np.flatnonzero(~is_first), np.flatnonzero(is_first & ~flat)
    near, similarity = _near(vectors[torch.from_numpy(distinct)], progress)
    pairs = np.concatenate([np.stack([first[copies], copies], axis=1), distinct[near]])
    similarity = np.concatenate([np.ones(len(copies), np.float32), similarity])
    exact = np.arange(len(pairs)) < len(copies)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Duplicates(pairs[order], similarity[order], exact[order])


def _describe(
    images: Images, progress: ProgressFactory | None
) -> tuple[NDArray[np.int64], Tensor, NDArray[np.bool_]]:
    """Return the first image with the same pixels, the thumbnail, and whether it is flat."""
    count, side = len(images), min(SIDE, *images.shape[1:3])
    first, flat = np.empty(count, dtype=np.int64), np.empty(count, dtype=bool)
    vectors = torch.empty(count, side * side)
    seen: dict[bytes, int] = {}
    with counted(progress, "read images", int(np.prod(images.shape))) as advance:
        for rows, chunk in iterate_chunks(images):
            for row, image in enumerate(chunk, rows.start):
                digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                first[row] = seen.setdefault(digest, row)
            small = interpolate(grey(chunk), (side, side), mode="bilinear", antialias=True)
            vectors[rows], is_flat = unit_vectors(small)
            flat[rows] = is_flat.numpy()
            advance(chunk.nbytes)
    return first, vectors, flat


def _near(
    vectors: Tensor, progress: ProgressFactory | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the pairs ``(P, 2)`` of near-duplicate rows, and their correlation."""
    count, mean = len(vectors), mean_vector(vectors)
    bound = chance_bound(vectors, vectors, mean, count * (count - 1) / 2)
    pairs, similarity = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    starts = range(0, count, _BLOCK)
    with counted(progress, "compare images", sum(count - start for start in starts)) as advance:
        for a in starts:
            candidates = []
            for b in range(a, count, _BLOCK):
                product = vectors[a : a + _BLOCK] @ vectors[b : b + _BLOCK].T
                similar = (product.triu(1) if a == b else product) > THRESHOLD
                candidates.append(similar.nonzero() + torch.tensor([a, b]))
                advance(len(vectors[b : b + _BLOCK]))
            block = torch.cat(candidates)
            block = block[residual_correlation(vectors, vectors, block, mean) > bound]
            values = (vectors[block[:, 0]] * vectors[block[:, 1]]).sum(dim=1).numpy()
            kept = _limited(block.numpy(), values)
            pairs.append(block.numpy()[kept])
            similarity.append(values[kept])
    return np.concatenate(pairs), np.concatenate(similarity)


def _limited(pairs: NDArray[np.int64], similarity: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the pairs to keep: the most similar of each first image, and what joins groups."""
    order = np.lexsort((-similarity, pairs[:, 0]))
    _, starts = np.unique(pairs[order, 0], return_index=True)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    kept = order[rank < MAX_PAIRS_PER_IMAGE]
    if len(kept) < len(pairs):
        images, ends = np.unique(pairs, return_inverse=True)
        edges = np.arange(1, len(pairs) + 1), tuple(ends.reshape(-1, 2).T)
        graph = coo_array(edges, shape=(len(images), len(images))).tocsr()
        # Any spanning tree does; its weights are the numbers of its pairs.
        kept = np.union1d(kept, minimum_spanning_tree(graph).data.astype(np.int64) - 1)
    return np.sort(kept)
