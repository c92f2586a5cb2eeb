"""Brings frames to the range 0 to 255 and to one size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.pixels import resize_image, resize_mask, to_grey
from medduet.data.reading.core import Frame, ReadOptions

_TAIL, _MOST_OF_OTHERS, _REACH = 0.005, 0.05, 2.0
_SAMPLE, _DEVIATIONS = 1 << 20, 8
Spacing = tuple[float, ...]  # of (slices,) rows and columns in mm
_OWN_RANGE = "have more than 8 bits and no --data.window: each is shown over its own range"
_OUTLIERS = "have outliers, such as hot pixels or markers, that are shown black or white"


def levels(frames: Sequence[Frame], channels: int) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Return the frames of a file from 0 to 255, grey for 1 channel, and remarks on how."""
    raw = [each.values for each in frames if each.window is None and each.values.dtype != np.uint8]
    low, high = value_range(raw) if raw else (0.0, 255.0)
    result = []
    for values, window, inverted, _ in frames:
        shown = 255 - values if inverted and values.dtype == np.uint8 else values
        if window is not None:
            shown = scaled(values, window[0] - window[1] / 2, window[0] + window[1] / 2, inverted)
        elif values.dtype != np.uint8:
            shown = scaled(values, low, high, inverted)
        result.append(to_grey(shown) if shown.ndim == 3 and channels == 1 else shown)
    clipped = any(((values < low) | (values > high)).any() for values in raw)
    return result, [_OWN_RANGE] * bool(raw) + [_OUTLIERS] * clipped


