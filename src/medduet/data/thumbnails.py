"""How images are compared by content: grey thumbnails as vectors, and what correlates by chance."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from medduet.data.pixels import to_grey

SIDE = 32
"""Side of thumbnails in pixels, unless the images are smaller."""
THRESHOLD = 0.95
"""Correlation of thumbnails above which two images may be the same picture."""
MIN_FOR_MEAN = 100
"""Images from which on the mean of a set is its common anatomy and not the images themselves."""
_RANDOM_PAIRS = 50_000
_BLOCK = 2048
_FALSE_PAIRS = 0.05  # expected in a whole set by chance
_TAILS = (0.25, 0.1, 0.01)
_MAX_WIDENING = 1.25  # of the spread from one tail to the next; 1.08 at most in real sets
_FLAT = 1.0  # grey levels of standard deviation


def grey(pixels: NDArray[np.uint8]) -> Tensor:
    """Return ``(N, H, W)``, ``(N, H, W, 1)`` or ``(N, H, W, 3)`` as float32 ``(N, 1, H, W)``.

    Example:
        >>> grey(np.full((1, 1, 1, 3), 200, np.uint8)).tolist()
        [[[[200.0]]]]
    """
    if pixels.ndim == 4:
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else to_grey(pixels)
    return torch.from_numpy(pixels.astype(np.float32))[:, None]


def unit_vectors(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images ``(N, 1, H, W)`` as vectors ``(N, H * W)`` of mean 0 and length 1.

    The second value, bool ``(N,)``, is true where an image is flat, of one grey level.
    """
    centred = images.flatten(1) - images.mean(dim=(1, 2, 3))[:, None]
    return normalize(centred), centred.square().mean(dim=1).sqrt() < _FLAT


def mean_vector(vectors: Tensor) -> Tensor:
    """Return the common anatomy of a set, ``(D,)``: the mean vector, 0 for a small set."""
    if len(vectors) < MIN_FOR_MEAN:
        return torch.zeros(vectors.shape[1])
    return vectors.mean(dim=0)


def residual_correlation(one: Tensor, two: Tensor, pairs: Tensor, mean: Tensor) -> Tensor:
    """Return how ``one[a]`` and ``two[b]`` of each pair ``(a, b)`` correlate, `mean` removed."""
    return torch.cat(
        [
            cosine_similarity(one[block[:, 0]] - mean, two[block[:, 1]] - mean)
            for block in torch.split(pairs, _BLOCK)
        ]
    )


def chance_bound(one: Tensor, two: Tensor, mean: Tensor, comparisons: float) -> float:
    """Return the residual correlation that no pair of unrelated images should reach.

    It is `correlation_bound` of random pairs of rows of `one` and `two`; -1 for small sets.
    """
    if len(two) < MIN_FOR_MEAN:
        return -1.0
    pairs = np.random.default_rng(0).integers(0, [len(one), len(two)], (_RANDOM_PAIRS, 2))
    if one is two:
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    correlation = residual_correlation(one, two, torch.from_numpy(pairs), mean)
    return correlation_bound(correlation.numpy(), comparisons)


def correlation_bound(correlation: NDArray[np.float32], comparisons: float) -> float:
    """Return the correlation that 0.05 of so many `comparisons` are expected to exceed by chance.

    Fisher's z of the `correlation` of random pairs, without those that are plainly the same
    picture, is taken as normal. Its spread is read off the 99th percentile, or a lower one where
    related pairs, such as frames of one film, widen the upper tail.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> correlation = np.tanh(rng.normal(0, 0.3, 10_000)).astype(np.float32)
        >>> round(correlation_bound(correlation, comparisons=1e6), 2)
        0.92
    """
    z = np.arctanh(np.clip(correlation[correlation < THRESHOLD], -0.9999, None))
    median = np.quantile(z, 0.5)
    spreads = [(np.quantile(z, 1 - tail) - median) / norm.isf(tail) for tail in _TAILS]
    spread = spreads[0]
    for wider in spreads[1:]:
        if wider > _MAX_WIDENING * spread:
            break
        spread = wider
    return float(np.tanh(median + spread * norm.isf(_FALSE_PAIRS / comparisons)))
