"""The one resizer and the one grey conversion of MedDuet. Imports no torch.

Images are resized by Pillow's bilinear filter, which averages when it makes them smaller; masks
take the nearest pixel, so that no new class appears.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medduet.errors import ConfigError
from medduet.types import IGNORED_MASK

Pixel = TypeVar("Pixel", np.uint8, np.float32)
Number = TypeVar("Number", int, float)


def for_each_axis(values: tuple[Number, ...], dims: int, name: str = "size") -> tuple[Number, ...]:
    """Return a value for each of `dims` axes, of as many or of one for all.

    Example:
        >>> for_each_axis((64,), 3), for_each_axis((48, 64), 2)
        ((64, 64, 64), (48, 64))
    """
    if len(values) not in (1, dims):
        given = " ".join(map(str, values))
        raise ConfigError(f"expected a {name} of one number or {dims} for {dims}D, given {given}")
    return values if len(values) == dims else values * dims


def resize_image(image: NDArray[Pixel], *sides: int) -> NDArray[Pixel]:
    """Resize an image, ``(H, W)`` or ``(H, W, 3)`` uint8, or ``(H, W)`` float32, bilinearly.

    Volumes ``(D, H, W)`` are resized slice by slice, then along the depth.
    """
    if len(sides) == 3:
        slices = np.stack([resize_image(layer, *sides[1:]) for layer in image])
        flat = slices.reshape(len(slices), sides[1] * sides[2])
        return resize_image(flat, sides[0], flat.shape[1]).reshape(sides)
    height, width = sides
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[Any], *sides: int) -> NDArray[Any]:
    """Resize a mask ``(..., H, W)`` to the nearest pixel centres, as ``nearest-exact`` of torch.

    Three `sides` are those of a volume ``(..., D, H, W)``.
    """
    places = [
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(sides, mask.shape[-len(sides) :], strict=True)
    ]
    return mask[(..., *np.ix_(*places))]


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
        thinnest = min(map(np.ptp, np.nonzero(mask == number)))
        side = max(side, -(-max(mask.shape) // (1 + thinnest)))
    return int(side)


def three_planes(masks: NDArray[Any] | None, *volumes: NDArray[Any]) -> list[NDArray[Any]]:
    """Return a picture ``(N, H + D, W + D)`` of each of `volumes` ``(N, D, H, W)``.

    Beside the axial slice is the sagittal one, below it the coronal one with the last slice up, and
    0 in the corner. Each is that with most of `masks`, or the middle one without a mask. Of several
    channels, ``(N, D, H, W, C)``, it is the first.
    """
    volumes = tuple(volume if volume.ndim == 4 else volume[..., 0] for volume in volumes)
    count, depth, height, width = volumes[0].shape
    middles = np.tile([depth // 2, height // 2, width // 2], (count, 1))
    if masks is not None:
        inside = (masks > 0) & (masks != IGNORED_MASK)
        areas = (inside.sum(axis=axes) for axes in ((2, 3), (1, 3), (1, 2)))
        largest = np.stack([area.argmax(axis=1) for area in areas], axis=1)
        middles = np.where(inside.any(axis=(1, 2, 3))[:, None], largest, middles)
    pictures = []
    for volume in volumes:
        picture = np.zeros((count, height + depth, width + depth), volume.dtype)
        for whole, drawn, (z, y, x) in zip(volume, picture, middles, strict=True):
            drawn[:height, :width] = whole[z]
            drawn[:height, width:] = whole[:, :, x].T
            drawn[height:, :width] = whole[::-1, y]
        pictures.append(picture)
    return pictures


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert RGB ``(..., W, 3)`` to grey ``(..., W)``, both uint8: luma of ITU-R 601."""
    rows = image.reshape(-1, *image.shape[-2:])
    return np.asarray(Image.fromarray(rows).convert("L")).reshape(image.shape[:-1])
