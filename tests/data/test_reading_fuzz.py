"""Broken files: the right shape or a DataError that names the file, whatever is in it."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileMetaDataset

from medduet.data.reading.core import ReadOptions
from medduet.data.reading.images import probe, read_images
from medduet.data.reading.masks import read_mask
from medduet.errors import DataError

OPTIONS = ReadOptions(16, "pad", 3)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 36), np.uint8)
COLOUR = RNG.integers(0, 256, (40, 36, 3), np.uint8)


def by_pillow(array: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def dicom(
    syntax: str = "1.2.840.10008.1.2.1", *, compress: bool = False, **changes: object
) -> bytes:
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1" if compress else syntax
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = 40, 36, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = GREY.astype("<u2").tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    if compress:
        data.compress(pydicom.uid.UID(syntax))
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def nifti(packed: bool) -> bytes:
    content = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes()
    return gzip.compress(content) if packed else content


SAMPLES: dict[str, bytes] = {
    "png": by_pillow(COLOUR, "PNG"),
    "png16": by_pillow(GREY.astype(np.uint16) * 200, "PNG"),
    "jpeg": by_pillow(
        COLOUR, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    ),
    "progressive": by_pillow(COLOUR, "JPEG", progressive=True),
    "tiff": by_pillow(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)]),
    "lzw": by_pillow(COLOUR, "TIFF", compression="tiff_lzw"),
    "deflate": by_pillow(GREY, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg-tiff": by_pillow(COLOUR, "TIFF", compression="jpeg"),
    "float-tiff": by_pillow(GREY.astype(np.float32), "TIFF"),
    "bmp": by_pillow(COLOUR, "BMP"),
    "webp": by_pillow(COLOUR, "WEBP"),
    "webp-lossless": by_pillow(COLOUR, "WEBP", lossless=True),
    "dicom": dicom(WindowCenter="100", WindowWidth="50"),
    "implicit": dicom("1.2.840.10008.1.2"),
    "deflated": dicom("1.2.840.10008.1.2.1.99"),
    "rle": dicom("1.2.840.10008.1.2.5", compress=True),
    "jpeg-ls": dicom("1.2.840.10008.1.2.4.80", compress=True),
    "jpeg-2000": dicom("1.2.840.10008.1.2.4.90", compress=True),
    "nifti": nifti(packed=False),
    "nifti-gz": nifti(packed=True),
}


def attempt(path: Path) -> str:
    """Read a file all ways; return "read" or the reason why not."""

    def reason(error: DataError) -> str:
        text = str(error)
        assert text.startswith(f"{path}: expected "), text
        assert "\n" not in text
        return text

    try:
        facts = probe(path)
        images = read_images(path, OPTIONS)
    except DataError as error:
        return reason(error)
    assert images.shape == (facts.frames, 16, 16, 3)
    assert images.dtype == np.uint8
    try:
        mask = read_mask([path], facts, OPTIONS)
    except DataError as error:
        reason(error)
    else:
        assert mask.shape == (facts.frames, 16, 16)
        assert mask.dtype == np.uint8
    return "read"


def broken(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, flip or overwrite some of the bytes."""
    data = bytearray(content)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    near = len(data) if rng.random() < 0.5 else min(len(data), 600)
    for _ in range(rng.integers(1, 9)):
        place = int(rng.integers(near))
        if kind == 1:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        else:
            data[place : place + 4] = rng.bytes(4)
    return bytes(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_read(name: str, tmp_path: Path) -> None:
    # The name says nothing of the content.
    path = tmp_path / "sample.png"
    path.write_bytes(SAMPLES[name])
    assert attempt(path) == "read"


@pytest.mark.parametrize("name", SAMPLES)
def test_broken_files_are_told(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(sorted(SAMPLES).index(name))
    for number in range(40):
        path = tmp_path / f"{number}.img"
        path.write_bytes(broken(SAMPLES[name], rng))
        attempt(path)


def test_a_panic_in_rust_is_told(tmp_path: Path) -> None:
    content = SAMPLES["rle"]
    place = content.index(struct.pack("<II", 2, 64))
    path = tmp_path / "a.dcm"
    reasons = []
    for offset in range(64, 2000, 8):  # of the second segment of run lengths
        path.write_bytes(content[: place + 8] + struct.pack("<I", offset) + content[place + 12 :])
        reasons.append(attempt(path))
    assert any("index out of bounds" in reason for reason in reasons)


def test_what_a_file_says_is_one_printable_line(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(SAMPLES["dicom"].replace(b"MONOCHROME2", b"MONO\n\x1b[31m2"))
    assert attempt(path).endswith("given MONO ?[31m2")


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from(sorted(SAMPLES)), kept=st.integers(0, 200), tail=st.binary(max_size=300)
)
def test_random_content_is_told(
    tmp_path_factory: pytest.TempPathFactory, start: str, kept: int, tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("random") / "a.dcm"
    path.write_bytes(SAMPLES[start][:kept] + tail)
    attempt(path)


def png_of(width: int, height: int, chunks: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    extra = chunk(chunks[:4], chunks[4:]) if chunks else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + extra
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def tiff_of_tables(entries: int, count: int, room: int) -> bytes:
    """A TIFF whose entries all point at the same bytes."""
    table = b"".join(struct.pack("<HHII", 5_000 + k, 7, count, 8) for k in range(entries))
    body = b"II*\0" + struct.pack("<I", 8 + room) + b"\0" * room
    return body + struct.pack("<H", entries) + table + struct.pack("<I", 0)


def jpeg_with_exif(tables: bytes) -> bytes:
    plain = by_pillow(GREY, "JPEG")
    pieces = [tables[k : k + 60_000] for k in range(0, len(tables), 60_000)]
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece for piece in pieces
    )
    return plain[:2] + segments + plain[2:]


def huge_gzip() -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header.set_data_dtype(np.float64)
    return gzip.compress(header.binaryblock + bytes(1 << 20))


def claimed_jpeg_2000() -> bytes:
    content = bytearray(SAMPLES["jpeg-2000"])
    place = content.index(b"\xff\x4f\xff\x51") + 8
    content[place : place + 8] = struct.pack(">II", 60_000, 60_000)
    return bytes(content)


def deflated_bomb() -> bytes:
    plain = dicom("1.2.840.10008.1.2.1.99")
    start = (
        144
        + pydicom.filereader.read_file_meta_info(io.BytesIO(plain)).FileMetaInformationGroupLength
    )
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(80)) + packer.flush()
    return plain[:start] + packed


BOMBS: dict[str, Callable[[], bytes]] = {
    "png of 60000 x 60000": lambda: png_of(60_000, 60_000),
    "png of 12000 x 6000": lambda: png_of(12_000, 6_000),
    "zTXt": lambda: png_of(8, 8, b"zTXtk\0\0" + zlib.compress(bytes(1 << 27))),
    "iCCP": lambda: png_of(8, 8, b"iCCPk\0\0" + zlib.compress(bytes(1 << 27))),
    "tiff tables": lambda: tiff_of_tables(1000, 1 << 20, 1 << 20),
    "tiff entries": lambda: tiff_of_tables(60_000, 4, 16),
    "exif of jpeg": lambda: jpeg_with_exif(tiff_of_tables(1000, 1 << 20, 1 << 20)),
    "nifti of 2000 x 2000 x 2000": huge_gzip,
    "stream of 60000 x 60000": claimed_jpeg_2000,
    "rows and columns": lambda: dicom(Rows=60_000, Columns=60_000),
    "frames": lambda: dicom(NumberOfFrames="100000000"),
    "webp": lambda: SAMPLES["webp"][:26] + struct.pack("<HH", 16383, 16383) + SAMPLES["webp"][30:],
}

_MEASURE = """
import resource, sys
from pathlib import Path
import medduet.data.reading as reading, nibabel, pydicom.pixels
from medduet.errors import DataError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    reading.read_images(Path(sys.argv[1]), reading.ReadOptions(16))
    what = "read"
except DataError as error:
    what = str(error)
print(peak() - before, what)
"""


def measured(path: Path) -> tuple[int, str]:
    """Read a file in a process of its own; return the bytes that took and what came of it."""
    command = [sys.executable, "-c", _MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    kilobytes, _, what = done.stdout.strip().partition(" ")
    return int(kilobytes) << 10, what


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_no_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[name]())
    taken, what = measured(path)
    assert what.startswith(f"{path}: expected ")
    assert taken < 64 << 20


@pytest.mark.parametrize("kind", ["png", "dicom", "nifti"])
def test_a_large_file_takes_what_is_stated(kind: str, tmp_path: Path) -> None:
    """At most 32 bytes per pixel of the largest frame, 8 per voxel of a volume, and the file."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4000, (2000, 2400), dtype=np.uint16)
    path = tmp_path / f"large.{kind}"
    voxels = 0
    if kind == "png":
        Image.fromarray(values).save(path, compress_level=0)
    elif kind == "dicom":
        path.write_bytes(dicom(Rows=2000, Columns=2400, PixelData=values.tobytes()))
    else:
        volume = rng.integers(0, 4000, (256, 256, 60), dtype=np.int16)
        path.write_bytes(gzip.compress(nib.Nifti1Image(volume, np.eye(4)).to_bytes(), 1))
        voxels = volume.size
    taken, what = measured(path)
    assert what == "read"
    assert taken < 32 * values.size + 8 * voxels + path.stat().st_size + (48 << 20)
