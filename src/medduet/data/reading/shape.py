"""Brings frames to the range 0 to 255 and to one size."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medduet.data.pixels import resize_image, resize_mask, to_grey
from medduet.data.reading.core import Frame, ReadOptions


def value_range(values: NDArray[Any]) -> tuple[float, float] | None:
    """Return the smallest and the largest finite value, or None if there is none."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Return values with `low` at 0 and `high` at 255, clipped; NaN is 0.

    Example:
        >>> scaled(np.array([[-5, 0, 500, 1000]]), 0, 1000).tolist()
        [[0.0, 0.0, 127.5, 255.0]]
    """
    if not high > low:
        return np.zeros(values.shape, np.float32)
    result = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    result = np.nan_to_num(result, nan=0) if values.dtype.kind == "f" else result
    return result.astype(np.float32)


def levels(
    frame: Frame, limits: tuple[float, float] | None, channels: Literal[1, 3]
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return a frame from 0 to 255 at its own size, ``(H, W)``, or ``(H, W, 3)`` if in colour.

    Args:
        frame: what was read.
        limits: the smallest and the largest value of its file, for frames that are stretched.
        channels: 1 turns colours to grey.
    """
    values: NDArray[Any] = frame.values
    if frame.is_stretched or frame.shown is not None:
        values = scaled(values, *(frame.shown or limits or value_range(values) or (0.0, 0.0)))
        values = 255 - values if frame.inverted else values
    if values.ndim == 3 and channels == 1:
        values = to_grey(values)
    return values


def fitted(values: NDArray[Any], options: ReadOptions) -> NDArray[np.uint8]:
    """Return values of 0 to 255 as uint8 of the size and with the channels asked for."""
    height, width = _inner(values.shape[0], values.shape[1], options)
    image = _padded(rounded(resize_image(values, height, width)), options.sides)
    if image.ndim == 2 and options.channels == 3:
        image = np.repeat(image[:, :, None], 3, axis=2)
    return image


def rounded(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return values of 0 to 255 as uint8."""
    if values.dtype == np.uint8:
        return values
    whole: NDArray[np.uint8] = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return whole


def fitted_mask(values: NDArray[Any], options: ReadOptions) -> NDArray[Any]:
    """Return a mask ``(H, W)`` of the size asked for, placed as `fitted` places its image."""
    height, width = _inner(values.shape[0], values.shape[1], options)
    return _padded(resize_mask(values, height, width), options.sides)


def restore_mask(
    mask: NDArray[np.uint8], height: int, width: int, options: ReadOptions
) -> NDArray[np.uint8]:
    """Return a mask of a fitted image, ``(S, S)`` of classes, at the image's original size.

    Each class is resized bilinearly, and each pixel gets the class that is most of it, so outlines
    are smooth.

    Example:
        >>> mask = np.array([[0, 0, 0], [0, 2, 2], [0, 0, 0]], np.uint8)
        >>> restore_mask(mask, 1, 3, ReadOptions(size=3)).tolist()
        [[0, 2, 2]]
    """
    mask = _unpadded(mask, height, width, options)
    if mask.shape == (height, width):
        return mask
    classes = np.unique(mask)
    result = np.full((height, width), classes[0], np.uint8)
    most = np.zeros((height, width), np.float32)
    for number in classes if len(classes) > 1 else ():
        share = resize_image((mask == number).astype(np.float32), height, width)
        result[share > most] = number
        np.maximum(most, share, out=most)
    return result


def restore_map(
    values: NDArray[np.float32], height: int, width: int, options: ReadOptions
) -> NDArray[np.float32]:
    """Return a heat map of a fitted image, ``(S, S)``, at the image's original size."""
    return resize_image(_unpadded(values, height, width, options), height, width)


def _unpadded(values: NDArray[Any], height: int, width: int, options: ReadOptions) -> NDArray[Any]:
    """Return what `_padded` put into the middle."""
    inner = _inner(height, width, options)
    top, left = ((whole - part) // 2 for whole, part in zip(values.shape, inner, strict=True))
    return values[top : top + inner[0], left : left + inner[1]]


def _inner(height: int, width: int, options: ReadOptions) -> tuple[int, int]:
    """Return height and width of the image within the frame."""
    whole = options.sides
    if options.fit == "stretch":
        return whole
    if height * whole[1] >= width * whole[0]:
        return whole[0], max(1, round(width * whole[0] / height))
    return max(1, round(height * whole[1] / width)), whole[1]


def _padded(values: NDArray[Any], sides: tuple[int, int]) -> NDArray[Any]:
    """Return values in the middle of a black frame."""
    height, width = values.shape[:2]
    if (height, width) == sides:
        return values
    result = np.zeros((*sides, *values.shape[2:]), values.dtype)
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    result[top : top + height, left : left + width] = values
    return result
