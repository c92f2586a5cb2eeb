"""Reads masks: first which values a file has, then, with what they mean in the set, classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.data.pixels import side_that_keeps, to_grey
from medduet.data.reading.core import (
    PICTURE,
    Affine,
    Facts,
    Frame,
    ReadOptions,
    Source,
    refusal,
    turned,
    turned_sides,
)
from medduet.data.reading.images import check_grid, opened, read_pictures
from medduet.data.reading.shape import fitted
from medduet.types import IGNORED_MASK, Modality

Integers = NDArray[np.int64]
_GREY, _FEW_LEVELS, _FROM_EACH = 0x010101, 8, 10_000
LIKE_MASKS = "have few levels of grey, as masks have"
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
        if self.by_colour:
            colours, inverse = np.unique(values, return_inverse=True)
            rgb, codes = (x[..., None] >> (16, 8, 0) & 255 for x in (colours[:, None], self.values))
            nearest: NDArray[np.intp] = np.square(rgb - codes).sum(axis=2).argmin(axis=1)[inverse]
            return self.classes[nearest.reshape(values.shape)]
        # Halves are rounded up: of 0 and 255, 128 is nearer to 255.
        bounds = (self.values[1:] + self.values[:-1] + 1) // 2
        return self.classes[np.searchsorted(bounds, values, side="right")]


class Pair(NamedTuple):
    """The frames of a file and their masks, as `ReadOptions` ask for.

    Attributes:
        images: ``(K, H, W)`` or ``(K, H, W, 3)`` uint8; or one volume ``(1, D, H, W)``.
        masks: ``(K, H, W)`` uint8 classes; None without.
        lossless_side: of images so large that no mask class vanishes; 0 if none does now.
        remarks: as of `Picture`.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None
    lossless_side: int
    remarks: Sequence[str]


class Probe(NamedTuple):
    """What the header of an image says, see `Source`, and the values of its masks.

    `shape` and `spacing` are those of slices, rows and columns, as they are `turned`; `pixel` is
    the spacing of rows and columns as they are. Spacings are empty where the file has none.
    """

    facts: Facts
    kind: str
    shape: tuple[float, ...]
    spacing: tuple[float, ...]
    pixel: tuple[float, ...]
    are_slices: bool
    modality: Modality
    patient: str
    masks: list[MaskValues]


def probe_pair(job: tuple[Path, Sequence[Path]]) -> Probe:
    """Return what the header of an image says, and the values of its masks.

    Raises:
        DataError: a file can't be read, or is no mask of this image.
        MissingFileError: a file does not exist.
    """
    path, masks = job
    with opened(path) as source:
        facts, affine = source.facts, source.affine
        shape = turned_sides((facts.frames, facts.height, facts.width), affine)
        about = facts, source.kind, shape, source.spacing(3), source.spacing(2)
        more = source.are_slices, source.modality, source.patient
    return Probe(*about, *more, [mask_values(mask, facts, affine) for mask in masks])


def read_pair(
    job: tuple[Path, Sequence[Path]], options: ReadOptions, meaning: MaskClasses | None
) -> Pair:
    """Read a file, and its masks if it has any."""
    path, paths = job
    pictures = read_pictures(path, options)
    masks, side = None, 0
    if paths and meaning:
        with opened(path) as source:
            masks, side = read_mask(paths, meaning, options, source)
    images = np.stack([picture.fitted for picture in pictures])
    whole = [picture.whole for picture in pictures]
    if len(options.sides) == 3:
        whole = [volume.reshape(-1, volume.shape[2]) for volume in whole]
    drawn = not paths and all(map(_has_few_levels, whole))
    return Pair(images, masks, side, [*pictures[0].remarks, *[LIKE_MASKS] * drawn])


def foreground(
    job: tuple[Path, Sequence[Path]], meaning: MaskClasses | None
) -> NDArray[np.float32]:
    """Return values of a volume, up to 10,000: in its masks, or, of a set without, above the least.

    There are none of 8 bits, which are shown as they are.
    """
    path, paths = job
    with opened(path) as source:
        frames = [frame.values for frame in source.frames((0.0, 1.0))]  # by no window of its own
    if len({frame.dtype for frame in frames}) > 1:  # those of uint8 are padding alone
        frames = [np.full_like(x, np.nan, "f4") if x.dtype == np.uint8 else x for x in frames]
    values = np.stack(frames)
    if values.dtype == np.uint8 or (meaning and not paths):
        return np.zeros(0, np.float32)
    inside = np.isfinite(values) & (values > np.nanmin(values))
    if meaning:
        masks = (np.stack(_whole(mask, meaning, source.affine)) for mask in paths)
        inside &= np.any([(mask > 0) & (mask != IGNORED_MASK) for mask in masks], axis=0)
    chosen = values[inside].astype(np.float32)
    return np.random.default_rng(0).permutation(chosen)[:_FROM_EACH]


