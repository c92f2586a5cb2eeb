"""Exact copies and near-duplicates among any number of images.

Copies are found by a hash of their pixels. Near-duplicates (another crop, size, compression, gain
or calliper of the same picture) are pairs whose thumbnails of 32 x 32 pixels correlate by more than
0.95, compared each with each by matrix products, and stay so when what all images of the set have
in common is taken away: chest X-rays of two patients correlate, too, but their differences from
the mean X-ray do not. How alike differences are by chance is read off random pairs of the set.

It takes 4 kB of memory per image, and time that grows with the square of their number; how much is
measured by ``benchmarks/duplicates.py``.
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
from medduet.data.imageset import Images, ImageSet
from medduet.data.thumbnails import (
    ENOUGH,
    RANDOM_PAIRS,
    SIDE,
    THRESHOLD,
    chance_bound,
    common,
    grey,
    pieces,
    residual,
    unit_vectors,
)
from medduet.utils.files import atomic_path

MOST_PAIRS = 20
"""Near-duplicates that are kept of one image, the most alike, beside those that groups need."""
_BLOCK = 2048
_FORMAT = 3  # of what is remembered


@dataclass(frozen=True)
class Duplicates:
    """Pairs of images that show the same.

    Attributes:
        pairs: ``(P, 2)`` int64 places in the pool, the smaller first. Copies are paired with the
            first of their kind alone.
        likeness: ``(P,)`` float32 correlation of the thumbnails.
        exact: ``(P,)`` bool, whether all pixels are equal.
    """

    pairs: NDArray[np.int64]
    likeness: NDArray[np.float32]
    exact: NDArray[np.bool_]

    def groups(self, count: int) -> NDArray[np.int64]:
        """Return which of `count` images are joined by any chain of pairs, ``(count,)`` int64.

        Example:
            >>> pairs = np.array([[0, 2], [2, 3]])
            >>> Duplicates(pairs, np.ones(2, np.float32), np.zeros(2, bool)).groups(5).tolist()
            [0, 1, 0, 0, 2]
        """
        ends = self.pairs[:, 0], self.pairs[:, 1]
        graph = coo_array((np.ones(len(self.pairs), dtype=bool), ends), shape=(count, count))
        return connected_components(graph, directed=False)[1].astype(np.int64)


def known_duplicates(
    images: ImageSet, cache: Path | None = None, progress: ProgressFactory | None = None
) -> Duplicates:
    """Return the duplicates in the pool of a set; they are searched once and then remembered.

    Example:
        >>> import tempfile, medduet
        >>> images = medduet.open_images("phantom", size=32, count=20)
        >>> known_duplicates(images, Path(tempfile.mkdtemp())).pairs.shape
        (0, 2)
    """
    known = remembered_duplicates(images, cache)
    if known is not None:
        return known
    found = find_duplicates(images.pool().images, progress=progress)
    with suppress(OSError), atomic_path(_note(images, cache)) as path, path.open("wb") as file:
        np.savez(file, pairs=found.pairs, likeness=found.likeness, exact=found.exact)
    return found


def remembered_duplicates(images: ImageSet, cache: Path | None = None) -> Duplicates | None:
    """Return what was found in this set before; ``None`` if it was not searched."""
    try:
        with np.load(_note(images, cache), allow_pickle=False) as file:
            return Duplicates(file["pairs"], file["likeness"], file["exact"])
    except (OSError, ValueError, KeyError):
        return None


def _note(images: ImageSet, cache: Path | None) -> Path:
    return cache_folder(cache) / "duplicates" / f"{images.fingerprint}-{_FORMAT}.npz"


def find_duplicates(
    images: Images, *, threshold: float = THRESHOLD, progress: ProgressFactory | None = None
) -> Duplicates:
    """Find the copies and near-duplicates among images.

    Args:
        images: ``(N, H, W)`` or ``(N, H, W, 3)`` uint8; read in pieces.
        threshold: correlation of thumbnails.
        progress: draws the reading and the comparison.

    Example:
        >>> import medduet
        >>> pool = medduet.open_images("phantom", size=64, count=20).pool().images[:]
        >>> brighter = (pool[3:4] * 0.8 + 40).astype(np.uint8)
        >>> find_duplicates(np.concatenate([pool, brighter, pool[:1]])).pairs.tolist()
        [[0, 21], [3, 20]]
    """
    first, vectors, flat = _describe(images, progress)
    copies = np.flatnonzero(first != np.arange(len(first)))
    single = np.flatnonzero((first == np.arange(len(first))) & ~flat)
    near, likeness = _near(vectors[torch.from_numpy(single)], threshold, progress)
    pairs = np.concatenate([np.stack([first[copies], copies], axis=1), single[near]])
    alike = np.concatenate([np.ones(len(copies), np.float32), likeness])
    exact = np.arange(len(pairs)) < len(copies)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Duplicates(pairs[order], alike[order], exact[order])


def _describe(
    images: Images, progress: ProgressFactory | None
) -> tuple[NDArray[np.int64], Tensor, NDArray[np.bool_]]:
    """Return for each image the first with the same pixels, its thumbnail, and whether it is flat.

    Thumbnails are ``(N, D)`` float32 of mean 0 and length 1.
    """
    count, side = len(images), min(SIDE, *images.shape[1:3])
    vectors = torch.empty(count, side * side)
    first, flat = np.empty(count, dtype=np.int64), np.empty(count, dtype=bool)
    seen: dict[bytes, int] = {}
    with counted(progress, "look for duplicates", int(np.prod(images.shape))) as read:
        for start, piece in pieces(images):
            for row, image in enumerate(piece, start):
                key = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                first[row] = seen.setdefault(key, row)
            small = interpolate(grey(piece), (side, side), mode="bilinear", antialias=True)
            rows = slice(start, start + len(piece))
            vectors[rows], blank = unit_vectors(small)
            flat[rows] = blank.numpy()
            read(piece.nbytes)
    return first, vectors, flat


def _near(
    vectors: Tensor, threshold: float, progress: ProgressFactory | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the pairs ``(P, 2)`` of near-duplicate rows, and their correlation."""
    mean = common(vectors)
    bound = _chance(vectors, mean) if len(vectors) >= ENOUGH else -1.0
    pairs, alike = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    starts = range(0, len(vectors), _BLOCK)
    with counted(progress, "compare images", sum(len(vectors) - a for a in starts)) as count:
        for a in starts:
            one = vectors[a : a + _BLOCK]
            found = []
            for b in range(a, len(vectors), _BLOCK):
                product = one @ vectors[b : b + _BLOCK].T
                if a == b:
                    product = product.triu(1)
                rows, columns = (product > threshold).nonzero(as_tuple=True)
                found.append(torch.stack([rows + a, columns + b], dim=1))
                count(len(vectors[b : b + _BLOCK]))
            both = torch.cat(found)
            kept = both[_residual(vectors, both, mean) > bound]
            likeness = (vectors[kept[:, 0]] * vectors[kept[:, 1]]).sum(dim=1).numpy()
            few = _enough(kept.numpy(), likeness)
            pairs.append(kept.numpy()[few])
            alike.append(likeness[few])
    return np.concatenate(pairs), np.concatenate(alike)


