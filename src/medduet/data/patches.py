"""Patches of images that are trained on, and small views of whole images, which show the class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from medduet.types import IGNORED_MASK, UNKNOWN_LABEL, Batch

_AROUND_MASK = 1 / 3
"""Share of patches around a pixel of the mask, where an image has some, as in nnU-Net."""


def patches_and_views(batch: Batch, sides: tuple[int, ...], classify: bool = True) -> Batch:
    """Return one patch of each image, and to `classify` also a view, ``(2 N, C, *sides)``.

    Patches keep the mask, and their class is unknown, since the lesion may lie elsewhere; views
    keep the class, and their mask is unknown, since it would be drawn in another scale. Images of
    these `sides` are returned as they are. Randomness comes from torch's global generator.

    Example:
        >>> image, mask = torch.zeros(2, 1, 40, 60, dtype=torch.uint8), torch.zeros(2, 40, 60)
        >>> known = torch.ones(2, dtype=torch.bool)
        >>> batch = Batch(image, torch.tensor([0, 1]), mask.long(), known, torch.arange(2))
        >>> both = patches_and_views(batch, (16, 16))
        >>> both.image.shape, both.label.tolist(), both.has_mask.tolist()
        (torch.Size([4, 1, 16, 16]), [-1, -1, 0, 1], [True, True, False, False])
    """
    size = batch.image.shape[2:]
    if tuple(size) == sides:
        return batch
    images, masks = [], []
    for row, image in enumerate(batch.image):
        place = (slice(None), *_place(size, sides, _pixel_of_mask(batch, row)))
        images.append(image[place])
        if batch.mask is not None:
            masks.append(batch.mask[row][place[1:]])
    mask = torch.stack(masks) if masks else None
    patches = batch._replace(image=torch.stack(images), mask=mask)
    if not classify:
        return patches
    unknown = torch.full_like(batch.label, UNKNOWN_LABEL)
    nothing = torch.zeros_like(batch.has_mask)
    return Batch(
        torch.cat([patches.image, view(batch.image, sides)]),
        torch.cat([unknown, batch.label]),
        None if mask is None else torch.cat([mask, torch.zeros_like(mask)]),
        torch.cat([batch.has_mask, nothing]),
        torch.cat([batch.indices, batch.indices]),
    )


def view(image: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return images ``(N, C, ...)`` as a whole in other sides, by means of areas."""
    shrunk = torch.cat([F.interpolate(one[None].float(), sides, mode="area") for one in image])
    return shrunk.round().to(torch.uint8) if image.dtype == torch.uint8 else shrunk


def _pixel_of_mask(batch: Batch, row: int) -> list[int] | None:
    """Return a random pixel of the mask, if the patch is to lie around one and there is one."""
    around = float(torch.rand(())) < _AROUND_MASK
    if not around or batch.mask is None or not batch.has_mask[row]:
        return None
    mask = batch.mask[row]
    pixels = ((mask > 0) & (mask != IGNORED_MASK)).nonzero()
    return pixels[int(torch.randint(len(pixels), ()))].tolist() if len(pixels) else None


def _place(size: torch.Size, sides: tuple[int, ...], pixel: list[int] | None) -> list[slice]:
    """Return where a patch lies: around a pixel, as far as the image reaches, or anywhere."""
    place = []
    for axis, (whole, side) in enumerate(zip(size, sides, strict=True)):
        start = int(torch.randint(whole - side + 1, ()))
        if pixel is not None:
            start = min(max(pixel[axis] - side // 2, 0), whole - side)
        place.append(slice(start, start + side))
    return place
