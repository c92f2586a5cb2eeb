"""Reads uploads: in memory, within limits, and in processes that a hostile file can't leave."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from medduet.data.reading.core import ReadOptions
from medduet.data.reading.images import Picture, probe_content, read_content
from medduet.data.reading.opening import kind_of, start_of
from medduet.data.workers import WorkerPool
from medduet.serve.limits import LEAST_SIDE, Limits, Room, Seat

_KINDS = "a PNG, JPEG, TIFF, BMP, WebP or DICOM file"
_RAW = (
    "",
    "application/octet-stream",
    "application/dicom",
    "application/x-www-form-urlencoded",  # curl --data-binary without a header
)
_ENVELOPE = 1 << 16  # bytes of a form around its file
_HEAD = 140  # bytes by which the kind of a file is detected
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients get its errors


class _InMemory(MultiPartParser):
    spool_max_size = 0  # without a bound, so that no file is written; `_body` has one


@dataclass(frozen=True)
class Upload:
    """One upload: `read` its bytes, then `decode` them.

    Attributes:
        request: that sends it.
        limits: of the service.
        room: of all requests.
        seat: of this one.
    """

    request: Request
    limits: Limits
    room: Room
    seat: Seat

    async def read(self) -> bytes:
        """Return the file of a request: the field ``file`` of a form, or the body itself.

        Raises:
            HTTPException: 413, it is too large; 415, it is of another kind; 422, the form is
                broken.
            ClientDisconnect: the client has gone.
        """
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._from_form()
        if kind not in _RAW and not kind.startswith("image/"):
            raise HTTPException(
                415, f"expected {_KINDS}, as it is or as the field 'file' of a form, given {kind}"
            )
        return b"".join([chunk async for chunk in self._body(self.limits.max_bytes)])

    async def _from_form(self) -> bytes:
        stream = self._body(self.limits.max_bytes + _ENVELOPE)
        parser = _InMemory(
            self.request.headers, stream, max_files=1, max_fields=8, max_part_size=_ENVELOPE // 8
        )
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(422, f"expected a form with one file: {error.message}") from error
        try:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise HTTPException(422, "expected the image as the field 'file' of the form")
            content = file.file.read()
        finally:
            await form.close()
            for begun in parser._files_to_close_on_error:  # a file that did not end is in no form
                begun.close()
        if len(content) > self.limits.max_bytes:
            raise self._too_large()
        return content

    async def _body(self, allowed: int) -> AsyncGenerator[bytes, None]:
        """Give the body as it comes.

        Of one that is too large the rest is dropped, up to four times of what is allowed: most
        clients see the reason only when they have sent all.
        """
        headers = self.request.headers
        total, over = 0, int(headers.get("content-length", 0)) > allowed
        if over and headers.get("expect", "").lower() == "100-continue":
            raise self._too_large()
        async for chunk in self.request.stream():
            total += len(chunk)
            over = over or total > allowed
            if total > 4 * allowed:
                break
            if not over:
                self.room.hold(self.seat, bytes=len(chunk))
                yield chunk
        if over:
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        largest = self.limits.max_bytes / 2**20
        return HTTPException(413, f"expected a file of at most {largest:g} MB")

    def decode(self, content: bytes, options: ReadOptions, readers: WorkerPool) -> Picture:
        """Return the image in a file; its size is checked before it is decoded.

        Raises:
            HTTPException: 413, it has too many pixels; 415, it is of another kind; 422, it can't
                be read, is too small, or has several frames.
        """
        if kind_of(content[:_HEAD]) is None:
            raise HTTPException(415, f"expected {_KINDS}, given {start_of(content[:_HEAD])}")
        facts = readers.call(probe_content, content)
        if isinstance(facts, str):
            raise HTTPException(422, facts)
        frames, _, height, width = facts
        if height * width > self.limits.max_pixels:
            largest = f"{self.limits.max_pixels / 1e6:g} megapixels"
            raise HTTPException(413, f"expected at most {largest}, given {height} x {width} pixels")
        if min(height, width) < LEAST_SIDE:
            raise HTTPException(
                422,
                f"expected at least {LEAST_SIDE} x {LEAST_SIDE} pixels, given {height} x {width}",
            )
        if frames > 1:
            raise HTTPException(422, f"expected one image, given a file of {frames} frames")
        self.room.hold(self.seat, pixels=height * width)
        pictures = readers.call(partial(read_content, options=options), content)
        if isinstance(pictures, str):
            raise HTTPException(422, pictures)
        return pictures[0]
