"""Exact and near-duplicates in a set of images.

Near-duplicates (another crop, size, compression or gain) are pairs whose thumbnails correlate by
more than 0.95, and more than by chance (from 10 to 99 images: by 0.7) when the mean of the set is
removed: X-rays of two patients correlate, too, but their differences from the mean don't. It takes
4 kB of memory per image, and time that grows with the square of their number
(``benchmarks/duplicates.py``).
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, cosine_similarity, interpolate, normalize

from medduet.data.cache import Progress, cache_folder, counted
from medduet.data.imageset import Images, ImageSet, iterate_chunks, spatial_size
from medduet.data.pixels import to_grey
from medduet.utils.files import atomic_path

SIDE = 32  # of thumbnails in pixels, unless the images are smaller
SIDE_OF_VOLUMES = 10  # about as many numbers
THRESHOLD = 0.95  # correlation of thumbnails above which two images may be the same picture
MAX_PAIRS_PER_IMAGE = 20  # the most similar ones, beside those that join a group
_BLOCK = 256
_MIN_FOR_MEAN = 100  # images from which on their mean is their anatomy and not the images
_FEW, _BOUND_OF_FEW = 10, 0.7  # images of which the mean is taken away, and what then must be left
_SMOOTH = {"mode": "bilinear", "antialias": True}
_FLAT = 1.0  # grey levels of standard deviation
_RANDOM_PAIRS = 50_000
_FALSE_PAIRS = 0.05  # expected in a whole set by chance
_TAILS = (0.25, 0.1, 0.01)
_MAX_WIDENING = 1.25  # of the spread from one tail to the next; 1.08 at most in real sets
_FORMAT = 6  # of the cached result


@dataclass(frozen=True)
class Duplicates:
    """Pairs of rows of the pool, ``(P, 2)``, the smaller first, and their similarity, ``(P,)``.

    Exact duplicates are paired with the first of their kind alone.
    """

    pairs: NDArray[np.int64]
    similarity: NDArray[np.float32]
    exact: NDArray[np.bool_]

    def groups(self, count: int) -> NDArray[np.int64]:
        """Return the group of each of `count` images that chains of pairs join, ``(count,)``."""
        joined = np.ones(len(self.pairs), dtype=bool), tuple(self.pairs.T)
        graph = coo_array(joined, shape=(count, count))
        return connected_components(graph, directed=False)[1].astype(np.int64)


def find_duplicates(
    images: ImageSet, cache: Path | None = None, progress: Progress = None
) -> Duplicates:
    """Return the duplicates in the pool of a set; the result is cached by its fingerprint."""
    path = duplicates_file(images, cache)
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), path.open("rb") as stored:
        file = np.load(stored, allow_pickle=False)
        return Duplicates(file["pairs"], file["similarity"], file["exact"])
    duplicates = search_duplicates(images.pool().images, progress)
    with suppress(OSError), atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(duplicates))
    return duplicates


def duplicates_file(images: ImageSet, cache: Path | None) -> Path:
    """Return where the duplicates of a set are kept once they were searched."""
    return cache_folder(cache) / "duplicates" / f"{images.fingerprint}-{_FORMAT}.npz"


def search_duplicates(images: Images, progress: Progress = None) -> Duplicates:
    """Compare all images, ``(N, H, W)``, ``(N, H, W, 3)`` or volumes, uint8, with each other."""
    sides = spatial_size(images.shape)
    count, side = len(images), min(SIDE if len(sides) == 2 else SIDE_OF_VOLUMES, *sides)
    thumbnail = (side,) * len(sides)
    first, vectors = np.empty(count, dtype=np.int64), torch.empty(count, prod(thumbnail))
    seen: dict[bytes, int] = {}
    for rows, chunk in iterate_chunks(images, progress, "read images"):
        for row, image in enumerate(chunk, rows.start):
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            first[row] = seen.setdefault(digest, row)
        vectors[rows] = unit_vectors(chunk, thumbnail)
    is_first = first == np.arange(count)
    copies = np.flatnonzero(~is_first)
    distinct = np.flatnonzero(is_first & vectors.any(dim=1).numpy())
    near, similarity = _near(vectors[torch.from_numpy(distinct)], progress)
    pairs = np.concatenate([np.stack([first[copies], copies], axis=1), distinct[near]])
    similarity = np.concatenate([np.ones(len(copies), np.float32), similarity])
    exact = np.arange(len(pairs)) < len(copies)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Duplicates(pairs[order], similarity[order], exact[order])


def _near(vectors: Tensor, progress: Progress) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    count, mean = len(vectors), mean_vector(vectors)
    bound = chance_bound(vectors, vectors, mean, count * (count - 1) / 2)
    if _MIN_FOR_MEAN > count >= _FEW:  # black around heads and panoramas alone correlates
        mean, bound = vectors.mean(dim=0), _BOUND_OF_FEW
    pairs, similarity = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    with counted(progress, "compare images", count) as advance:
        for start in range(0, count, _BLOCK):
            product = vectors[start : start + _BLOCK] @ vectors[start:].T
            block = (product.triu(1) > THRESHOLD).nonzero() + start
            block = block[residual_correlation(vectors, vectors, block, mean) > bound]
            values = product[tuple((block - start).T)].numpy()
            kept = _limited(block.numpy(), values)
            pairs.append(block.numpy()[kept])
            similarity.append(values[kept])
            advance(len(product))
    return np.concatenate(pairs), np.concatenate(similarity)


def _limited(pairs: NDArray[np.int64], similarity: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the pairs to keep: the most similar of each first image, and what joins groups."""
    table = pd.DataFrame({"first": pairs[:, 0], "similarity": similarity})
    best = table.sort_values("similarity", ascending=False).groupby("first")
    kept = best.head(MAX_PAIRS_PER_IMAGE).index.to_numpy()
    if len(kept) < len(pairs):
        images, ends = np.unique(pairs, return_inverse=True)
        edges = np.arange(1, len(pairs) + 1), tuple(ends.reshape(-1, 2).T)
        graph = coo_array(edges, shape=(len(images), len(images))).tocsr()
        # Any spanning tree does; its weights are the numbers of its pairs.
        kept = np.union1d(kept, minimum_spanning_tree(graph).data.astype(np.int64) - 1)
    return np.sort(kept)


