"""Finds in one set the pictures that another was made from, by their content.

Thumbnails of both sets are compared each with each, what all pictures have in common removed, and
the few most alike again at the size of the target. How the target was made (the whole picture or
its central square, and the filter it was reduced by) is found from a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from medduet.data.archive import rows_per_chunk
from medduet.data.cache import ProgressFactory, counted
from medduet.data.imageset import Images, Split
from medduet.data.thumbnails import (
    ENOUGH,
    RANDOM_PAIRS,
    SIDE,
    chance_bound,
    common,
    grey,
    pieces,
    residual,
    unit_vectors,
)

MATCHED, AMBIGUOUS, UNMATCHED, NO_MASK = "matched", "ambiguous", "unmatched", "no mask"
STATES = (MATCHED, AMBIGUOUS, UNMATCHED, NO_MASK)
LEAST_SCORE = 0.95
"""Correlation with what the source's images have in common removed; less is another picture."""
LEAST_MARGIN = 0.5
"""Share by which the match must be less unlike the target than the next with another mask."""
MOST_UNLIKE = 6.0
"""How many times as unlike its source as is typical of the set an image may be.

All images of a set were made alike, so what differs more is a near-duplicate of the source's.
"""
FILTERS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear", "antialias": True},
    "bicubic": {"mode": "bicubic", "antialias": True},
    "area": {"mode": "area"},
    "bilinear without smoothing": {"mode": "bilinear"},
    "nearest": {"mode": "nearest-exact"},
}
_ROUNDING = 1e-4  # unlikeness that grey levels of 8 bits alone may cause
_CANDIDATES = 8
_SAMPLE = 100
_BEST = 0.9  # quantile of the sample that is looked at, as most may not be in the source
_BLOCK = 2048
_PARTS = 8  # of a piece, each compared with several times as many images

Pieces = Callable[[], Iterator[NDArray[np.uint8]]]


