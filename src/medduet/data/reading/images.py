"""Reads images: what a file holds, and its pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medduet.data.reading.core import Facts, Frame, ReadOptions, checked, errors_named, refusal
from medduet.data.reading.masks import read_mask
from medduet.data.reading.opening import opened
from medduet.data.reading.raster import values_of
from medduet.data.reading.shape import fitted, levels

_SAMPLED_SIDE, _GREY_SPREAD = 256, 40
"""Pixels of each side, and a difference of red, green and blue, that tell colour from grey."""


class Picture(NamedTuple):
    """One frame of a file: as a network takes it and, `whole`, at its own size; both uint8.

    `coloured` is the share of pixels that are clearly no grey in the file, even if here they are.
    """

    fitted: NDArray[np.uint8]
    whole: NDArray[np.uint8]
    coloured: float = 0.0


def probe(path: Path, file: BinaryIO | None = None) -> Facts:
    """Return what the header of a file, or of an open `file`, says; nothing is decoded.

    Raises:
        DataError: it is not an image that can be read, or larger than the limits.
        MissingFileError: there is no such file.

    Example:
        >>> import io
        >>> Image.new("RGB", (30, 20)).save(file := io.BytesIO(), "png")
        >>> probe(Path("a.png"), file)
        Facts(frames=1, channels=3, height=20, width=30)
    """
    with opened(path, file) as source:
        return source.facts


def read_pictures(path: Path, options: ReadOptions, file: BinaryIO | None = None) -> list[Picture]:
    """Read the frames of a file, or of an open `file`, and keep their own size, too."""
    with opened(path, file) as source:
        frames = list(source.frames(options.window))
        if len(frames) != source.facts.frames:
            raise refusal(path, f"{source.facts.frames} frames", str(len(frames)))
        return _pictures(frames, options)


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
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("L", (4, 2), 9).save(path)
        >>> read_images(path, ReadOptions(size=4)).tolist()
        [[[0, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, 0]]]
    """
    return np.stack([picture.fitted for picture in read_pictures(path, options)])


def read_pair(
    job: tuple[Path, Sequence[Path], Facts], options: ReadOptions
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Read a file, and its masks if it has any; its header said the facts of the job."""
    path, masks, facts = job
    return read_images(path, options), read_mask(masks, facts, options) if masks else None


def picture_of(
    image: NDArray[Any] | Image.Image, options: ReadOptions, name: str = "image"
) -> Picture:
    """Return an array ``(H, W)`` or ``(H, W, 3)`` of uint8, or an image of Pillow, as a picture."""
    path = Path(name)
    with errors_named(path):
        if isinstance(image, Image.Image):
            image.load()  # a TIFF is turned by that
            image = values_of(ImageOps.exif_transpose(image))
        grey = image.ndim == 2 and image.dtype.kind in "buif"
        if not grey and (image.shape[2:] != (3,) or image.dtype != np.uint8):
            given = f"{image.shape} of {image.dtype}"
            raise refusal(path, "(H, W), or (H, W, 3) of uint8", given)
        checked(path, Facts(1, 1 if grey else 3, *image.shape[:2]))
        values = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
        return _pictures([Frame(values)], options)[0]


def _pictures(frames: Sequence[Frame], options: ReadOptions) -> list[Picture]:
    return [
        Picture(fitted(whole, options), whole, _coloured(frame.values))
        for frame, whole in zip(frames, levels(frames, options.channels), strict=True)
    ]


def _coloured(values: NDArray[Any]) -> float:
    if values.ndim == 2:
        return 0.0
    rows, columns = (max(1, side // _SAMPLED_SIDE) for side in values.shape[:2])
    return float((np.ptp(values[::rows, ::columns], axis=2) > _GREY_SPREAD).mean())