def grey(pixels: NDArray[np.uint8]) -> Tensor:
    """Return ``(N, H, W)``, ``(N, H, W, 3)`` or ``(N, D, H, W)`` as float32 ``(N, 1, ...)``.

    Of volumes of several channels it is the first.
    """
    pixels = to_grey(pixels) if pixels.ndim == 4 and pixels.shape[3] == 3 else pixels
    pixels = pixels[..., 0] if pixels.ndim == 5 else pixels
    return torch.from_numpy(pixels.astype(np.float32))[:, None]


def unit_vectors(pixels: NDArray[np.uint8], size: tuple[int, ...], **resize: Any) -> Tensor:
    """Return images at a size as vectors ``(N, D)`` of mean 0 and length 1, or 0 for flat ones."""
    images = grey(pixels)
    if len(size) == 3:
        images = adaptive_avg_pool3d(images, size)
    elif images.shape[2:] != size:
        images = interpolate(images, size, **(resize or _SMOOTH)).clamp(0, 255)
    mean = images.mean(dim=tuple(range(1, images.ndim)))
    centred = images.flatten(1) - mean[:, None]
    return normalize(centred) * (centred.square().mean(dim=1).sqrt() >= _FLAT)[:, None]


def mean_vector(vectors: Tensor) -> Tensor:
    """Return the common anatomy of a set, ``(D,)``: the mean vector, 0 for a small set."""
    if len(vectors) < _MIN_FOR_MEAN:
        return torch.zeros(vectors.shape[1])
    return vectors.mean(dim=0)


def residual_correlation(one: Tensor, two: Tensor, pairs: Tensor, mean: Tensor) -> Tensor:
    """Return how ``one[a]`` and ``two[b]`` of each pair ``(a, b)`` correlate, `mean` removed."""
    ends = [block.T for block in torch.split(pairs, 2048)]
    return torch.cat([cosine_similarity(one[a] - mean, two[b] - mean) for a, b in ends])


def chance_bound(one: Tensor, two: Tensor, mean: Tensor, comparisons: float) -> float:
    """Return the residual correlation that no pair of unrelated images should reach; -1 for few.

    Fisher's z of random pairs that aren't plainly the same picture is taken as normal. Its spread
    is that of the farthest tail which related pairs, such as frames of a film, don't widen.
    """
    if len(two) < _MIN_FOR_MEAN:
        return -1.0
    pairs = np.random.default_rng(0).integers(0, [len(one), len(two)], (_RANDOM_PAIRS, 2))
    if one is two:
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    correlation = residual_correlation(one, two, torch.from_numpy(pairs), mean).numpy()
    z = np.arctanh(np.clip(correlation[correlation < THRESHOLD], -0.9999, None))
    median = np.quantile(z, 0.5)
    spreads = [(np.quantile(z, 1 - tail) - median) / norm.isf(tail) for tail in _TAILS]
    spread = spreads[0]
    for wider in spreads[1:]:
        if wider > _MAX_WIDENING * spread:
            break
        spread = wider
    return float(np.tanh(median + spread * norm.isf(_FALSE_PAIRS / comparisons)))
