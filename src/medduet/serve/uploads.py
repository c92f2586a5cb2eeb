"""Reads uploads: in memory, within limits, and in processes that a hostile file can't leave."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

from PIL import Image
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from medduet.data.reading.core import VOLUMES, Facts, ReadOptions, kind_of, refusal
from medduet.data.reading.images import Picture, opened, read_pictures
from medduet.data.workers import WorkerPool

LEAST_SIDE = 8  # of an image, in pixels
LARGEST = 8  # so many of the largest files and images all requests may hold together
_KINDS = "a PNG, JPEG, TIFF, BMP, GIF, WebP, DICOM or NIfTI file"
_ENVELOPE = 1 << 16  # bytes of a form around its file
_UPLOAD = Path("image")  # what messages call it
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients get its errors


@dataclass(frozen=True)
class Limits:
    """Limits of one service."""

    max_bytes: int = 32 << 20
    max_pixels: int = 40_000_000  # as the header says; nothing larger is decoded
    queue: int = 64  # requests that are read, wait or are computed at the same time
    timeout_s: float = 30.0  # from the start of a request to its answer


class Room:
    """A seat for each request: the memory of all is bounded, however many clients come."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.seats = limits, list[Seat]()

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        """Give a request a seat while the body runs; HTTPException 429 if all are taken."""
        if len(self.seats) >= self.limits.queue:
            raise _busy(f"{len(self.seats)} requests are waiting already")
        self.seats.append(seat := Seat(self))
        try:
            yield seat
        finally:
            self.seats.remove(seat)


@dataclass(eq=False)
class Seat:
    """What one request holds in memory."""

    room: Room
    bytes: int = 0
    pixels: int = 0

    def hold(self, *, bytes: int = 0, pixels: int = 0) -> None:  # noqa: A002
        """Note that the request holds more; HTTPException 429 if that is too much for all."""
        self.bytes += bytes
        self.pixels += pixels
        seats, limits = self.room.seats, self.room.limits
        files = sum(seat.bytes for seat in seats) / limits.max_bytes
        images = sum(seat.pixels for seat in seats) / limits.max_pixels
        if max(files, images) > LARGEST:
            raise _busy("other large images are waiting")


def _busy(reason: str) -> HTTPException:
    return HTTPException(429, f"{reason}: try again soon", {"Retry-After": "1"})


class _InMemory(MultiPartParser):
    spool_max_size = 0  # without a bound, so that no file is written; `_body` has one

    def on_headers_finished(self) -> None:
        """Take the field ``file`` as a file, if it has no file name, too."""
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options.get(b"name") == b"file" and b"filename" not in options:
            part.content_disposition = (part.content_disposition or b"") + b'; filename="image"'
        super().on_headers_finished()


async def read_upload(request: Request, seat: Seat) -> bytes:
    """Return the file of a request: the field ``file`` of a form, or the body itself.

    HTTPException 413 for a large one, 422 for a broken form.
    """
    limit = seat.room.limits.max_bytes
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return b"".join([chunk async for chunk in _body(request, limit, seat)])
    stream = _body(request, limit + _ENVELOPE, seat)
    parser = _InMemory(
        request.headers, stream, max_files=1, max_fields=8, max_part_size=_ENVELOPE // 8
    )
    try:
        file = (await parser.parse()).get("file")
        content = file.file.read() if isinstance(file, UploadFile) else b""
    except MultiPartException as error:
        raise HTTPException(422, f"expected a form with one file: {error.message}") from error
    finally:
        for part in parser._files_to_close_on_error:  # all, even those that are in no form yet
            part.close()
    if not isinstance(file, UploadFile):
        raise HTTPException(422, "expected the image as the field 'file' of the form")
    if len(content) > limit:
        raise _too_large(seat)
    return content


async def _body(request: Request, allowed: int, seat: Seat) -> AsyncGenerator[bytes, None]:
    """Yield the body as it comes.

    The rest of one that is too large is dropped, up to four times the limit: most clients read the
    answer only when they have sent everything.
    """
    total, over = 0, int(request.headers.get("content-length", 0)) > allowed
    if over and request.headers.get("expect", "").lower() == "100-continue":
        raise _too_large(seat)
    async for chunk in request.stream():
        total += len(chunk)
        over = over or total > allowed
        if total > 4 * allowed:
            break
        if not over:
            seat.hold(bytes=len(chunk))
            yield chunk
    if over:
        raise _too_large(seat)


def _too_large(seat: Seat) -> HTTPException:
    limit = seat.room.limits.max_bytes / 2**20
    return HTTPException(413, f"expected a file of at most {limit:g} MB")


def _probe(file: io.BytesIO) -> Facts:
    """Return what the header says; DataError for a picture of several pages, or that moves."""
    with opened(_UPLOAD, file) as source:
        frames, kind = source.facts.frames, source.kind
        file.seek(0)
        raster = kind in ("PNG", "GIF", "WEBP") and Image.open(file, formats=[kind])
        if getattr(raster, "is_animated", False):
            raise refusal(_UPLOAD, "one image", "an animation")
        if frames > 1 and kind not in VOLUMES:
            raise refusal(_UPLOAD, "one image", f"a file of {frames} frames")
        return source.facts


async def decode(
    content: bytes, options: ReadOptions, seat: Seat, readers: WorkerPool
) -> list[Picture]:
    """Return the frames of a file; their size is checked before they are decoded.

    HTTPException 413 for too many pixels, 415 for other files, 422 for what can't be used.
    """
    if kind_of(file := io.BytesIO(content)) is None:
        raise HTTPException(415, f"expected {_KINDS}, given one that starts with {content[:8]!r}")
    facts = await asyncio.to_thread(readers.call, _probe, file)
    if isinstance(facts, str):
        raise HTTPException(422, facts)
    frames, _, height, width = facts
    size = f"{height} x {width}" if frames == 1 else f"{frames} frames of {height} x {width}"
    if (pixels := frames * height * width) > (limit := seat.room.limits.max_pixels):
        expected = f"expected at most {limit / 1e6:g} megapixels"
        raise HTTPException(413, f"{expected}, given {size} pixels")
    if min(height, width) < LEAST_SIDE:
        expected = f"expected at least {LEAST_SIDE} x {LEAST_SIDE} pixels"
        raise HTTPException(422, f"{expected}, given {size}")
    seat.hold(pixels=pixels)
    read = partial(read_pictures, _UPLOAD, options)
    pictures = await asyncio.to_thread(readers.call, read, file)
    if isinstance(pictures, str):
        raise HTTPException(422, pictures)
    pixels = prod(pictures[0].fitted.shape[: len(options.sides)])
    if options.spacing and pixels > limit:
        given = f"{pixels / 1e6:.3g} at the spacing of the network"
        raise HTTPException(413, f"expected at most {limit / 1e6:g} megapixels, given {given}")
    return pictures