def _residual(vectors: Tensor, pairs: Tensor, mean: Tensor) -> Tensor:
    """Return how the two of each pair correlate, ``(P,)``, once the mean of the set is removed."""
    out = torch.empty(len(pairs))
    for start in range(0, len(pairs), _BLOCK):
        one, two = (vectors[pairs[start : start + _BLOCK, side]] for side in (0, 1))
        out[start : start + _BLOCK] = residual(one, two, mean)
    return out


def _chance(vectors: Tensor, mean: Tensor) -> float:
    """Return the correlation that differences of no two unlike images of this set should reach."""
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(vectors), (RANDOM_PAIRS, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    likeness = _residual(vectors, torch.from_numpy(pairs), mean).numpy()
    return chance_bound(likeness, len(vectors) * (len(vectors) - 1) / 2)


def _enough(pairs: NDArray[np.int64], likeness: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return which pairs to keep: `MOST_PAIRS` of each first image, and what joins their groups."""
    order = np.lexsort((-likeness, pairs[:, 0]))
    _, begins = np.unique(pairs[order, 0], return_index=True)
    place = np.arange(len(order)) - np.repeat(begins, np.diff([*begins, len(order)]))
    kept = set(order[place < MOST_PAIRS].tolist())
    if len(kept) < len(pairs):
        images, ends = np.unique(pairs, return_inverse=True)
        one, two = ends.reshape(-1, 2).T
        shape = (len(images), len(images))
        number = coo_array((np.arange(1, len(pairs) + 1), (one, two)), shape=shape).tocsr()
        # The edges that hold each group together, whichever; the numbers tell which pairs they are.
        kept |= {int(edge) - 1 for edge in minimum_spanning_tree(number).data}
    return np.array(sorted(kept), dtype=np.int64)
