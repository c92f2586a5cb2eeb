"""Reads images: what a file holds, and its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.data.reading.core import Facts, Frame, ReadOptions, Source, refusal
from medduet.data.reading.masks import read_mask
from medduet.data.reading.opening import opened
from medduet.data.reading.shape import fitted, levels, rounded, shown, value_range

MAX_RESULT_BYTES = 1 << 31
_LOOKED_AT, _NO_GREY = 256, 40
"""Pixels of each side, and a difference of red, green and blue, that tell colour from grey."""


class ReadJob(NamedTuple):
    """A file to read, its masks, and what its header said."""

    path: Path
    masks: tuple[Path, ...]
    facts: Facts


def probe(path: Path) -> Facts:
    """Return what the header of a file says; nothing is decoded.

    Raises:
        DataError: if it is not an image that can be read, or larger than the bounds.
        MissingFileError: if there is no such file.

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
    not changed; others are resized by Pillow's bilinear filter, antialiased.

    `medduet.data.reading.core` says how large a file may be and what memory a read takes.

    Returns:
        Images as uint8 ``(K, size, size)``, or ``(K, size, size, 3)`` with 3 channels.

    Raises:
        DataError: names the file, what was expected and what was given.
        MissingFileError: if there is no such file.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("L", (4, 2), 9).save(path)
        >>> read_images(path, ReadOptions(size=4)).tolist()
        [[[0, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, 0]]]
    """
    with opened(path) as source:
        frames, sides = source.facts.frames, options.sides
        tail = (*sides, *(3,) * (options.channels == 3))
        if frames * prod(tail) > MAX_RESULT_BYTES:
            given = f"{frames} frames of {' x '.join(map(str, tail))}"
            raise refusal(path, f"at most {MAX_RESULT_BYTES} bytes as result", given)
        result = np.zeros((frames, *tail), np.uint8)
        limits, single = _limits(path, source, options)
        for number, frame in enumerate([single] if single else source.frames(options.window)):
            result[number] = shown(frame, limits, options)
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
        MissingFileError: if there is no such file.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> Image.new("L", (4, 2), 9).save(file := io.BytesIO(), "png")
        >>> [picture] = read_pictures(Path("a.png"), ReadOptions(size=8), file)
        >>> picture.fitted.shape, picture.whole.shape
        ((8, 8), (2, 4))
    """
    with opened(path, file) as source:
        limits, single = _limits(path, source, options)
        for frame in [single] if single else source.frames(options.window):
            yield picture_of(frame, limits, options)


def picture_of(frame: Frame, limits: tuple[float, float] | None, options: ReadOptions) -> Picture:
    """Return a frame as a `Picture`; `limits` are the extremes of its file, see `shown`."""
    whole = levels(frame, limits, options.channels)
    return Picture(fitted(whole, options), rounded(whole), _coloured(frame.values))


def _coloured(values: NDArray[Any]) -> float:
    if values.ndim == 2:
        return 0.0
    rows, columns = (max(1, side // _LOOKED_AT) for side in values.shape[:2])
    some = values[::rows, ::columns]
    return float((np.ptp(some, axis=2) > _NO_GREY).mean())


def _limits(
    path: Path, source: Source, options: ReadOptions
) -> tuple[tuple[float, float] | None, Frame | None]:
    """Return the range of the values, if they are stretched to it, and the only frame, if it is.

    A file of several frames is decoded twice then: two times the work instead of all in memory.
    """
    lows, highs = [], []
    frame = None
    for frame in source.frames(options.window):
        if frame.values.dtype == np.uint8 or frame.shown is not None:
            break
        if (found := value_range(frame.values)) is not None:
            lows.append(found[0])
            highs.append(found[1])
    else:
        if not lows:
            raise refusal(path, "values that are numbers", "none that is finite")
    single = frame if source.facts.frames == 1 else None
    return ((min(lows), max(highs)) if lows else None), single


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
