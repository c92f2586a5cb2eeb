"""What compressed streams say of their size, and how often they ask to be gone over."""

from __future__ import annotations

import struct

import pytest

from medduet.data.reading.codestream import StreamSize, check_scans, stream_size


def code(height: int, width: int) -> bytes:
    size = struct.pack(">HH8IH", 41, 0, width, height, 0, 0, width, height, 0, 0, 1)
    return b"\xff\x4f\xff\x51" + size + bytes(3)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


SIGNATURE = box(b"jP  ", b"\r\n\x87\n")


def test_the_image_of_a_jp2_file_counts_and_no_other() -> None:
    assert stream_size(code(5, 7)) == StreamSize(5, 7, 1)
    decoy = box(b"uuid", code(5, 7))
    assert stream_size(SIGNATURE + decoy + box(b"jp2c", code(60, 70))) == StreamSize(60, 70, 1)
    long = struct.pack(">I4sQ", 1, b"jp2c", 16 + len(code(6, 7))) + code(6, 7)
    assert stream_size(SIGNATURE + decoy + long) == StreamSize(6, 7, 1)


@pytest.mark.parametrize("content", [SIGNATURE + box(b"uuid", code(5, 7)), SIGNATURE + bytes(16)])
def test_a_jp2_file_without_image_is_told(content: bytes) -> None:
    with pytest.raises(ValueError, match="without image"):
        stream_size(content)


def test_a_jpeg_may_not_be_gone_over_too_often() -> None:
    content = b"\xff\xd8" + b"\xff\xda" * 100
    check_scans(content, 1000 * 1000)
    with pytest.raises(ValueError, match="100 scans of 16000000 pixels"):
        check_scans(content, 4000 * 4000)
    check_scans(content[2:], 4000 * 4000)  # no JPEG
    check_scans(content[:4], 8000 * 8000)
