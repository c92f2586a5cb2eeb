"""Reads masks: which class each pixel is, whatever way that was written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.reading.core import Facts, ReadOptions, refusal
from medduet.data.reading.opening import opened
from medduet.data.reading.shape import fitted_mask

MAX_CLASS = 63
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
        DataError: names the file.
        MissingFileError: if there is no such file.
    """
    united = np.zeros((like.frames, *options.sides), np.uint8)
    for path in paths:
        np.maximum(united, _read_one(path, like, options), out=united)
    return united


def _read_one(path: Path, like: Facts, options: ReadOptions) -> NDArray[np.uint8]:
    with opened(path) as source:
        of_mask, of_image = source.facts._replace(channels=1), like._replace(channels=1)
        if of_mask != of_image:
            raise refusal(
                path,
                f"a mask of {_shape_text(of_image)} (height x width) as the image",
                _shape_text(of_mask),
            )
        result = np.zeros((like.frames, *options.sides), np.int16)
        present: set[int] = set()
        for number, values in enumerate(source.stored()):
            classes = _integers(path, values)
            present.update(np.unique(classes).tolist())
            if len(present) > 1 << 16:
                raise refusal(path, "a mask of few classes", f"{len(present)} different values")
            result[number] = np.clip(fitted_mask(classes, options), -1, 255)
        levels = sorted(present)
        if levels[0] >= 0 and levels[-1] <= MAX_CLASS:
            return result.astype(np.uint8)
        two = len(levels) <= 2 and (len(levels) == 1 or levels[0] < _WHITE)
        if levels[0] >= 0 and levels[-1] >= _WHITE and (two or source.lossy):
            return (result >= _WHITE).astype(np.uint8)
        shown = ", ".join(map(str, levels[:_SHOWN])) + ", ..." * (len(levels) > _SHOWN)
        expected = f"classes of 0 to {MAX_CLASS}, or black and white (0 and 255)"
        raise refusal(path, expected, f"values {shown} up to {levels[-1]}")


def _integers(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """Return the values of a mask ``(H, W)`` as integers."""
    if values.ndim == 3:
        if (values != values[:, :, :1]).any():
            raise refusal(path, "a mask in grey or with a palette", "one with colours")
        values = values[:, :, 0]
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (np.abs(values) > 1 << 31).any():
            raise refusal(path, "whole numbers", "values that are not finite")
        whole: NDArray[np.int64] = np.rint(values).astype(np.int64)
        if (whole != values).any():
            raise refusal(path, "whole numbers", f"{values[whole != values][0]}")
        return whole
    return values


def _shape_text(facts: Facts) -> str:
    frames = f"{facts.frames} frames of " if facts.frames > 1 else ""
    return f"{frames}{facts.height} x {facts.width} pixels"
