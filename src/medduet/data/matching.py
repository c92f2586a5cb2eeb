"""Finds in one set the pictures that another was made from, by their content.

Thumbnails of both sets are compared each with each, without what all pictures have in common, and
the most similar again at the size of the target. How the target was made (the whole picture or its
central square, and the filter it was reduced by) is estimated from a sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from medduet.data.cache import ProgressFactory, counted
from medduet.data.chunks import rows_per_chunk
from medduet.data.imageset import Images, Split
from medduet.data.pixels import resize_mask
from medduet.data.thumbnails import (
    SIDE,
    chance_bound,
    grey,
    mean_vector,
    residual_correlation,
    unit_vectors,
)

MATCHED, AMBIGUOUS, UNMATCHED, NO_MASK = "matched", "ambiguous", "unmatched", "no mask"
STATES = (MATCHED, AMBIGUOUS, UNMATCHED, NO_MASK)
MIN_SCORE = 0.95
"""Correlation, the mean of the source removed; less is another picture."""
MIN_MARGIN = 0.5
"""Share by which 1 - score must be less than that of the next picture with another mask."""
MAX_DISTANCE = 6.0
"""Largest 1 - score of a match, as a multiple of what is typical of the set.

All images of a set were made alike, so what differs more is a near-duplicate of the source's.
"""
FILTERS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear", "antialias": True},
    "bicubic": {"mode": "bicubic", "antialias": True},
    "area": {"mode": "area"},
    "bilinear without smoothing": {"mode": "bilinear"},
    "nearest": {"mode": "nearest-exact"},
}
_ROUNDING = 1e-4  # 1 - score that grey levels of 8 bits alone may cause
_CANDIDATES = 8
_SAMPLE = 100
_QUANTILE = 0.9  # of the sample, since most of it may not be in the source
_BLOCK = 2048


@dataclass(frozen=True)
class View:
    """How a target was made from its source.

    Attributes:
        size: height and width of the target in pixels.
        window: ``whole`` (stretched, if the proportions differ) or ``square``, from the centre.
        filter: a key of `FILTERS`.
    """

    size: tuple[int, int]
    window: str = "whole"
    filter: str = "bilinear"

    def vectors(
        self,
        images: Images,
        rows: NDArray[np.int64] | None = None,
        progress: ProgressFactory | None = None,
    ) -> Tensor:
        """Return images, or those at `rows`, as vectors ``(N, D)``; flat ones are 0."""
        rows = np.arange(len(images)) if rows is None else rows
        step, vectors = rows_per_chunk(images.shape), []
        with counted(progress, "read images", len(rows)) as advance:
            for start in range(0, len(rows), step):
                pixels = grey(self._crop(np.asarray(images[rows[start : start + step]])))
                if pixels.shape[2:] != self.size:
                    pixels = interpolate(pixels, self.size, **FILTERS[self.filter]).clamp(0, 255)
                unit, flat = unit_vectors(pixels)
                vectors.append(unit * ~flat[:, None])
                advance(len(pixels))
        return torch.cat(vectors)

    def masks(self, masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return masks of the source, ``(N, H, W)``, at the target's size.

        Nearest neighbour keeps the area of small lesions best (``benchmarks/attach_masks.py``).
        """
        return resize_mask(self._crop(masks), *self.size)

    def _crop(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.window == "whole":
            return pixels
        height, width = pixels.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return pixels[:, top : top + side, left : left + side]


def match_images(
    target: Images, source: Split, progress: ProgressFactory | None = None
) -> tuple[pd.DataFrame, View]:
    """Find each image of `target` in `source`, which has masks; both are read in chunks.

    Returns:
        One row per image of the target, and how it was made. The columns: ``row``, the most
        similar image of the source; ``score``, their correlation at the target's size, the mean of
        the source removed; ``rival``, the next one with another mask, -1 without; ``margin``, by
        what share 1 - score is less than the rival's; ``state``, one of `STATES`.
    """
    size = int(target.shape[1]), int(target.shape[2])
    thumbnail = View((min(SIDE, size[0]), min(SIDE, size[1])))
    thumbnails = thumbnail.vectors(target, progress=progress)
    sample = np.unique(np.linspace(0, len(target) - 1, _SAMPLE).astype(np.int64))

    def similarity(one: Tensor, two: Tensor) -> float:
        return float((one * two).sum(dim=1).quantile(_QUANTILE))

    # The window shows in thumbnails; the filter, at the target's size.
    square = source.images.shape[1] != source.images.shape[2] and size[0] == size[1]
    windows = {}
    for window in ("whole", "square")[: 1 + square]:
        vectors = replace(thumbnail, window=window).vectors(source.images, progress=progress)
        nearest = _correlation(thumbnails[torch.from_numpy(sample)], vectors).max(dim=1)
        windows[window] = float(nearest.values.quantile(_QUANTILE)), nearest.indices, vectors
    window = max(windows, key=lambda name: windows[name][0])
    _, rows, vectors = windows[window]
    sampled = View(size).vectors(target, sample)
    views = [View(size, window, name) for name in FILTERS]
    view = max(
        views, key=lambda view: similarity(view.vectors(source.images, rows.numpy()), sampled)
    )
    count = min(_CANDIDATES, len(source))
    candidates = torch.cat(
        [_correlation(b, vectors).topk(count).indices for b in torch.split(thumbnails, _BLOCK)]
    ).numpy()
    bound = chance_bound(thumbnails, vectors, mean_vector(vectors), len(target) * len(source))
    score = _scores(target, source, candidates, view, progress)
    return _decide(candidates, score, max(bound, MIN_SCORE), source, view), view


def _correlation(target: Tensor, source: Tensor) -> Tensor:
    """Return how each of the target correlates with each of the source, ``(n, M)``."""
    mean = mean_vector(source)
    return normalize(target - mean) @ normalize(source - mean).T


def _scores(
    target: Images,
    source: Split,
    candidates: NDArray[np.int64],
    view: View,
    progress: ProgressFactory | None,
) -> NDArray[np.float32]:
    """Return the correlation of each target with its candidates at the target's size."""
    spread = np.unique(np.linspace(0, len(source) - 1, 10 * _SAMPLE).astype(np.int64))
    mean = mean_vector(view.vectors(source.images, spread))
    scores, step = [], max(1, rows_per_chunk(target.shape) // _CANDIDATES)
    with counted(progress, "compare images", len(target)) as advance:
        for start in range(0, len(target), step):
            block = candidates[start : start + step]
            rows, places = np.unique(block, return_inverse=True)
            ends = np.repeat(np.arange(len(block)), block.shape[1]), places.reshape(-1)
            one = View(view.size).vectors(target, np.arange(start, start + len(block)))
            two, pairs = view.vectors(source.images, rows), torch.from_numpy(np.stack(ends, axis=1))
            scores.append(residual_correlation(one, two, pairs, mean).reshape(block.shape))
            advance(len(block))
    return torch.cat(scores).numpy()


def _decide(
    candidates: NDArray[np.int64],
    score: NDArray[np.float32],
    min_score: float,
    source: Split,
    view: View,
) -> pd.DataFrame:
    order = np.argsort(-score, axis=1, kind="stable")
    candidates = np.take_along_axis(candidates, order, axis=1)
    score = np.take_along_axis(score, order, axis=1)
    best, high = candidates[:, 0], score[:, 0][score[:, 0] >= min_score]
    if len(high):
        typical = max(float(1 - np.quantile(high, 0.75)), _ROUNDING)
        min_score = max(min_score, 1 - MAX_DISTANCE * typical)
    distance = np.maximum(1 - score, 1e-6)
    margins = 1 - distance[:, :1] / distance
    rivals, margin = np.full(len(best), -1), np.ones(len(best), np.float32)
    for i, rows in enumerate(candidates):
        for row, each in zip(rows[1:], margins[i, 1:], strict=True):
            # Masks are read only of those that could be taken for the best.
            clear = score[i, 0] < min_score or each >= MIN_MARGIN
            if clear or not _same_mask(source, view, best[i], row):
                rivals[i], margin[i] = row, each
                break
    state = np.select(
        [score[:, 0] < min_score, ~source.known_masks[best], margin < MIN_MARGIN],
        [UNMATCHED, NO_MASK, AMBIGUOUS],
        MATCHED,
    )
    columns = {"row": best, "score": score[:, 0], "rival": rivals, "margin": margin, "state": state}
    return pd.DataFrame(columns)


def _same_mask(source: Split, view: View, one: int, two: int) -> bool:
    rows = np.array([one, two])
    if source.masks is None or not source.known_masks[rows].all():
        return False
    first, second = view.masks(source.masks[rows])
    return bool((first == second).all())
