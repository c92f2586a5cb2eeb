"""What comparing images by their content is made of: pieces, grey vectors, and chance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from medduet.data.archive import rows_per_chunk
from medduet.data.imageset import Images

SIDE = 32
"""Side of thumbnails in pixels, unless the images are smaller."""
ENOUGH = 100
"""Images, from which on their mean says what they have in common."""
THRESHOLD = 0.95
"""Correlation of thumbnails above which two images may be the same picture."""
RANDOM_PAIRS = 50_000
_FALSE_PAIRS = 0.05  # expected in a whole set by chance
_TAILS = (0.25, 0.1, 0.01)
_WIDER = 1.25  # by which the spread may grow with the percentile; of real sets by 1.08 at most
_FLAT = 1.0  # grey levels of standard deviation, below which a thumbnail has no picture
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns RGB to grey


def pieces(images: Images) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Give images in pieces of a few megabytes, each with the place of its first.

    Example:
        >>> [(start, len(piece)) for start, piece in pieces(np.zeros((3, 2048, 1024), np.uint8))]
        [(0, 2), (2, 1)]
    """
    step = rows_per_chunk(images.shape)
    for start in range(0, len(images), step):
        yield start, np.ascontiguousarray(images[start : start + step])


def grey(pixels: NDArray[np.uint8]) -> Tensor:
    """Return ``(N, H, W)``, ``(N, H, W, 1)`` or ``(N, H, W, 3)`` as float32 ``(N, 1, H, W)``.

    Example:
        >>> grey(np.full((1, 1, 1, 3), 200, np.uint8)).tolist()
        [[[[200.0]]]]
    """
    values = torch.from_numpy(pixels.astype(np.float32))
    if values.ndim == 3:
        return values[:, None]
    return (values if values.shape[-1] == 1 else values @ torch.tensor(_LUMA)[:, None]).movedim(
        -1, 1
    )


def unit_vectors(small: Tensor) -> tuple[Tensor, Tensor]:
    """Return images ``(N, 1, H, W)`` as vectors ``(N, H * W)`` of mean 0 and length 1.

    The second value, bool ``(N,)``, says which are flat: nothing is seen in them.
    """
    centred = small.flatten(1) - small.mean(dim=(1, 2, 3))[:, None]
    return normalize(centred), centred.square().mean(dim=1).sqrt() < _FLAT


def common(vectors: Tensor) -> Tensor:
    """Return what the images of a set have in common, ``(D,)``: their mean; 0 for a few images."""
    return vectors.mean(dim=0) if len(vectors) >= ENOUGH else torch.zeros(vectors.shape[1])


def residual(one: Tensor, two: Tensor, mean: Tensor) -> Tensor:
    """Return how vectors ``(P, D)`` correlate pair by pair once what is common is removed."""
    return cosine_similarity(one - mean, two - mean)


def chance_bound(likeness: NDArray[np.float32], tested: float) -> float:
    """Return the correlation that no two unlike images among `tested` pairs should reach.

    Fisher's z of the `likeness` of random pairs, those left out that are plainly the same picture,
    is taken as normal; beyond the bound 0.05 of the tested pairs are expected. Its spread is read
    off the 99th percentile, or a lower one where related pairs, such as frames of one film, widen
    the upper end.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> likeness = np.tanh(rng.normal(0, 0.3, 10_000)).astype(np.float32)
        >>> round(chance_bound(likeness, tested=1e6), 2)
        0.92
    """
    unlike = likeness[likeness < THRESHOLD]
    z = np.arctanh(np.clip(unlike, -0.9999, None))
    middle = np.quantile(z, 0.5)
    spreads = [(np.quantile(z, 1 - tail) - middle) / norm.isf(tail) for tail in _TAILS]
    spread = spreads[0]
    for wider in spreads[1:]:
        if wider > _WIDER * spread:
            break
        spread = wider
    return float(np.tanh(middle + spread * norm.isf(_FALSE_PAIRS / tested)))