@dataclass(frozen=True)
class View:
    """How a target was made from its source.

    Attributes:
        size: height and width of the target in pixels.
        window: ``whole``, stretched if its sides ask for it, or ``square``, cut from the centre.
        filter: a key of `FILTERS`.
    """

    size: tuple[int, int]
    window: str = "whole"
    filter: str = "bilinear"

    def images(self, pixels: NDArray[np.uint8], size: tuple[int, int] | None = None) -> Tensor:
        """Return source images as grey ``(N, 1, *size)`` float32, by default of the own size."""
        size = size or self.size
        seen = grey(self._cut(pixels))
        if seen.shape[2:] == size:
            return seen
        return interpolate(seen, size, **FILTERS[self.filter]).clamp(0, 255)

    def masks(self, masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return source masks ``(N, H, W)`` at the target's size.

        They are resized to the nearest pixel, as everywhere: on lesions of BUSI at 28 and 64 pixels
        it keeps the area best, and the outline as well as the larger share of each pixel does
        (``benchmarks/attach_masks.py``).
        """
        seen = torch.from_numpy(np.ascontiguousarray(self._cut(masks)))
        return interpolate(seen[:, None], self.size, mode="nearest-exact")[:, 0].numpy()

    def _cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.window == "whole":
            return pixels
        height, width = pixels.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return pixels[:, top : top + side, left : left + side]


@dataclass(frozen=True)
class Matches:
    """What was found for each image of the target.

    Attributes:
        view: how the target was made.
        rows: ``(N,)`` int64, the most alike image of the source.
        rivals: ``(N,)`` int64, the next one whose mask differs; -1 if there is none.
        score: ``(N,)`` float32, correlation with the most alike at the target's size, what all
            source images have in common removed.
        margin: ``(N,)`` float32, by what share the unlikeness (1 - score) of the most alike is
            less than its rival's; 1 without a rival.
        state: ``(N,)`` text, one of `STATES`.
    """

    view: View
    rows: NDArray[np.int64]
    rivals: NDArray[np.int64]
    score: NDArray[np.float32]
    margin: NDArray[np.float32]
    state: NDArray[np.str_]


def match_images(
    target: Pieces, shape: tuple[int, ...], source: Split, progress: ProgressFactory | None = None
) -> Matches:
    """Find each image of a target in a source.

    Args:
        target: gives the images from the first to the last, in pieces; it is called twice.
        shape: of all of them, ``(N, H, W)`` or ``(N, H, W, C)``.
        source: the images they may be made from, with masks.
        progress: draws the reading.
    """
    size = (shape[1], shape[2])
    sampled = np.unique(np.linspace(0, shape[0] - 1, _SAMPLE).astype(np.int64))
    vectors, sample = _describe_target(target, shape, sampled, progress)
    view, described = _find_view(vectors[torch.from_numpy(sampled)], sample, source, size, progress)
    few, bound = _most_alike(vectors, described)
    return _decide(target, shape, few, max(bound, LEAST_SCORE), source, view, progress)


def _describe_target(
    target: Pieces,
    shape: tuple[int, ...],
    sampled: NDArray[np.int64],
    progress: ProgressFactory | None,
) -> tuple[Tensor, NDArray[np.uint8]]:
    """Return the thumbnails ``(N, D)`` of the target, and its images at `sampled`."""
    view = View(_thumbnail((shape[1], shape[2])))
    vectors, sample, start = torch.empty(shape[0], view.size[0] * view.size[1]), [], 0
    with counted(progress, "read the target", int(np.prod(shape))) as read:
        for piece in target():
            here = sampled[(sampled >= start) & (sampled < start + len(piece))]
            sample.append(piece[here - start])
            vectors[start : start + len(piece)] = _vectors(view, piece)
            start += len(piece)
            read(piece.nbytes)
    return vectors, np.concatenate(sample)


def _thumbnail(size: tuple[int, int]) -> tuple[int, int]:
    return min(SIDE, size[0]), min(SIDE, size[1])


def _vectors(view: View, pixels: NDArray[np.uint8]) -> Tensor:
    """Return images as vectors; those that are flat are 0 and so like nothing."""
    vectors, flat = unit_vectors(view.images(pixels))
    return vectors * ~flat[:, None]


def _find_view(
    thumbnails: Tensor,
    sample: NDArray[np.uint8],
    source: Split,
    size: tuple[int, int],
    progress: ProgressFactory | None,
) -> tuple[View, Tensor]:
    """Return the view by which the sample is most alike its source, and the source's thumbnails.

    The window is found at the size of thumbnails, the filter, whose traces these don't show, at
    that of the target.
    """
    height, width = source.images.shape[1:3]
    windows = ["whole", "square"] if height != width and size[0] == size[1] else ["whole"]
    seen: dict[str, tuple[float, Tensor, Tensor]] = {}
    for window in windows:
        view, vectors = View(_thumbnail(size), window), []
        with counted(progress, "read the source", int(np.prod(source.images.shape))) as read:
            for _, piece in pieces(source.images):
                vectors.append(_vectors(view, piece))
                read(piece.nbytes)
        described = torch.cat(vectors)
        likeness, rows = _products(thumbnails, described).max(dim=1)
        seen[window] = float(likeness.quantile(_BEST)), rows, described
    window = max(seen, key=lambda name: seen[name][0])
    _, rows, described = seen[window]
    wanted = _vectors(View(size), sample)
    alike: dict[str, float] = {}
    for name in FILTERS:
        view = View(size, window, name)
        made = _vectors_at(source.images, rows.numpy(), view)
        alike[name] = float((made * wanted).sum(dim=1).quantile(_BEST))
    return View(size, window, max(alike, key=alike.__getitem__)), described


def _products(target: Tensor, source: Tensor) -> Tensor:
    """Return how each of the target correlates with each of the source, ``(n, M)``."""
    mean = common(source)
    one, two = (torch.nn.functional.normalize(vectors - mean) for vectors in (target, source))
    return one @ two.T


def _most_alike(target: Tensor, source: Tensor) -> tuple[NDArray[np.int64], float]:
    """Return for each of the target the few most alike of the source, and the bound of chance."""
    number = min(_CANDIDATES, len(source))
    few = torch.cat(
        [
            _products(target[start : start + _BLOCK], source).topk(number, dim=1).indices
            for start in range(0, len(target), _BLOCK)
        ]
    ).numpy()
    if len(source) < ENOUGH:
        return few, -1.0
    rng = np.random.default_rng(0)
    ends = [rng.integers(0, len(vectors), RANDOM_PAIRS) for vectors in (target, source)]
    likeness = [
        residual(target[torch.from_numpy(a)], source[torch.from_numpy(b)], common(source))
        for a, b in zip(*(np.array_split(end, RANDOM_PAIRS // _BLOCK) for end in ends), strict=True)
    ]
    bound = chance_bound(torch.cat(likeness).numpy(), len(target) * len(source))
    return few, bound


def _decide(
    target: Pieces,
    shape: tuple[int, ...],
    few: NDArray[np.int64],
    least: float,
    source: Split,
    view: View,
    progress: ProgressFactory | None,
) -> Matches:
    """Compare the few at the size of the target, and say which matches hold."""
    spread = np.unique(np.linspace(0, len(source) - 1, 10 * _SAMPLE).astype(np.int64))
    mean = common(_vectors_at(source.images, spread, view))
    score = np.empty(few.shape, np.float32)
    start = 0
    with counted(progress, "compare images", int(np.prod(shape))) as read:
        for piece in target():
            for part in np.array_split(piece, min(_PARTS, len(piece))):
                here = slice(start, start + len(part))
                rows, places = np.unique(few[here], return_inverse=True)
                made = _vectors_at(source.images, rows, view)[torch.from_numpy(places.reshape(-1))]
                wanted = _vectors(View(view.size), part).repeat_interleave(few.shape[1], dim=0)
                score[here] = residual(wanted, made, mean).reshape(len(part), -1).numpy()
                start += len(part)
            read(piece.nbytes)
    order = np.argsort(-score, axis=1, kind="stable")
    few, score = np.take_along_axis(few, order, axis=1), np.take_along_axis(score, order, axis=1)
    least = _least(score[:, 0], least)
    judged = [_rival(*one, least, source, view) for one in zip(few, score, strict=True)]
    rivals, margin = (np.array(column) for column in zip(*judged, strict=True))
    best = few[:, 0]
    state = np.where(margin < LEAST_MARGIN, AMBIGUOUS, MATCHED)
    state = np.where(source.known_masks[best], state, NO_MASK)
    state = np.where(score[:, 0] < least, UNMATCHED, state)
    return Matches(view, best, rivals, score[:, 0], margin.astype(np.float32), state)


def _vectors_at(images: Images, rows: NDArray[np.int64], view: View) -> Tensor:
    """Return the images at `rows` as vectors; only these are kept of a piece that is read."""
    step = rows_per_chunk(images.shape)
    parts = range(0, len(rows), step)
    return torch.cat([_vectors(view, images[rows[start : start + step]]) for start in parts])


def _least(score: NDArray[np.float32], least: float) -> float:
    """Return the score that a match needs in this set, at least `least`."""
    high = score[score >= least]
    if not len(high):
        return least
    typical = max(float(1 - np.quantile(high, 0.75)), _ROUNDING)
    return max(least, 1 - MOST_UNLIKE * typical)


def _rival(
    rows: NDArray[np.int64],
    score: NDArray[np.float32],
    least: float,
    source: Split,
    view: View,
) -> tuple[int, float]:
    """Return the most alike row, after the first, that has another mask, and the first's margin."""
    unlike = np.maximum(1 - score, 1e-6)
    margin = 1 - unlike[0] / unlike
    for row, each in zip(rows[1:], margin[1:], strict=True):
        # Masks are read only of the few that could be taken for the first.
        if (
            score[0] < least
            or each >= LEAST_MARGIN
            or not _same_mask(int(rows[0]), int(row), source, view)
        ):
            return int(row), float(each)
    return -1, 1.0


def _same_mask(one: int, two: int, source: Split, view: View) -> bool:
    known = source.known_masks
    if source.masks is None or not (known[one] and known[two]):
        return False
    first, second = view.masks(source.masks[np.array([one, two])])
    return bool((first == second).all())
