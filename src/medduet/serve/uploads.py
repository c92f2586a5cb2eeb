"""Reads what a client sent: in memory, within limits, by what is in it."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncGenerator
from functools import partial
from typing import BinaryIO

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from medduet.data.reading.images import Picture, probe_content, read_content
from medduet.data.reading.opening import kind_of, start_of
from medduet.data.workers import WorkerPool
from medduet.inference.predictor import Predictor
from medduet.serve.limits import LEAST_SIDE, Limits, Seat

_KNOWN = "a PNG, JPEG, TIFF, BMP, WebP or DICOM file"
_RAW = (
    "",
    "application/octet-stream",
    "application/dicom",
    "application/x-www-form-urlencoded",  # what curl --data-binary says unless it is told
)
_ENVELOPE = 1 << 16  # bytes of a form around its file
_HEAD = 140  # bytes that tell the kind of a file
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what clients send is told to them


class _InMemory(MultiPartParser):
    spool_max_size = 0  # without a bound, so that no file is written; `_bounded` has one


async def read_upload(request: Request, limits: Limits, seat: Seat) -> BinaryIO:
    """Return the file of a request: the field ``file`` of a form, or the body itself.

    Raises:
        HTTPException: 413, it is too large; 415, it is of another kind; 422, the form is broken.
        ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, limits, seat)
    if kind not in _RAW and not kind.startswith("image/"):
        raise HTTPException(
            415, f"expected {_KNOWN}, as it is or as the field 'file' of a form, given {kind}"
        )
    file = io.BytesIO()
    async for chunk in _bounded(request, limits.max_bytes, limits, seat):
        file.write(chunk)
    return file


async def _from_form(request: Request, limits: Limits, seat: Seat) -> BinaryIO:
    stream = _bounded(request, limits.max_bytes + _ENVELOPE, limits, seat)
    parser = _InMemory(
        request.headers, stream, max_files=1, max_fields=8, max_part_size=_ENVELOPE // 8
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(422, f"expected a form with one file: {error.message}") from error
    try:
        given = form.get("file")
        if not isinstance(given, UploadFile):
            raise HTTPException(422, "expected the image as the field 'file' of the form")
        # Not the file of the form itself: decoders ask for its number, and it would go to the disk.
        file = io.BytesIO(given.file.read())
    finally:
        await form.close()
        for begun in parser._files_to_close_on_error:  # a file that did not end is in no form
            begun.close()
    if file.getbuffer().nbytes > limits.max_bytes:
        raise _too_large(limits)
    return file


async def _bounded(
    request: Request, allowed: int, limits: Limits, seat: Seat
) -> AsyncGenerator[bytes, None]:
    """Give the body of a request as it comes.

    Of one that is too large the rest is read and dropped, up to four times of what is allowed: most
    clients see the reason only when they have sent all.
    """
    total, over = 0, int(request.headers.get("content-length", 0)) > allowed
    if over and request.headers.get("expect", "").lower() == "100-continue":
        raise _too_large(limits)
    async for chunk in request.stream():
        total += len(chunk)
        over = over or total > allowed
        if total > 4 * allowed:
            break
        if not over:
            seat.hold(bytes=len(chunk))
            yield chunk
    if over:
        raise _too_large(limits)


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"expected a file of at most {limits.max_bytes / 2**20:g} MB")


def picture_in(
    file: BinaryIO, predictor: Predictor, limits: Limits, seat: Seat, readers: WorkerPool
) -> Picture:
    """Return the image in a file as `predictor` takes it; its size is checked before.

    The file is read in a process of `readers`, which is all that it can harm.

    Raises:
        HTTPException: 413, it has too many pixels; 415, it is of another kind; 422, it can't be
            read, is too small, or has several frames.
    """
    file.seek(0)
    content = file.read()
    if kind_of(content[:_HEAD]) is None:
        raise HTTPException(415, f"expected {_KNOWN}, given {start_of(content[:_HEAD])}")
    facts = readers.call(probe_content, content)
    if isinstance(facts, str):
        raise HTTPException(422, facts)
    frames, _, height, width = facts
    _check_pixels(height, width, limits)
    if min(height, width) < LEAST_SIDE:
        raise HTTPException(
            422,
            f"expected an image of at least {LEAST_SIDE} x {LEAST_SIDE} pixels, given "
            f"{height} x {width}",
        )
    if frames > 1:
        raise HTTPException(422, f"expected one image, given a file of {frames} frames")
    seat.hold(pixels=height * width)
    pictures = readers.call(partial(read_content, options=predictor.options), content)
    if isinstance(pictures, str):
        raise HTTPException(422, pictures)
    return pictures[0]


def _check_pixels(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.max_pixels:
        allowed = f"{limits.max_pixels / 1e6:g} megapixels"
        raise HTTPException(413, f"expected at most {allowed}, given {height} x {width} pixels")
