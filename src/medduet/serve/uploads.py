"""Reads uploads: in memory, within limits, and in processes that a hostile file can't leave."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from medduet.data.reading.core import ReadOptions
from medduet.data.reading.images import Picture, probe, read_pictures
from medduet.data.reading.opening import HEAD, kind_of
from medduet.data.workers import WorkerPool
from medduet.serve.limits import LEAST_SIDE, Seat

_KINDS = "a PNG, JPEG, TIFF, BMP, WebP or DICOM file"
_RAW = (
    "",
    "application/octet-stream",
    "application/dicom",
    "application/x-www-form-urlencoded",  # curl --data-binary without a header
)
_ENVELOPE = 1 << 16  # bytes of a form around its file
_SENT = Path("image")  # what messages call it
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients get its errors


class _InMemory(MultiPartParser):
    spool_max_size = 0  # without a bound, so that no file is written; `_body` has one


async def read_upload(request: Request, seat: Seat) -> bytes:
    """Return the file of a request: the field ``file`` of a form, or the body itself.

    HTTPException 413 for a large one, 415 for another kind, 422 for a broken form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, seat)
    if kind not in _RAW and not kind.startswith("image/"):
        raise HTTPException(
            415, f"expected {_KINDS}, as it is or as the field 'file' of a form, given {kind}"
        )
    return b"".join([chunk async for chunk in _body(request, seat.limits.max_bytes, seat)])


async def _from_form(request: Request, seat: Seat) -> bytes:
    stream = _body(request, seat.limits.max_bytes + _ENVELOPE, seat)
    parser = _InMemory(
        request.headers, stream, max_files=1, max_fields=8, max_part_size=_ENVELOPE // 8
    )
    try:
        form = await parser.parse()
        file = form.get("file")
        content = file.file.read() if isinstance(file, UploadFile) else b""
        await form.close()
    except MultiPartException as error:
        raise HTTPException(422, f"expected a form with one file: {error.message}") from error
    finally:
        for begun in parser._files_to_close_on_error:  # a file that did not end is in no form
            begun.close()
    if not isinstance(file, UploadFile):
        raise HTTPException(422, "expected the image as the field 'file' of the form")
    if len(content) > seat.limits.max_bytes:
        raise _too_large(seat)
    return content


async def _body(request: Request, allowed: int, seat: Seat) -> AsyncGenerator[bytes, None]:
    """Give the body as it comes.

    Of one that is too large the rest is dropped, up to four times of what is allowed: most clients
    see the reason only when they have sent all.
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
    return HTTPException(413, f"expected a file of at most {seat.limits.max_bytes / 2**20:g} MB")


async def decode(content: bytes, options: ReadOptions, seat: Seat, readers: WorkerPool) -> Picture:
    """Return the image in a file; its size is checked before it is decoded.

    HTTPException 413 for too many pixels, 415 for other files, 422 for what can't be used.
    """
    if kind_of(content[:HEAD]) in (None, "NIfTI"):
        raise HTTPException(415, f"expected {_KINDS}, given one that starts with {content[:8]!r}")
    file = io.BytesIO(content)
    facts = await asyncio.to_thread(readers.call, partial(probe, _SENT), file)
    if isinstance(facts, str):
        raise HTTPException(422, facts)
    frames, _, height, width = facts
    if height * width > (most := seat.limits.max_pixels):
        expected = f"expected at most {most / 1e6:g} megapixels"
        raise HTTPException(413, f"{expected}, given {height} x {width} pixels")
    if min(height, width) < LEAST_SIDE:
        expected = f"expected at least {LEAST_SIDE} x {LEAST_SIDE} pixels"
        raise HTTPException(422, f"{expected}, given {height} x {width}")
    if frames > 1:
        raise HTTPException(422, f"expected one image, given a file of {frames} frames")
    seat.hold(pixels=height * width)
    read = partial(read_pictures, _SENT, options)
    pictures = await asyncio.to_thread(readers.call, read, file)
    if isinstance(pictures, str):
        raise HTTPException(422, pictures)
    return pictures[0]
