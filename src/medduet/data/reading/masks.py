"""Reads masks: which class each pixel is, whatever way that was written down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.reading.core import Facts, Frame, ReadOptions, refusal
from medduet.data.reading.opening import opened
from medduet.data.reading.shape import fitted_mask

_MAX_CLASS = 63
_WHITE = 128
_SHOWN = 5


def read_mask(paths: Sequence[Path], like: Facts, options: ReadOptions) -> NDArray[np.uint8]:
    """Read the masks of one image and unite them.

    Values up to 63 are classes. Others are black and white, and from 128 on 1, if there are at
    most two of them or if the file is lossy. Where several masks meet, the highest class counts.
    A palette of colours stands for the classes that its indices are.

    Args:
        paths: its mask files, each of all frames.
        like: what the header of the image says; masks must have its frames and size.
        options: as for the image; `channels` and `window` don't matter.

    Returns:
        Classes as uint8 ``(K, size, size)``, taken at the nearest pixel centres.

    Raises:
        DataError: a file is no mask of this image, or MissingFileError, there is none.
    """
    united: NDArray[np.uint8] = np.max([_read_one(x, like, options) for x in paths], axis=0)
    return united


def _read_one(path: Path, like: Facts, options: ReadOptions) -> NDArray[np.uint8]:
    with opened(path) as source:
        if source.facts._replace(channels=like.channels) != like:
            shapes = [f"{each[0]} x {each[2]} x {each[3]}" for each in (like, source.facts)]
            raise refusal(path, f"a mask of {shapes[0]} (frames x height x width)", shapes[1])
        frames = [_integers(path, frame) for frame in source.frames(None)]
        values = np.unique(np.concatenate([np.unique(frame) for frame in frames]))
        fitted = np.stack([fitted_mask(frame, options) for frame in frames])
        if values[0] >= 0 and values[-1] <= _MAX_CLASS:
            return fitted.astype(np.uint8)
        two = len(values) == 1 or (len(values) == 2 and values[0] < _WHITE)
        if values[0] >= 0 and values[-1] >= _WHITE and (two or source.lossy):
            return (fitted >= _WHITE).astype(np.uint8)
        shown = ", ".join(map(str, values[:_SHOWN])) + ", ..." * (len(values) > _SHOWN)
        expected = f"classes of 0 to {_MAX_CLASS}, or black and white (0 and 255)"
        raise refusal(path, expected, f"values {shown} up to {values[-1]}")


def _integers(path: Path, frame: Frame) -> NDArray[Any]:
    """Return the values of a mask ``(H, W)`` as integers."""
    values = frame.values if frame.classes is None else frame.classes
    if values.ndim == 3:
        if (values != values[:, :, :1]).any():
            raise refusal(path, "a mask in grey or with a palette", "one with colours")
        values = values[:, :, 0]
    if values.dtype.kind == "f":
        if not (whole := np.isfinite(values) & (values == np.rint(values))).all():
            raise refusal(path, "whole numbers", f"{values[~whole][0]}")
        values = np.clip(values, -1, 1 << 16).astype(np.int32)
    return values
