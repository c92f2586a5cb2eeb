"""What the first bytes of JPEG, JPEG-LS and JPEG 2000 say of the size of the image.

Decoders take memory for the size that the stream claims, which may not be that of the file's
header.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from medduet.data.reading.core import MAX_SCANNED

_START_OF_SCAN = 0xDA
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers that nothing belongs to
# Start of a frame: all of C0 to CF but those of tables, and F7 of JPEG-LS.
_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_JPEG_2000 = b"\xff\x4f\xff\x51"


class StreamSize(NamedTuple):
    """Height and width in pixels, and the number of channels."""

    height: int
    width: int
    channels: int


def jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Give marker and content of the segments of a JPEG up to its first scan."""
    file.read(2)
    while (byte := file.read(1)) and byte == b"\xff":
        while (byte := file.read(1)) == b"\xff":
            pass
        if not byte or byte[0] == _START_OF_SCAN:
            return
        if byte[0] in _ALONE:
            continue
        length = int.from_bytes(file.read(2), "big")
        yield byte[0], file.read(max(0, length - 2))


def check_scans(content: bytes, pixels: int) -> None:
    """Raise a ValueError if a JPEG would be gone over too often: a scan has few bytes.

    Args:
        content: of the file or stream; in the pixels of a JPEG the marker can't be.
        pixels: of the image.
    """
    scans = content.count(bytes([0xFF, _START_OF_SCAN]))
    if content[:2] == b"\xff\xd8" and scans > 1 and scans * pixels > MAX_SCANNED:
        raise ValueError(f"{scans} scans of {pixels} pixels")


def _start_of_jpeg_2000(stream: bytes) -> int:
    """Return where the code begins: some writers put it into a JP2 file, boxes and all."""
    if stream[4:8] != b"jP  ":
        return 0 if stream.startswith(_JPEG_2000) else -1
    place = 0
    while place + 16 <= len(stream):
        length, kind = struct.unpack_from(">I4s", stream, place)
        head = 16 if length == 1 else 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", stream, place + 8)
        if kind == b"jp2c":
            return place + head if stream.startswith(_JPEG_2000, place + head) else -1
        if length < head:
            break
        place += length
    raise ValueError("a JPEG 2000 file without image")


def stream_size(stream: bytes) -> StreamSize | None:
    """Return the size of a JPEG, JPEG-LS or JPEG 2000 image, or None for other streams.

    Raises:
        ValueError: if it starts as one and does not say.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (3, 5)).save(file := io.BytesIO(), "JPEG")
        >>> stream_size(file.getvalue())
        StreamSize(height=5, width=3, channels=3)
    """
    if stream[:2] == b"\xff\xd8":
        for marker, segment in jpeg_segments(io.BytesIO(stream)):
            if marker in _FRAME and len(segment) >= 6:
                return StreamSize(*struct.unpack_from(">HHB", segment, 1))
        raise ValueError("a JPEG stream that does not say its size")
    start = _start_of_jpeg_2000(stream)
    if start >= 0:
        x1, y1, x0, y0 = struct.unpack_from(">4I", stream, start + 8)
        (channels,) = struct.unpack_from(">H", stream, start + 40)
        return StreamSize(y1 - y0, x1 - x0, channels)
    return None