def _has_few_levels(values: NDArray[np.uint8]) -> bool:
    """Return whether an image has few levels, but not one, or, as JPEG, nearly all at both ends."""
    sample = values[:: len(values) // 256 + 1, :: values.shape[1] // 256 + 1]
    grey = to_grey(sample) if sample.ndim == 3 else sample
    levels, counts = np.unique(grey, return_counts=True)
    between = counts[(levels >= 16) & (levels < 240)].sum()
    few = len(levels) <= _FEW_LEVELS or (levels[-1] >= 240 and between < 0.02 * grey.size)
    return bool(few and len(levels) > 1)


def mask_values(path: Path, like: Facts, affine: Affine = PICTURE) -> MaskValues:
    """Return the values of a mask of an image with such facts (its channels don't matter)."""
    with opened(path, like=affine) as source:
        if source.facts._replace(channels=like.channels) != like:
            shapes = [f"{n} x {height} x {width}" for n, _, height, width in (like, source.facts)]
            raise refusal(path, f"a mask of {shapes[0]} (frames x height x width)", shapes[1])
        check_grid(path, source, affine)
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
    values, first, pixels = np.unique(stored.astype(int), return_index=True, return_counts=True)
    colours = values if shown is None else shown.ravel()[first]
    if shown is None or len(set(colours.tolist())) < len(colours):  # values tell more apart
        colours = np.where(values < 256, values * _GREY | COLOURED, values << 25)
    edge = (stored[0], stored[-1], stored[1:-1, 0], stored[1:-1, -1])
    outermost = np.zeros_like(values)
    for number, count in zip(*np.unique(np.concatenate(edge), return_counts=True), strict=True):
        outermost[np.searchsorted(values, number)] = count
    return np.stack([values, colours, pixels, outermost])


def read_mask(
    paths: Sequence[Path], meaning: MaskClasses, options: ReadOptions, image: Source
) -> tuple[NDArray[np.uint8], int]:
    """Read the masks of one image and unite them; where several meet, the highest class counts.

    Args:
        paths: its mask files, each of all frames.
        meaning: what their values mean.
        options: as for the image; `channels` and `window` don't matter.
        image: that of the masks; those of NIfTI are turned to its axes.

    Returns:
        Classes as uint8 ``(K, size, size)``, or of a volume ``(1, D, H, W)``, taken at the nearest
        pixel centres; and the size at which no class would vanish, 0 if none does.
    """
    masks, side, spacing = [], 0, image.spacing(len(options.sides))
    for path in paths:
        whole = _whole(path, meaning, image.affine)
        if len(options.sides) == 3:
            whole = [turned(np.stack(whole), image.affine)]
        small = [fitted(mask, options, spacing, is_mask=True) for mask in whole]
        masks.append(np.stack(small))
        side = max(side, *map(side_that_keeps, whole, small))
    return np.max(masks, axis=0), side


def _whole(path: Path, meaning: MaskClasses, affine: Affine) -> list[NDArray[np.uint8]]:
    """Return the classes of a mask, frame by frame."""
    whole = []
    with opened(path, like=affine) as source:
        for frame in source.frames(None):
            colours = _colours(frame) if meaning.by_colour else None
            whole.append(meaning.of(_integers(path, frame) if colours is None else colours))
    return whole


def _integers(path: Path, frame: Frame) -> NDArray[Any]:
    """Return the values of a mask ``(H, W)`` as integers."""
    values = frame.values if frame.classes is None else frame.classes
    if values.ndim == 3:
        packed = _packed(values)
        return packed if (values != values[:, :, :1]).any() else values[:, :, 0]
    if values.dtype.kind == "f":
        # NIfTI may have been scaled to 16 bits.
        if not (whole := np.isclose(values, np.rint(values), rtol=0, atol=0.01)).all():
            raise refusal(path, "whole numbers", f"{values[~whole][0]}")
        values = np.rint(np.clip(values, -1, 1 << 16))
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
