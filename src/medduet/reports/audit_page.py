"""The page of an audit: what was found, and the images that it is about, side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medduet.reports.page import render
from medduet.reports.style import shorten

SIDE = 192
"""Pixels of the longer side of a picture on the page."""
MOST_ROWS = 12
"""Images that are listed under a finding; all of them are in ``audit.json``."""
_LONGEST = 60  # characters of an id
_OUTLINE = (230, 159, 0)
_HEADINGS = {"leak": "Leaks", "warning": "Warnings", "note": "Notes"}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of the set as the page shows it.

    Attributes:
        image: ``(H, W)`` or ``(H, W, 3)`` uint8.
        id, split, label: what it is called, where it is, and its class.
        mask: ``(H, W)``, to be outlined; ``None`` for no outline.
    """

    image: NDArray[np.uint8]
    id: str
    split: str
    label: str
    mask: NDArray[np.uint8] | None = None

    @property
    def name(self) -> str:
        """The id, shortened."""
        return shorten(self.id, _LONGEST)

    @property
    def source(self) -> str:
        """The picture, with the outline of its mask, as a data URI."""
        return _png(self.image, self.mask)


@dataclass(frozen=True, eq=False)
class PicturePair:
    """Two images that show the same.

    Attributes:
        first, second: the images.
        likeness: correlation of their thumbnails.
        exact: whether all pixels are equal.
        remarks: what is wrong with them, such as ``in two splits``.
    """

    first: Picture
    second: Picture
    likeness: float
    exact: bool
    remarks: tuple[str, ...]


def audit_page(
    record: Mapping[str, Any],
    pairs: Sequence[PicturePair],
    pair_count: int,
    pictures: Mapping[int, Sequence[Picture]],
) -> str:
    """Return the page as HTML that needs no other file and no network.

    Args:
        record: see `medduet.Audit.record`.
        pairs: the pairs to show, the worst first.
        pair_count: how many there are.
        pictures: for the number of a finding, some of its images.

    Example:
        >>> record = {"name": "set", "images": {"train": 1}, "classes": [], "findings": []}
        >>> "Nothing was found" in audit_page(record, [], 0, {})
        True
    """
    numbered = list(enumerate(record["findings"]))
    sections = [
        (heading, [(number, one) for number, one in numbered if one["severity"] == severity])
        for severity, heading in _HEADINGS.items()
    ]
    return render(
        "audit.html",
        record=record,
        sections=[section for section in sections if section[1]],
        counts={
            severity: sum(f["severity"] == severity for _, f in numbered) for severity in _HEADINGS
        },
        pairs=pairs,
        pair_count=pair_count,
        pictures=pictures,
        most=MOST_ROWS,
        shorten=lambda text: shorten(text, _LONGEST),
    )


def _png(image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> str:
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    picture = Image.fromarray(np.ascontiguousarray(image)).resize(size, smooth)
    if mask is not None:
        shape = Image.fromarray((mask > 0).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        inside = np.asarray(shape) > 0
        line = inside & ~ndimage.binary_erosion(inside, iterations=2)
        coloured = np.array(picture.convert("RGB"))
        coloured[line] = _OUTLINE
        picture = Image.fromarray(coloured)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
