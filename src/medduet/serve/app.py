"""The routes of the service."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, BinaryIO, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medduet._version import __version__
from medduet.data.reading.opening import kind_of
from medduet.data.workers import WorkerPool
from medduet.errors import closest
from medduet.inference.predictor import Answer, Predictor
from medduet.serve.answers import MaskFormat, Prediction, prediction
from medduet.serve.batcher import Batcher
from medduet.serve.counters import Counters
from medduet.serve.limits import LEAST_SIDE, Limits, Room, Seat, busy
from medduet.serve.uploads import picture_in, read_upload
from medduet.utils.palette import mask_colors

CLIENT_GONE = 499
_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_REFUSALS: dict[int, str] = {
    404: "There is no model of that name.",
    408: "The image did not arrive in time.",
    413: "The file has too many bytes or pixels.",
    415: "The file is of another kind.",
    422: "The image can't be read, is too small, or has several frames; or an option is wrong.",
    429: "Too many requests are waiting; Retry-After says when to try again.",
    504: "The answer was not ready in time.",
}
_OPTIONS = ("model", "mask", "explain", "image", "side")  # of /predict
_BODY = {
    "description": "PNG, JPEG, TIFF, BMP, WebP or DICOM: the file itself, or a form with it.",
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """A network that is served.

    Attributes:
        predictor: that answers.
        explains: whether it can draw what spoke for the class.
        card: its model card, Markdown.
    """

    predictor: Predictor
    explains: bool = False
    card: str = ""


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str


class MaskName(BaseModel):
    """A mask class and the colour in which it is drawn."""

    name: str
    colour: str


class About(BaseModel):
    """What is known of a network."""

    name: str
    class_names: list[str]
    multi_label: bool
    masks: list[MaskName]
    size: tuple[int, int]
    explains: bool
    card: str


class Models(BaseModel):
    """The networks that are served, and what is taken."""

    models: list[About]
    max_bytes: int
    max_pixels: int
    least_side: int
    timeout_s: float


def create_app(served: Mapping[str, Served], limits: Limits | None = None) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        served: networks by name; the first is asked unless a request names another.
        limits: what is taken.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fastapi.testclient import TestClient
        >>> from medduet import create_model
        >>> from medduet.runs.bundle import save_bundle
        >>> network = create_model("vovunet_var", in_channels=1, num_classes=2, width=2)
        >>> folder = Path(tempfile.mkdtemp()) / "bundle"
        >>> save_bundle(folder, network, {
        ...     "multi_label": False, "class_names": ["benign", "malignant"],
        ...     "layout": {"mask_classes": 0, "image_channels": 0},
        ...     "preprocessing": {"size": [32, 32], "channels": 1, "fit": "pad"}})
        >>> with TestClient(create_app({"busi": Served(Predictor(folder))})) as client:
        ...     client.get("/healthz").json()
        {'status': 'ok', 'models': ['busi']}
    """
    service = _Service(served, limits or Limits())
    app = FastAPI(
        title="MedDuet",
        version=__version__,
        description="What a medical image shows, and where. For research: not a medical device.",
        docs_url=None,
        redoc_url=None,
        lifespan=service.lifespan,
    )
    app.state.service = service
    app.add_middleware(_Outermost, counters=service.counters)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = error.errors()[0]
        place = ".".join(str(part) for part in found["loc"][1:])
        return JSONResponse({"detail": f"{place}: {found['msg']}, given {found['input']}"}, 422)

    async def elsewhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = error.detail
        if detail == HTTPStatus(error.status_code).phrase:  # of the router
            known = "POST /predict, or GET / /docs /models /healthz /metrics"
            detail = f"expected {known}, given {request.method} {request.url.path}"
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": "the service failed; its log says why"}, 500)

    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(404, elsewhere)
    app.add_exception_handler(405, elsewhere)
    app.add_exception_handler(Exception, failed)

    @app.post(
        "/predict",
        response_model=Prediction,
        responses={
            code: {"model": Refusal, "description": text} for code, text in _REFUSALS.items()
        },
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(
        request: Request,
        model: Annotated[str | None, Query(description="name of the model")] = None,
        mask: Annotated[
            MaskFormat, Query(description="how to send the mask: rle is COCO's, uncompressed")
        ] = "png",
        explain: Annotated[
            bool, Query(description="also send what spoke for the class (Grad-CAM)")
        ] = False,
        image: Annotated[bool, Query(description="also send the image")] = False,
        side: Annotated[
            int,
            Query(ge=0, le=8192, description="longest side of what is sent as PNG; 0: the image's"),
        ] = 0,
    ) -> Response:
        """Say what an image shows, and where."""
        if unknown := [each for each in request.query_params if each not in _OPTIONS]:
            raise HTTPException(
                422, f"unknown option '{unknown[0]}': {closest(unknown[0], _OPTIONS)}"
            )
        name = service.first if model is None else model
        if name not in served:
            raise HTTPException(404, f"there is no model '{name}': {closest(name, served)}")
        if explain and not served[name].explains:
            raise HTTPException(422, f"{name} can't explain: leave explain out")
        send = partial(prediction, name, served[name].predictor, mask=mask, image=image, side=side)
        return await service.predict(request, name, explain, send)

    @app.get("/models")
    def models() -> Models:
        """Name the networks, their classes, and what is taken."""
        return service.about()

    @app.get("/healthz", responses={503: {"description": "A network answers no more."}})
    def healthz() -> JSONResponse:
        """Say whether all networks answer."""
        dead = [name for name, batcher in service.batchers.items() if not batcher.alive]
        said = {"status": "failed" if dead else "ok", "models": list(served)}
        return JSONResponse(said, 503 if dead else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        """Give counts in the text format of Prometheus."""
        return Response(service.counters.text(), media_type=CONTENT_TYPE_LATEST)

    for path, (file, kind) in _PAGES.items():
        content = files(__package__).joinpath("page", file).read_bytes()
        app.add_api_route(path, _page(content, kind), include_in_schema=False)
    return app


def _page(content: bytes, kind: str) -> Callable[[], Response]:
    def page() -> Response:
        return Response(content, media_type=kind)

    return page


class _Service:
    """What the routes share."""

    def __init__(self, served: Mapping[str, Served], limits: Limits) -> None:
        self.served, self.limits, self.first = served, limits, next(iter(served))
        self.room = Room(limits)
        self.batchers: dict[str, Batcher] = {}
        self.counters = Counters(
            {name: partial(self._waiting, name) for name in served}, lambda: self.room.requests
        )
        self._threads: ThreadPoolExecutor
        self._readers: WorkerPool

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Run the threads while the service does."""
        # Decoding and encoding are for the processor: more threads would only take memory.
        workers = min(8, os.cpu_count() or 1)
        with (
            ThreadPoolExecutor(workers, "medduet-images") as self._threads,
            WorkerPool(workers, seconds=self.limits.timeout_s) as self._readers,
        ):
            await self._in_thread(self._readers.call, kind_of, b"")  # starts the processes
            for name, each in self.served.items():
                self.batchers[name] = Batcher(
                    partial(_answers, each.predictor),
                    batch_size=each.predictor.batch_size,
                    room=self.limits.queue,
                    watch=partial(self.counters.batch, name),
                )
            try:
                yield
            finally:
                for batcher in self.batchers.values():
                    await asyncio.to_thread(batcher.close)

    async def predict(
        self, request: Request, name: str, explain: bool, send: Callable[[Answer], Prediction]
    ) -> Response:
        with self.room.seat() as seat:
            deadline = time.monotonic() + self.limits.timeout_s
            try:
                file = await _until(deadline, read_upload(request, self.limits, seat))
            except TimeoutError as error:
                given = f"within {self.limits.timeout_s:g} seconds"
                raise HTTPException(408, f"expected the whole image {given}") from error
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            work = self._answered(file, name, explain, seat, deadline, send)
            del file
            try:
                content = await _until(deadline, _unless_gone(request, work))
            except TimeoutError as error:
                given = f"{self.limits.timeout_s:g} seconds"
                raise HTTPException(504, f"the answer was not ready after {given}") from error
            if content is None:
                return Response(status_code=CLIENT_GONE)
            return Response(content, media_type="application/json")

    async def _answered(
        self,
        file: BinaryIO,
        name: str,
        explain: bool,
        seat: Seat,
        deadline: float,
        send: Callable[[Answer], Prediction],
    ) -> bytes:
        predictor = self.served[name].predictor
        picture = await self._in_thread(
            picture_in, file, predictor, self.limits, seat, self._readers
        )
        file.close()
        try:
            future = self.batchers[name].submit(picture, explain=explain, deadline=deadline)
        except queue.Full as error:
            raise busy(f"{self.limits.queue} images are waiting already") from error
        answer = await asyncio.wrap_future(future)
        return await self._in_thread(lambda: _json(send(answer)))

    def about(self) -> Models:
        """Return what `GET /models` says."""
        return Models(
            models=[_about(name, each) for name, each in self.served.items()],
            max_bytes=self.limits.max_bytes,
            max_pixels=self.limits.max_pixels,
            least_side=LEAST_SIDE,
            timeout_s=self.limits.timeout_s,
        )

    def _waiting(self, name: str) -> int:
        return self.batchers[name].waiting if name in self.batchers else 0

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *arguments))


def _answers(predictor: Predictor, pictures: Any, explain: bool) -> list[Answer]:
    return predictor.answer(pictures, explain=explain)


def _json(value: BaseModel) -> bytes:
    return json.dumps(value.model_dump(), allow_nan=False, ensure_ascii=False).encode()


def _about(name: str, each: Served) -> About:
    names = each.predictor.mask_names
    colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in mask_colors(len(names))]
    return About(
        name=name,
        class_names=each.predictor.class_names,
        multi_label=each.predictor.multi_label,
        masks=[
            MaskName(name=mask, colour=colour) for mask, colour in zip(names, colours, strict=False)
        ],
        size=each.predictor.options.sides,
        explains=each.explains,
        card=each.card,
    )


async def _until(deadline: float, work: Awaitable[T]) -> T:
    async with asyncio.timeout(deadline - time.monotonic()):
        return await work


async def _unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """Return the result of `work`, or None if the client went away, which ends the work."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Outermost:
    """Adds headers to every answer, and counts those of predictions."""

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self.app, self.counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            await self.app(scope, receive, with_headers)
        finally:
            if scope["path"] == "/predict":
                self.counters.requests.labels(str(status)).inc()
                self.counters.seconds.observe(time.perf_counter() - start)