def value_range(frames: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Return the smallest and the largest value of a file, outliers such as hot pixels aside.

    Outliers are farther from the middle 99% of the values than twice the range of these, in which
    are always the median, the background of a sparse image, and 90% of what differs from it.
    Percentiles themselves would clip what is small and bright; the extremes of MRI, CT and bone
    scans were at most 1.4 of these ranges away. ValueError if no value is finite.
    """
    sample = _sample(frames)
    low = high = median = float(np.median(sample))
    if (others := sample[sample != median].astype(np.float64)).size:
        tail = min(_TAIL * sample.size / others.size, _MOST_OF_OTHERS)
        low, high = np.quantile(others, (tail, 1 - tail))
        low, high = min(low, median), max(high, median)
    reach = _REACH * (high - low)
    inside = (values[(values >= low - reach) & (values <= high + reach)] for values in frames)
    extremes = [float(x) for values in inside if values.size for x in (values.min(), values.max())]
    return min(extremes), max(extremes)


def standardised(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return frames that are shown from 4 standard deviations below their mean to 4 above.

    Both are those of what is not air: 0, or the least value where few are 0. Colours stay as they
    are, and frames of 8 bits among deeper ones, which are padding.
    """
    grey = [frame.values for frame in frames if frame.values.ndim == 2]
    if not (raw := [values for values in grey if values.dtype != np.uint8] or grey):
        return frames
    sample = _sample(raw).astype(np.float64)
    air = 0 if (sample == 0).mean() > _MOST_OF_OTHERS else sample.min()
    inside = sample[sample != air] if np.ptp(sample) else sample
    window, kind = (float(inside.mean()), _DEVIATIONS * float(inside.std())), raw[0].dtype
    return [x._replace(window=window if x.values.dtype == kind else None) for x in frames]


def _sample(frames: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return finite values of a file, about a million of them at most."""
    step = sum(values.size for values in frames) // _SAMPLE | 1  # odd: no column of an image
    sample = np.concatenate([values[np.isfinite(values)][::step] for values in frames])
    if not sample.size:
        raise ValueError("none of its values is a finite number")
    return sample


def scaled(values: NDArray[Any], low: float, high: float, inverted: bool) -> NDArray[np.uint8]:
    """Return values with `low` at 0 and `high` at 255, or `inverted`, clipped; NaN is 0."""
    result = (values - np.float64(low)) * (255 / (high - low) if high > low else 0)
    np.rint(result.clip(0, 255, out=result), out=result)
    if inverted:
        np.subtract(255, result, out=result)
    if values.dtype.kind == "f":
        result[np.isnan(result)] = 0
    return result.astype(np.uint8)


def fitted(
    values: NDArray[np.uint8], options: ReadOptions, spacing: Spacing = (), *, is_mask: bool = False
) -> NDArray[np.uint8]:
    """Return an image, a volume or a mask of the size and, but for masks, channels asked for."""
    values = values[_shown(values.shape, options)]
    inner = inner_sides(values.shape, options, spacing)
    resize = resize_mask if is_mask else resize_image
    image = _padded(resize(values, *inner), options.sides)
    grey = image.ndim == 2 and options.channels == 3 and not is_mask
    return np.repeat(image[:, :, None], 3, axis=2) if grey else image


def restore_mask(
    mask: NDArray[np.uint8], shape: tuple[int, ...], options: ReadOptions, spacing: Spacing = ()
) -> NDArray[np.uint8]:
    """Return a mask of a fitted image, ``(S, S)`` of classes, in the image's original `shape`.

    Each class is resized bilinearly, and a pixel gets the class that is most of it.
    """
    whole = np.zeros(shape, np.uint8)
    result = whole[_shown(whole.shape, options)]
    mask = _unpadded(mask, result.shape, options, spacing)
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
    values: NDArray[np.float32], shape: tuple[int, ...], options: ReadOptions, spacing: Spacing = ()
) -> NDArray[np.float32]:
    """Return a map of numbers of a fitted image, ``(S, S)``, in the image's original `shape`."""
    whole = np.zeros(shape, np.float32)
    part = whole[_shown(whole.shape, options)]
    part[:] = resize_image(_unpadded(values, part.shape, options, spacing), *part.shape)
    return whole


def _shown(shape: tuple[int, ...], options: ReadOptions) -> tuple[slice, ...]:
    """Return the part of an image that is shown: all of it, unless it is cropped."""
    (height, width), sides = shape[:2], options.sides
    if options.fit != "crop" or len(sides) == 3:
        return (slice(None),)
    rows = min(height, max(1, round(width * sides[0] / sides[1])))
    columns = min(width, max(1, round(height * sides[1] / sides[0])))
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def inner_sides(
    shape: tuple[int, ...], options: ReadOptions, spacing: Spacing = ()
) -> tuple[int, ...]:
    """Return height and width of what is shown within the square; or the sides of a volume."""
    sides = options.sides
    if options.spacing or (len(sides) == 3 and options.fit != "stretch"):
        extent = np.multiply(shape[: len(sides)], spacing or 1)
        step = np.array(options.spacing or (extent / sides).max())
        return tuple(np.maximum(np.rint(extent / step), 1).astype(int).tolist())
    if options.fit != "pad":
        return sides
    height, width = shape[:2]
    if height * sides[1] >= width * sides[0]:
        return sides[0], max(1, round(width * sides[0] / height))
    return max(1, round(height * sides[1] / width)), sides[1]


def _padded(values: NDArray[Any], sides: tuple[int, ...]) -> NDArray[Any]:
    """Return values in the middle of a black square."""
    lengths = values.shape[: len(sides)]
    missing = [max(0, side - length) for side, length in zip(sides, lengths, strict=True)]
    around = [(each // 2, each - each // 2) for each in missing]
    around += [(0, 0)] * (values.ndim - len(sides))
    return np.pad(values, around) if any(missing) else values


def _unpadded(
    values: NDArray[Any], shape: tuple[int, ...], options: ReadOptions, spacing: Spacing = ()
) -> NDArray[Any]:
    """Return what `_padded` put into the middle."""
    inner = inner_sides(shape, options, spacing)
    starts = [(side - part) // 2 for side, part in zip(values.shape, inner, strict=True)]
    return values[tuple(slice(x, x + part) for x, part in zip(starts, inner, strict=True))]
