"""Reads images: what a file holds, and its pixels."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.data.reading.core import Facts, Frame, ReadOptions, Source, refusal
from medduet.data.reading.masks import read_mask
from medduet.data.reading.opening import opened
from medduet.data.reading.shape import fitted, levels, rounded, value_range

_SENT = Path("image")
_SAMPLED_SIDE, _GREY_SPREAD = 256, 40
"""Pixels of each side, and a difference of red, green and blue, that tell colour from grey."""


class ReadJob(NamedTuple):
    """A file to read, its masks, and what its header said."""

    path: Path
    masks: tuple[Path, ...]
    facts: Facts


def probe(path: Path) -> Facts:
    """Return what the header of a file says; nothing is decoded.

    Raises:
        DataError: it is not an image that can be read, or larger than the limits.
        MissingFileError: there is no such file.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("RGB", (30, 20)).save(path)
        >>> probe(path)
        Facts(frames=1, channels=3, height=20, width=30)
    """
    with opened(path) as source:
        return source.facts


def read_images(path: Path, options: ReadOptions) -> NDArray[np.uint8]:
    """Read the frames of a file, PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI.

    8 bits per value stay as they are. More are shown through the window of `options` or of the
    file, or from the smallest to the largest value of the file. An image of the size asked for is
    not changed; others are resized as `medduet.data.pixels` does.

    Returns:
        Images as uint8 ``(K, size, size)``, or ``(K, size, size, 3)`` with 3 channels.

    Raises:
        DataError: names the file, what was expected and what was given.
        MissingFileError: there is no such file.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("L", (4, 2), 9).save(path)
        >>> read_images(path, ReadOptions(size=4)).tolist()
        [[[0, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, 0]]]
    """
    with opened(path) as source:
        tail = (3,) if options.channels == 3 else ()
        result = np.zeros((source.facts.frames, *options.sides, *tail), np.uint8)
        frames, limits = _frames(path, source, options)
        for number, frame in enumerate(frames):
            result[number] = fitted(levels(frame, limits, options.channels), options)
        return result


class Picture(NamedTuple):
    """One frame of a file, as a network takes it and as people look at it.

    Attributes:
        fitted: uint8 ``(S, S)``, or ``(S, S, 3)`` with 3 channels.
        whole: the same at its own size, uint8 ``(H, W)``, or ``(H, W, 3)`` if it is in colour.
        coloured: share of the pixels that are clearly no grey in the file, even if here they are.
    """

    fitted: NDArray[np.uint8]
    whole: NDArray[np.uint8]
    coloured: float = 0.0


def read_pictures(
    path: Path, options: ReadOptions, file: BinaryIO | None = None
) -> Iterator[Picture]:
    """Read the frames of a file one by one, as `read_images` does, and keep their own size, too.

    Args:
        path: of the file, or what to call it if `file` is given.
        options: what its frames are to become.
        file: an open file instead, such as one in memory.

    Raises:
        DataError: names the file, what was expected and what was given.
        MissingFileError: there is no such file.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> Image.new("L", (4, 2), 9).save(file := io.BytesIO(), "png")
        >>> [picture] = read_pictures(Path("a.png"), ReadOptions(size=8), file)
        >>> picture.fitted.shape, picture.whole.shape
        ((8, 8), (2, 4))
    """
    with opened(path, file) as source:
        frames, limits = _frames(path, source, options)
        for frame in frames:
            yield picture_of(frame, limits, options)


def picture_of(frame: Frame, limits: tuple[float, float] | None, options: ReadOptions) -> Picture:
    """Return a frame as a `Picture`; `limits` are the extremes of its file, see `levels`."""
    whole = levels(frame, limits, options.channels)
    return Picture(fitted(whole, options), rounded(whole), _coloured(frame.values))


def probe_content(content: bytes) -> Facts:
    """Do as `probe` does with the content of a file that a stranger sent."""
    with opened(_SENT, io.BytesIO(content)) as source:
        return source.facts


def read_content(content: bytes, options: ReadOptions) -> list[Picture]:
    """Do as `read_pictures` does with the content of a file that a stranger sent."""
    return list(read_pictures(_SENT, options, io.BytesIO(content)))


def _coloured(values: NDArray[Any]) -> float:
    if values.ndim == 2:
        return 0.0
    rows, columns = (max(1, side // _SAMPLED_SIDE) for side in values.shape[:2])
    some = values[::rows, ::columns]
    return float((np.ptp(some, axis=2) > _GREY_SPREAD).mean())


def _frames(
    path: Path, source: Source, options: ReadOptions
) -> tuple[Iterable[Frame], tuple[float, float] | None]:
    """Return the frames, and the range of their values if they are stretched to it.

    A file of several frames is decoded twice then: two times the work instead of all in memory.
    """
    single = list(source.frames(options.window)) if source.facts.frames == 1 else None
    stretched = takewhile(lambda frame: frame.is_stretched, single or source.frames(options.window))
    ranges = [value_range(frame.values) for frame in stretched]
    finite = [each for each in ranges if each is not None]
    if ranges and not finite:
        raise refusal(path, "values that are numbers", "none that is finite")
    limits = (min(low for low, _ in finite), max(high for _, high in finite)) if finite else None
    return single or source.frames(options.window), limits


def read_job(
    job: ReadJob, options: ReadOptions
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Read a file and its masks, if it has any.

    Raises:
        DataError: also if there are not as many frames as its header said.
    """
    images = read_images(job.path, options)
    if len(images) != job.facts.frames:
        raise refusal(job.path, f"{job.facts.frames} frames", str(len(images)))
    return images, read_mask(job.masks, job.facts, options) if job.masks else None
