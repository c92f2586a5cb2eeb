"""Images that a stranger may send: what they do to the process that reads them, it alone bears."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fuzz_samples as samples
import pytest
from PIL import Image

from medduet.data.reading.core import Facts, ReadOptions
from medduet.data.reading.images import read_pictures
from medduet.data.workers import WorkerPool
from medduet.errors import DataError


def png(width: int, height: int, *extra: bytes) -> bytes:
    head = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (head, *extra, b"IDAT" + zeros(1 << 20), b"IEND"):
        content += (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    return content


def zeros(count: int) -> bytes:
    return zlib.compress(bytes(count))


def tiff_of_tables(entries: int, count: int, room: int) -> bytes:
    """A TIFF whose entries all point at the same bytes."""
    table = b"".join(struct.pack("<HHII", 5_000 + k, 7, count, 8) for k in range(entries))
    body = b"II*\0" + struct.pack("<I", 8 + room) + bytes(room)
    return body + struct.pack("<H", entries) + table + bytes(4)


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG of 8000 x 8000 whose last scan comes again and again."""
    Image.new("L", (8000, 8000)).save(file := io.BytesIO(), "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2][:12] * scans + content[-2:]


def deflated_dicom() -> bytes:
    plain = samples.dicom("1.2.840.10008.1.2.1.99")
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(200)) + packer.flush()
    return plain[: 144 + struct.unpack_from("<I", plain, 140)[0]] + packed


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(60_000, 60_000),
    "dicom": lambda: samples.dicom(Rows=65_000, Columns=65_000),
    "png: text of 4 GB": lambda: png(8, 8, b"zTXtk\0\0" + 16 * zeros(1 << 28)),
    "tiff: tables of 1 GB": lambda: tiff_of_tables(1000, 1 << 20, 1 << 20),
    "jpeg: 4000 scans": lambda: jpeg_of_scans(4000),
    "dicom: frames": lambda: samples.dicom(NumberOfFrames="2147483647"),
    "dicom: deflated 3 GB": deflated_dicom,
}


@pytest.mark.slow
def test_a_bomb_costs_its_reader_at_most() -> None:
    read = partial(read_pictures, Path("image"), ReadOptions((16, 16)))
    with WorkerPool(1, memory=1 << 30, seconds=3) as pool:
        for name, make in BOMBS.items():
            reason = pool.call(read, io.BytesIO(make()))
            assert isinstance(reason, str), name
            assert reason.isprintable(), name
        content = io.BytesIO(samples.by_pillow(samples.GREY, "PNG"))
        assert pool.call(partial(samples.probe, Path("image")), content) == Facts(1, 1, 40, 36)


def test_what_a_file_says_is_one_printable_line() -> None:
    content = samples.dicom().replace(b"MONOCHROME2", b"MONO\n\x1b[31m2")
    with pytest.raises(DataError, match=r"^a: .*given MONO \?\[31m2$"):
        samples.probe(Path("a"), io.BytesIO(content))
