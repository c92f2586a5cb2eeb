"""What is measured in the pixels of each image, read in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.cache import ProgressFactory, counted
from medduet.data.imageset import Images, Split

_PIECE_BYTES = 1 << 20  # what the cache of a core holds: larger pieces are slower
SMALLEST_FOR_MARKS = 128  # pixels; below, letters are blots
_REACH = 2  # pixels to each side: a stroke is narrower than 5
_STEEP = 100  # grey levels by which a stroke is brighter than what is beside it
_SATURATED = 254
_ALIKE = 2  # grey levels that channels of a grey image may differ by, as after JPEG


@dataclass(frozen=True, eq=False)
class Looks:
    """What is known of the pixels of each of N images.

    Attributes:
        mean, spread: ``(N,)`` mean and standard deviation, in grey levels of 0 to 255.
        brightest: ``(N,)`` largest grey level.
        saturated: ``(N,)`` share of the pixels at 254 or 255.
        strokes: ``(N,)`` pixels in narrow upright strokes; 0 for images under 128 pixels.
        grey: ``(N,)`` whether three channels are equal; ``None`` for grey images.
        red_blue: ``(N,)`` mean of red less mean of blue; ``None`` for grey images.
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    brightest: NDArray[np.int64]
    saturated: NDArray[np.float64]
    strokes: NDArray[np.int64]
    grey: NDArray[np.bool_] | None
    red_blue: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class MaskCounts:
    """What is known of the mask of each of N images.

    Attributes:
        pixels: ``(N, M)`` int64 pixels of each mask class, background first.
        border: ``(N,)`` whether anything but background touches the border.
    """

    pixels: NDArray[np.int64]
    border: NDArray[np.bool_]


def look(pool: Split, progress: ProgressFactory | None = None) -> Looks:
    """Measure all images of a pool; two passes over the memory of each piece, in constant memory.

    Example:
        >>> import medduet
        >>> looks = look(medduet.open_images("phantom", size=16, count=20).pool())
        >>> looks.mean.shape, int(looks.strokes.max()), looks.grey
        ((20,), 0, None)
    """
    images, several = pool.images, pool.images.ndim == 4
    found: dict[str, Any] = {
        "mean": np.empty(len(images)),
        "spread": np.empty(len(images)),
        "brightest": np.empty(len(images), dtype=np.int64),
        "saturated": np.empty(len(images)),
        "strokes": np.zeros(len(images), dtype=np.int64),
        "grey": np.empty(len(images), dtype=bool) if several else None,
        "red_blue": np.empty(len(images)) if several else None,
    }
    levels = np.arange(256)
    marks = min(images.shape[1:3]) >= SMALLEST_FOR_MARKS
    for rows, piece in _pieces(images, "look at images", progress):
        grey = piece
        if several:
            # Channel by channel: numpy is twenty times slower along an axis of three.
            red, green, blue = (np.ascontiguousarray(piece[..., k]) for k in range(3))
            grey = ((red.astype(np.uint16) + green + blue) // 3).astype(np.uint8)
            most = np.maximum(np.maximum(red, green), blue)
            apart = most - np.minimum(np.minimum(red, green), blue)
            found["grey"][rows] = (apart <= _ALIKE).all(axis=(1, 2))
            found["red_blue"][rows] = red.mean(axis=(1, 2)) - blue.mean(axis=(1, 2))
        shares = _histograms(grey, 256) / grey[0].size
        found["mean"][rows] = mean = shares @ levels
        found["spread"][rows] = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))
        found["brightest"][rows] = 255 - (shares[:, ::-1] > 0).argmax(axis=1)
        found["saturated"][rows] = shares[:, _SATURATED:].sum(axis=1)
        if marks:
            found["strokes"][rows] = strokes(grey)
    return Looks(**found)


def strokes(grey: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels of each image ``(n, H, W)`` are in narrow, steep, upright strokes.

    It is the white top-hat along rows: what is 100 grey levels brighter than all that is as wide
    as 5 pixels. Letters and callipers have upright strokes, while bright layers of tissue lie flat.

    Example:
        >>> grey = np.full((1, 32, 32), 90, np.uint8)
        >>> grey[0, 10:20, 8], grey[0, 25] = 255, 255
        >>> strokes(grey)
        array([10])
    """
    lowest = _slide(grey, np.minimum)
    opened = _slide(lowest, np.maximum)
    return np.asarray((grey - opened >= _STEEP).sum(axis=(1, 2)), dtype=np.int64)


def _slide(grey: NDArray[np.uint8], choose: Callable[..., Any]) -> NDArray[np.uint8]:
    """Return the least or greatest of each pixel and its neighbours in the row."""
    width = grey.shape[2]
    padded = np.pad(grey, ((0, 0), (0, 0), (_REACH, _REACH)), mode="edge")
    out = padded[:, :, :width].copy()
    for shift in range(1, 2 * _REACH + 1):
        choose(out, padded[:, :, shift : shift + width], out=out)
    return out


def count_masks(masks: Images, classes: int, progress: ProgressFactory | None = None) -> MaskCounts:
    """Count the pixels of each class in masks ``(N, H, W)``.

    Example:
        >>> masks = np.zeros((1, 4, 4), np.uint8)
        >>> masks[0, 1:, 1] = 1
        >>> counts = count_masks(masks, classes=2)
        >>> counts.pixels.tolist(), counts.border.tolist()
        ([[13, 3]], [True])
    """
    pixels = np.empty((len(masks), classes), dtype=np.int64)
    border = np.empty(len(masks), dtype=bool)
    for rows, piece in _pieces(masks, "look at masks", progress):
        pixels[rows] = _histograms(piece, classes)
        ends = piece[:, [0, -1]].any(axis=(1, 2)), piece[:, :, [0, -1]].any(axis=(1, 2))
        border[rows] = ends[0] | ends[1]
    return MaskCounts(pixels, border)


def _histograms(piece: NDArray[np.uint8], bins: int) -> NDArray[np.int64]:
    """Return how often each value below `bins` occurs in each image, ``(n, bins)``."""
    shifted = piece.reshape(len(piece), -1) + (np.arange(len(piece)) * bins)[:, None]
    return np.bincount(shifted.ravel(), minlength=len(piece) * bins).reshape(len(piece), bins)


def _pieces(
    images: Images, description: str, progress: ProgressFactory | None
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    size = int(np.prod(images.shape[1:]))
    step = max(1, _PIECE_BYTES // size)
    with counted(progress, description, len(images) * size) as count:
        for start in range(0, len(images), step):
            rows = slice(start, min(start + step, len(images)))
            piece = np.ascontiguousarray(images[rows])
            yield rows, piece
            count(piece.nbytes)
