"""PNG, JPEG, TIFF, BMP, GIF and WebP, by Pillow; TIFF that it reads wrongly, by tifffile.

The rotation that EXIF tells of is applied. Palettes become the colours they stand for, and what is
transparent lies on black. Pages of a TIFF are frames; of other animations only the first frame is
read.
"""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from medduet.data.reading.core import MAX_FRAMES, Facts, Frame, Source, checked, needed, refusal

_ORIENTATION, _WHITE_IS_ZERO, _COMPRESSION, _BITS, _NUMBERS = 274, 262, 259, 258, 339
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells what it mends itself
_JPEG_IN_TIFF = (6, 7)
_TURNED = (5, 6, 7, 8)  # values of EXIF's orientation by which height and width change places
_ARE_TURNED = "are turned upright, as EXIF says: their masks must be drawn on the upright images"


def open_raster(path: Path, file: BinaryIO, kind: str) -> Source:
    """Return an open file of the kind that Pillow calls `kind`."""
    try:
        image = Image.open(file, formats=[kind])
        by_tifffile = isinstance(image, TiffImageFile) and _is_misread(image)
    except UnidentifiedImageError:
        if not (by_tifffile := kind == "TIFF"):
            raise
    if by_tifffile:
        return _open_by_tifffile(path, file)
    # Here already, since Pillow decodes a PNG to look for EXIF behind its pixels.
    checked(path, Facts(1, 1, image.height, image.width))
    deep = _is_deep(image)
    # Pillow would keep the upper 8 bits, which is dark if 12 are used, and misread planes.
    if not deep and (";16" in str(image.tile) or max(_tag(image, _BITS, (8,))) > 8):
        raise refusal(path, "8 bits per colour or 16 bits of grey", "16 bits per colour")
    pages = 1
    if kind == "TIFF":  # all pages must be alike
        every_page = islice(ImageSequence.Iterator(image), MAX_FRAMES + 1)
        kinds = [f"{x.height} x {x.width} {x.mode} {_tag(x, _BITS, (8,))}" for x in every_page]
        if len(different := list(dict.fromkeys(kinds))) > 1:
            raise refusal(path, "pages of one size and kind", " and ".join(different[:2]))
        image.seek(0)
        pages = len(kinds)
    height, width = image.height, image.width
    orientation = image.getexif().get(_ORIENTATION, 1)
    # Pillow has the size of a TIFF right before it is turned.
    if kind != "TIFF" and orientation in _TURNED:
        height, width = width, height
    facts = checked(path, Facts(pages, 3 if _is_colour(image) else 1, height, width))

    def frames(window: tuple[float, float] | None) -> Iterator[Frame]:
        for page in range(pages):
            if pages > 1:
                image.seek(page)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            values = values_of(image)
            # The indices of a palette of colours are the classes of masks that are kept so.
            classes = np.asarray(image) if image.mode == "P" and facts.channels == 3 else None
            if image.has_transparency_data:
                classes = _drawn(image, classes)
            yield Frame(values, window if deep else None, classes=classes)

    lossy = kind in ("JPEG", "WEBP") or _tag(image, _COMPRESSION, 0) in _JPEG_IN_TIFF
    remarks = (_ARE_TURNED,) if 1 < orientation <= 8 else ()
    return Source(facts, frames, lossy, remarks, are_slices=facts.frames > 1 == facts.channels)


def _open_by_tifffile(path: Path, file: BinaryIO) -> Source:
    file.seek(0)
    pages = list(islice(needed("tifffile", path).TiffFile(file).pages, MAX_FRAMES + 1))
    turns = [page.tags.valueof(_ORIENTATION, default=1) for page in pages]
    kinds = {f"{page.shape} of {page.dtype}": page for page in pages}
    numbers = all(x.ndim == 2 and x.dtype and x.dtype.kind in "iuf" for x in kinds.values())
    if len(kinds) != 1 or {*turns} != {1} or not numbers:
        found = " and ".join(kinds) or "none"
        raise refusal(path, "upright pages of one size and one real number per pixel", found)

    def frames(window: tuple[float, float] | None) -> Iterator[Frame]:
        for page in pages:
            yield Frame(page.asarray(maxworkers=1), window, page.photometric == 0)

    facts = checked(path, Facts(len(pages), 1, *pages[0].shape))
    return Source(facts, frames, are_slices=len(pages) > 1)


def values_of(image: Image.Image) -> NDArray[Any]:
    """Return the pixels of an image: ``(H, W)``, or ``(H, W, 3)`` uint8."""
    if _is_deep(image):
        values = np.asarray(image)
        inverted = _tag(image, _WHITE_IS_ZERO, 1) == 0
        return np.iinfo(np.uint16).max - values if inverted and values.itemsize == 2 else values
    colour = _is_colour(image)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        black = Image.new("RGBA", over.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, over).convert("RGB")
    return np.asarray(image.convert("RGB" if colour else "L"))


def _drawn(image: Image.Image, classes: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return 255 where a mask in one colour, such as black, is not transparent; else `classes`."""
    pixels = np.asarray(image.convert("RGBA"))
    opaque = pixels[:, :, 3] > pixels[:, :, 3].max() // 2
    one_colour = len(np.unique(pixels[opaque][:, :3], axis=0)) < 2
    return opaque * np.uint8(255) if one_colour and not opaque.all() else classes


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)


def _is_misread(image: TiffImageFile) -> bool:
    """Return whether Pillow takes numbers for others: int8, uint32, and those that are turned."""
    unsigned = _tag(image, _NUMBERS, (1,))[0] in (1, 4)  # 4 is undefined
    turned = _tag(image, _WHITE_IS_ZERO, 1) == 0 or image.tag_v2.prefix == b"MM"
    return unsigned or turned if image.mode in ("I", "F") else not unsigned


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_colour(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((colours != colours[:, :1]).any())
    return not _is_deep(image) and image.mode not in ("1", "L", "LA", "La")
