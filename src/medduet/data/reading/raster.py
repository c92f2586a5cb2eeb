"""PNG, JPEG, TIFF, BMP and WebP, by Pillow.

The rotation that EXIF tells of is applied. Palettes become the colours they stand for, and what is
transparent lies on black. Pages of a TIFF are frames; of other animations only the first frame is
read.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medduet.data.reading.codestream import check_scans, jpeg_segments
from medduet.data.reading.core import MAX_FRAMES, Facts, Frame, Source, checked, refusal

_MAX_TABLES = 1 << 25  # bytes in the tables of a TIFF or of EXIF; Pillow holds a page's in memory
_MAX_ENTRIES = 1 << 10
_TYPE_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1))
_TYPE_SIZES |= {16: 8, 17: 8, 18: 8}
_ORIENTATION, _WHITE_IS_ZERO, _BITS, _COMPRESSION = 274, 262, 258, 259
_JPEG_IN_TIFF = (6, 7)
_TILE, _LARGEST_TILE = (322, 323), 1 << 22
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_raster(path: Path, file: BinaryIO, kind: str) -> Source:
    """Return an open file of the kind that Pillow calls `kind`."""
    if kind == "TIFF":
        _check_tables(file)
    if kind == "JPEG":
        _check_exif(_exif_of_jpeg(file))
        file.seek(0)
        content = file.read()
    file.seek(0)
    image = Image.open(file, formats=[kind])
    # Here already, since Pillow decodes a PNG to look for EXIF behind its pixels.
    checked(path, Facts(1, 1, image.height, image.width))
    if kind == "JPEG":
        check_scans(content, image.height * image.width)
    deep = _is_deep(image)
    if kind == "PNG":
        _refuse_deep_colour(path, file, image)
    # Pillow turns the pages of a TIFF itself when it decodes them, and has their size right before.
    turn = None if kind == "TIFF" else _TURNS.get(_orientation(image))
    pages = range(_count(path, image)) if kind == "TIFF" else range(1)
    height, width = image.height, image.width
    if turn is not None and turn.value >= Image.Transpose.ROTATE_90.value and turn.value != 3:
        height, width = width, height
    facts = Facts(len(pages), 3 if _is_colour(image) else 1, height, width)

    def decoded(stored: bool) -> Iterator[NDArray[Any]]:
        for page in pages:
            if len(pages) > 1:
                image.seek(page)
            whole = image if turn is None else image.transpose(turn)
            yield _values(whole, deep, indexed=stored)

    def frames(window: tuple[float, float] | None) -> Iterator[Frame]:
        shown = (window[0] - window[1] / 2, window[0] + window[1] / 2) if window and deep else None
        for values in decoded(stored=False):
            if facts.channels == 3 and values.ndim == 2:  # a page with a palette of greys
                values = np.repeat(values[:, :, None], 3, axis=2)
            yield Frame(values, shown)

    lossy = kind in ("JPEG", "WEBP") or (
        kind == "TIFF" and image.tag_v2.get(_COMPRESSION) in _JPEG_IN_TIFF  # type: ignore[attr-defined]
    )
    return Source(checked(path, facts), frames, lambda: decoded(stored=True), lossy)


def frame_of(image: Image.Image) -> Frame:
    """Return an image of Pillow as a frame, turned as its EXIF says.

    Example:
        >>> frame_of(Image.new("RGB", (4, 2))).values.shape
        (2, 4, 3)
    """
    image.load()
    # As above: a TIFF was turned by that.
    turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))
    whole = image if turn is None else image.transpose(turn)
    return Frame(_values(whole, _is_deep(image), indexed=False))


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_colour(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((colours != colours[:, :1]).any())
    return not _is_deep(image) and image.mode not in ("1", "L", "LA", "La")


def _values(image: Image.Image, deep: bool, indexed: bool) -> NDArray[Any]:
    """Decode a page: ``(H, W)``, or ``(H, W, 3)`` uint8.

    With `indexed` the values of a palette of colours are its indices, which are the classes of
    masks that are kept so.
    """
    image.load()
    if deep:
        values = np.asarray(image)
        inverted = getattr(image, "tag_v2", {}).get(_WHITE_IS_ZERO) == 0
        return np.iinfo(np.uint16).max - values if inverted and values.itemsize == 2 else values
    colour = _is_colour(image)
    if indexed and colour and image.mode == "P":
        return np.asarray(image)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
        image = image.convert("RGB")
    return np.asarray(image.convert("RGB" if colour else "L"))


def _orientation(image: Image.Image) -> int:
    _check_exif(image.info.get("exif", b""))
    return int(image.getexif().get(_ORIENTATION, 1))


def _refuse_deep_colour(path: Path, file: BinaryIO, image: Image.Image) -> None:
    """Refuse 16 bits of several channels in a PNG, of which Pillow gives the upper 8 only."""
    place = file.tell()
    file.seek(24)
    depth, colour = file.read(2)
    file.seek(place)
    if depth == 16 and colour != 0:
        raise refusal(path, "8 bits per colour or 16 bits of grey", "16 bits per colour")


def _count(path: Path, image: Image.Image) -> int:
    """Return how many pages a TIFF has, which all must be alike."""
    first = image.size, image.mode
    count = 0
    while True:
        bits = image.tag_v2.get(_BITS, (1,))  # type: ignore[attr-defined]
        if len(bits) > 2 and max(bits) > 8:
            raise refusal(path, "8 bits per colour or 16 bits of grey", f"{max(bits)} per colour")
        tile = prod(image.tag_v2.get(each, 1) for each in _TILE)  # type: ignore[attr-defined]
        if tile > max(_LARGEST_TILE, 4 * image.height * image.width):
            raise refusal(path, "tiles of a size like the image's", f"one of {tile} pixels")
        if (image.size, image.mode) != first:
            raise refusal(
                path,
                "pages of one size and kind",
                f"{first[0][1]} x {first[0][0]} {first[1]} and "
                f"{image.height} x {image.width} {image.mode}",
            )
        count += 1
        try:
            image.seek(count)
        except EOFError:
            image.seek(0)
            return count


def _exif_of_jpeg(file: BinaryIO) -> bytes:
    """Return the EXIF of a JPEG: all its segments, which Pillow puts together."""
    file.seek(0)
    return b"".join(
        segment[6:]
        for marker, segment in jpeg_segments(file)
        if marker == 0xE1 and segment[:6] == b"Exif\0\0"
    )


def _check_exif(exif: bytes) -> None:
    tables = exif.removeprefix(b"Exif\0\0")
    if tables[:2] in (b"II", b"MM"):
        _check_tables(io.BytesIO(tables))


def _check_tables(file: BinaryIO) -> None:
    """Refuse the tables of a TIFF that are too large, that have no end or that lie outside.

    Each entry of a table may point at the same megabyte, and Pillow would hold it many times.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", head, 2)[0] == 43
    number, entry, pointer = ("Q", "HHQ8x", "Q") if big else ("H", "HHI4x", "I")
    (offset,) = struct.unpack_from(order + pointer, head, 8 if big else 4)
    seen: set[int] = set()
    total = 0

    def read(layout: str) -> tuple[Any, ...]:
        return struct.unpack(order + layout, file.read(struct.calcsize(order + layout)))

    while offset:
        if offset in seen or len(seen) > MAX_FRAMES:
            raise ValueError(f"its {len(seen)} pages have no end")
        seen.add(offset)
        file.seek(offset)
        (entries,) = read(number)
        if entries > _MAX_ENTRIES:
            raise ValueError(f"a table of {entries} entries")
        for _ in range(entries):
            _, kind, count = read(entry)
            total += _TYPE_SIZES.get(kind, 0) * count
        if total > _MAX_TABLES:
            raise ValueError(f"tables of {total} bytes")
        (offset,) = read(pointer)
