"""Brings frames to the range 0 to 255 and to one size."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medduet.data.pixels import resize_image, resize_mask, to_grey
from medduet.data.reading.core import Frame, ReadOptions


def levels(frames: Sequence[Frame], channels: Literal[1, 3]) -> list[NDArray[np.uint8]]:
    """Return the frames of a file from 0 to 255 at their own size, grey for 1 channel."""
    raw = [each.values for each in frames if each.window is None and each.values.dtype != np.uint8]
    finite = (each for values in raw if (each := values[np.isfinite(values)]).size)
    extremes = [float(value) for each in finite for value in (each.min(), each.max())]
    if raw and not extremes:
        raise ValueError("none of its values is a finite number")
    result = []
    for values, window, inverted, _ in frames:
        shown = values
        if window is not None:
            shown = scaled(values, window[0] - window[1] / 2, window[0] + window[1] / 2)
        elif values.dtype != np.uint8:
            shown = scaled(values, min(extremes), max(extremes))
        shown = 255 - shown if inverted and shown is not values else shown
        result.append(to_grey(shown) if shown.ndim == 3 and channels == 1 else shown)
    return result


def scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Return values with `low` at 0 and `high` at 255, clipped; NaN is 0."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    result = (values - np.float64(low)) * (255 / (high - low))
    np.rint(result.clip(0, 255, out=result), out=result)
    if values.dtype.kind == "f":
        result[np.isnan(result)] = 0
    return result.astype(np.uint8)


def fitted(values: NDArray[np.uint8], options: ReadOptions) -> NDArray[np.uint8]:
    """Return an image of the size and with the channels asked for."""
    values = values[_shown(values.shape, options)]
    image = _padded(resize_image(values, *_inner(values.shape, options)), options.sides)
    grey = image.ndim == 2 and options.channels == 3
    return np.repeat(image[:, :, None], 3, axis=2) if grey else image


def fitted_mask(values: NDArray[Any], options: ReadOptions) -> NDArray[Any]:
    """Return a mask ``(H, W)`` of the size asked for, placed as `fitted` places its image."""
    values = values[_shown(values.shape, options)]
    return _padded(resize_mask(values, *_inner(values.shape, options)), options.sides)


def restore_mask(
    mask: NDArray[np.uint8], height: int, width: int, options: ReadOptions
) -> NDArray[np.uint8]:
    """Return a mask of a fitted image, ``(S, S)`` of classes, at the image's original size.

    Each class is resized bilinearly, and a pixel gets the class that is most of it.
    """
    whole = np.zeros((height, width), np.uint8)
    result = whole[_shown(whole.shape, options)]
    mask = _unpadded(mask, result.shape, options)
    if mask.shape == result.shape:
        result[:] = mask
        return whole
    most = np.zeros(result.shape, np.float32)
    for number in np.unique(mask):
        share = resize_image((mask == number).astype(np.float32), *result.shape)
        result[share > most] = number
        np.maximum(most, share, out=most)
    return whole


def restore_map(
    values: NDArray[np.float32], height: int, width: int, options: ReadOptions
) -> NDArray[np.float32]:
    """Return a heat map of a fitted image, ``(S, S)``, at the image's original size."""
    whole = np.zeros((height, width), np.float32)
    part = whole[_shown(whole.shape, options)]
    part[:] = resize_image(_unpadded(values, part.shape, options), *part.shape)
    return whole


def _shown(shape: tuple[int, ...], options: ReadOptions) -> tuple[slice, slice]:
    """Return the part of an image that is shown: all of it, unless it is cropped."""
    (height, width), sides = shape[:2], options.sides
    if options.fit != "crop":
        return slice(None), slice(None)
    rows = min(height, max(1, round(width * sides[0] / sides[1])))
    columns = min(width, max(1, round(height * sides[1] / sides[0])))
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def _inner(shape: tuple[int, ...], options: ReadOptions) -> tuple[int, int]:
    """Return height and width of what is shown within the square."""
    (height, width), sides = shape[:2], options.sides
    if options.fit != "pad":
        return sides
    if height * sides[1] >= width * sides[0]:
        return sides[0], max(1, round(width * sides[0] / height))
    return max(1, round(height * sides[1] / width)), sides[1]


def _padded(values: NDArray[Any], sides: tuple[int, int]) -> NDArray[Any]:
    """Return values in the middle of a black square."""
    missing = [side - length for side, length in zip(sides, values.shape[:2], strict=True)]
    around = [(each // 2, each - each // 2) for each in missing]
    return np.pad(values, around + [(0, 0)] * (values.ndim - 2)) if any(missing) else values


def _unpadded(values: NDArray[Any], shape: tuple[int, ...], options: ReadOptions) -> NDArray[Any]:
    """Return what `_padded` put into the middle."""
    inner = _inner(shape, options)
    top, left = ((side - part) // 2 for side, part in zip(values.shape, inner, strict=True))
    return values[top : top + inner[0], left : left + inner[1]]
