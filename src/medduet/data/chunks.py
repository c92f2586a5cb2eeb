"""A walk over a large array in chunks of a few megabytes, which is how all of them are read."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 4 << 20


def rows_per_chunk(shape: tuple[int, ...], chunk_bytes: int = CHUNK_BYTES) -> int:
    """Return how many rows of a uint8 array of `shape` make a chunk.

    Example:
        >>> rows_per_chunk((100, 2048, 1024))
        2
    """
    return max(1, chunk_bytes // max(1, prod(shape[1:])))


def iterate_chunks(
    images: Any, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Yield the rows of `images` chunk by chunk, each with its place along the first axis.

    Args:
        images: ``(N, ...)`` uint8, an array or `medduet.data.imageset.Rows`.
        chunk_bytes: size of a chunk; a single row may be larger.

    Example:
        >>> [(rows.start, len(chunk)) for rows, chunk in iterate_chunks(np.zeros((3, 2048, 1024)))]
        [(0, 2), (2, 1)]
    """
    step = rows_per_chunk(images.shape, chunk_bytes)
    for start in range(0, len(images), step):
        rows = slice(start, min(start + step, len(images)))
        yield rows, np.ascontiguousarray(images[rows])
