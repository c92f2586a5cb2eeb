"""Reads masks: first which values a file has, then, with what they mean in the set, classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.data.pixels import side_that_keeps
from medduet.data.reading.core import Facts, Frame, ReadOptions, refusal
from medduet.data.reading.images import opened, read_pictures
from medduet.data.reading.shape import fitted_mask

Integers = NDArray[np.int64]
_GREY = 0x010101
COLOURED = 1 << 24
"""Values of masks that are colours, red << 16 | green << 8 | blue, have this bit."""


class MaskValues(NamedTuple):
    """What is in a mask file: its values, ascending, and of each of them the rest, ``(V,)``.

    Attributes:
        values: levels of grey, indices of a palette, or colours (see `COLOURED`).
        colours: as which colours they are shown.
        pixels: how many have the value.
        outermost: how many of these are in the first or last row or column.
        lossy: whether the file is compressed so that values may have changed.
    """

    values: Integers
    colours: Integers
    pixels: Integers
    outermost: Integers
    lossy: bool


class MaskClasses(NamedTuple):
    """What the values of all masks of a set mean.

    Attributes:
        values: ``(V,)``, ascending; a value that is none of them counts as the nearest.
        classes: ``(V,)`` uint8, the class of each; 0 is the background.
        by_colour: whether values are the colours that a palette or levels of grey stand for.
    """

    values: Integers
    classes: NDArray[np.uint8]
    by_colour: bool = False

    def of(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each of `values`."""
        # Halves are rounded up: of 0 and 255, 128 is nearer to 255.
        bounds = (self.values[1:] + self.values[:-1] + 1) // 2
        return self.classes[np.searchsorted(bounds, values, side="right")]


class Pair(NamedTuple):
    """The frames of a file and their masks, as `ReadOptions` ask for.

    Attributes:
        images: ``(K, H, W)`` or ``(K, H, W, 3)`` uint8.
        masks: ``(K, H, W)`` uint8 classes; None without.
        lossless_side: of images so large that no mask class vanishes; 0 if none does now.
        remarks: as of `Picture`.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None
    lossless_side: int
    remarks: Sequence[str]


def probe_pair(job: tuple[Path, Sequence[Path]]) -> tuple[Facts, str, list[MaskValues]]:
    """Return what the header of an image says, its kind, and the values of its masks.

    Raises:
        DataError: a file can't be read, or is no mask of this image.
        MissingFileError: a file does not exist.
    """
    path, masks = job
    with opened(path) as source:
        facts, kind = source.facts, source.kind
    return facts, kind, [mask_values(mask, facts) for mask in masks]


def read_pair(
    job: tuple[Path, Sequence[Path]], options: ReadOptions, meaning: MaskClasses | None
) -> Pair:
    """Read a file, and its masks if it has any."""
    path, paths = job
    pictures = read_pictures(path, options)
    masks, side = read_mask(paths, meaning, options) if paths and meaning else (None, 0)
    images = np.stack([picture.fitted for picture in pictures])
    return Pair(images, masks, side, pictures[0].remarks)


def mask_values(path: Path, like: Facts) -> MaskValues:
    """Return the values of a mask of an image with such facts (its channels don't matter)."""
    with opened(path) as source:
        if source.facts._replace(channels=like.channels) != like:
            shapes = [f"{n} x {height} x {width}" for n, _, height, width in (like, source.facts)]
            raise refusal(path, f"a mask of {shapes[0]} (frames x height x width)", shapes[1])
        tallies = [_tally(path, frame) for frame in source.frames(None)]
    values, colours, pixels, outermost = np.concatenate(tallies, axis=1)
    numbers, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    if numbers[0] < 0:
        raise refusal(path, "classes from 0 on", f"the value {numbers[0]}")
    total, edge = (np.bincount(inverse, of).astype(np.int64) for of in (pixels, outermost))
    return MaskValues(numbers, colours[first], total, edge, source.lossy)


def _tally(path: Path, frame: Frame) -> Integers:
    """Return values, colours, pixels and outermost pixels of one frame, ``(4, V)``."""
    stored, shown = _integers(path, frame), _colours(frame)
    values, first, pixels = np.unique(stored, return_index=True, return_counts=True)
    colours = values if shown is None else shown.ravel()[first]
    if shown is None or len(set(colours.tolist())) < len(colours):  # values tell more apart
        colours = np.where(values < 256, values * _GREY | COLOURED, values << 25)
    edge = (stored[0], stored[-1], stored[1:-1, 0], stored[1:-1, -1])
    outermost = np.zeros_like(values)
    for number, count in zip(*np.unique(np.concatenate(edge), return_counts=True), strict=True):
        outermost[np.searchsorted(values, number)] = count
    return np.stack([values, colours, pixels, outermost])


def read_mask(
    paths: Sequence[Path], meaning: MaskClasses, options: ReadOptions
) -> tuple[NDArray[np.uint8], int]:
    """Read the masks of one image and unite them; where several meet, the highest class counts.

    Args:
        paths: its mask files, each of all frames.
        meaning: what their values mean.
        options: as for the image; `channels` and `window` don't matter.

    Returns:
        Classes as uint8 ``(K, size, size)``, taken at the nearest pixel centres; and the size at
        which no class would vanish, 0 if none does.
    """
    masks, sides = zip(*(_classes(path, meaning, options) for path in paths), strict=True)
    return np.max(masks, axis=0), max(sides)


def _classes(
    path: Path, meaning: MaskClasses, options: ReadOptions
) -> tuple[NDArray[np.uint8], int]:
    masks, side = [], 0
    with opened(path) as source:
        for frame in source.frames(None):
            colours = _colours(frame) if meaning.by_colour else None
            whole = meaning.of(_integers(path, frame) if colours is None else colours)
            masks.append(fitted_mask(whole, options))
            side = max(side, side_that_keeps(whole, masks[-1]))
    return np.stack(masks), side


def _integers(path: Path, frame: Frame) -> NDArray[Any]:
    """Return the values of a mask ``(H, W)`` as integers."""
    values = frame.values if frame.classes is None else frame.classes
    if values.ndim == 3:
        packed = _packed(values)
        return packed if (values != values[:, :, :1]).any() else values[:, :, 0]
    if values.dtype.kind == "f":
        if not (whole := np.isfinite(values) & (values == np.rint(values))).all():
            raise refusal(path, "whole numbers", f"{values[~whole][0]}")
        values = np.clip(values, -1, 1 << 16)
    return values.astype(np.int32)


def _colours(frame: Frame) -> NDArray[np.int32] | None:
    """Return the colours of a mask ``(H, W)``; None where it has more than 8 bits."""
    if frame.values.dtype != np.uint8:
        return None
    if frame.values.ndim == 2:
        shown = frame.values if frame.classes is None else frame.classes
        return shown.astype(np.int32) * _GREY | COLOURED
    return _packed(frame.values)


def _packed(values: NDArray[np.uint8]) -> NDArray[np.int32]:
    red, green, blue = np.moveaxis(values.astype(np.int32), 2, 0)
    packed: NDArray[np.int32] = COLOURED | red << 16 | green << 8 | blue
    return packed
