"""The one resizer and the one grey conversion of MedDuet. Imports no torch.

Images are resized by Pillow's bilinear filter, which averages when it makes them smaller; masks
take the nearest pixel, so that no new class appears.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixel = TypeVar("Pixel", np.uint8, np.float32)


def resize_image(image: NDArray[Pixel], height: int, width: int) -> NDArray[Pixel]:
    """Resize an image, ``(H, W)`` or ``(H, W, 3)`` uint8, or ``(H, W)`` float32, bilinearly."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize a mask ``(..., H, W)`` to the nearest pixel centres, as ``nearest-exact`` of torch."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip((height, width), mask.shape[-2:], strict=True)
    )
    return mask[..., rows[:, None], columns]


def side_that_keeps(mask: NDArray[Any], resized: NDArray[Any]) -> int:
    """Return the side to which a mask can be resized without losing a class; 0 if none is lost.

    Example:
        >>> mask = np.zeros((90, 90), np.uint8)
        >>> mask[7:10, 20:80] = 1
        >>> side_that_keeps(mask, resize_mask(mask, 20, 20))
        30
    """
    side = 0
    for number in set(np.unique(mask).tolist()) - {0, *np.unique(resized).tolist()}:
        rows, columns = np.nonzero(mask == number)
        side = max(side, -(-max(mask.shape) // (1 + min(np.ptp(rows), np.ptp(columns)))))
    return int(side)


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert RGB ``(..., W, 3)`` to grey ``(..., W)``, both uint8: luma of ITU-R 601."""
    rows = image.reshape(-1, *image.shape[-2:])
    return np.asarray(Image.fromarray(rows).convert("L")).reshape(image.shape[:-1])
