"""A walk over a large array in chunks of a few megabytes, which is how all of them are read."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 4 << 20


def rows_per_chunk(shape: tuple[int, ...]) -> int:
    """Return how many rows of a uint8 array of `shape` make a chunk; at least one."""
    return max(1, CHUNK_BYTES // max(1, prod(shape[1:])))


def iterate_chunks(images: Any) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Yield the rows of `images` ``(N, ...)``, uint8, chunk by chunk, each with its place."""
    step = rows_per_chunk(images.shape)
    for start in range(0, len(images), step):
        rows = slice(start, min(start + step, len(images)))
        yield rows, np.ascontiguousarray(images[rows])
