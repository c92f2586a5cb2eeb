"""The routes of the service."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medduet._version import __version__
from medduet.errors import closest
from medduet.serve.counters import Counters
from medduet.serve.limits import Limits
from medduet.serve.schemas import MaskFormat, Models, PredictionResponse, Refusal, encode_prediction
from medduet.serve.service import Served, Service

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_INLINE = "; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"  # Swagger UI
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


def create_app(served: Mapping[str, Served], limits: Limits | None = None) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        served: networks by name; the first answers unless a request names another.
        limits: of requests.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fastapi.testclient import TestClient
        >>> from medduet import create_model
        >>> from medduet.inference.predictor import Predictor
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
    service = Service(served, limits or Limits())
    # Swagger UI comes from this process, not from a CDN.
    app = FastAPIOffline(
        redoc_url=None,
        title="MedDuet",
        version=__version__,
        description="Classes and masks of medical images. For research: not a medical device.",
        lifespan=service.lifespan,
    )
    app.state.service = service
    app.add_middleware(_Outermost, counters=service.counters)
    app.add_exception_handler(RequestValidationError, _wrong_option)
    app.add_exception_handler(404, _unknown_route)
    app.add_exception_handler(405, _unknown_route)
    app.add_exception_handler(Exception, _failed)
    _add_routes(app, service)
    for path, (file, kind) in _PAGE.items():
        content = files(__package__).joinpath("page", file).read_bytes()
        app.add_api_route(path, _page(content, kind), include_in_schema=False)
    return app


def _page(content: bytes, kind: str) -> Callable[[], Response]:
    def page() -> Response:
        return Response(content, media_type=kind)

    return page


def _add_routes(app: FastAPI, service: Service) -> None:
    served = service.served

    @app.post(
        "/predict",
        response_model=PredictionResponse,
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
        explain: Annotated[bool, Query(description="also send the heat map (Grad-CAM)")] = False,
        image: Annotated[bool, Query(description="also send the image")] = False,
        side: Annotated[
            int,
            Query(ge=0, le=8192, description="longest side of what is sent as PNG; 0: the image's"),
        ] = 0,
    ) -> Response:
        """Predict the classes and the mask of an image."""
        if unknown := [each for each in request.query_params if each not in _OPTIONS]:
            raise HTTPException(
                422, f"unknown option '{unknown[0]}': {closest(unknown[0], _OPTIONS)}"
            )
        name = next(iter(served)) if model is None else model
        if name not in served:
            raise HTTPException(404, f"there is no model '{name}': {closest(name, served)}")
        if explain and not served[name].explains:
            raise HTTPException(422, f"{name} has no heat maps: omit explain")
        encode = partial(
            encode_prediction, name, served[name].predictor, mask=mask, image=image, side=side
        )
        return await service.predict(request, name, explain, encode)

    @app.get("/models")
    def models() -> Models:
        """List the networks, their classes, and the limits."""
        return service.models()

    @app.get("/healthz", responses={503: {"description": "A network no longer answers."}})
    def healthz() -> JSONResponse:
        """Check that all networks answer."""
        dead = [name for name, batcher in service.batchers.items() if not batcher.alive]
        health = {"status": "failed" if dead else "ok", "models": list(served)}
        return JSONResponse(health, 503 if dead else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        """Return counts in the text format of Prometheus."""
        content = generate_latest(service.counters.registry)
        return Response(content, media_type=CONTENT_TYPE_LATEST)


async def _wrong_option(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"{place}: {first['msg']}, given {first['input']}"}, 422)


async def _unknown_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:  # of the router
        routes = "POST /predict, or GET / /docs /models /healthz /metrics"
        detail = f"expected {routes}, given {request.method} {request.url.path}"
    return JSONResponse({"detail": detail}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "the service failed; see its log"}, 500)


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
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if scope["path"] == "/docs":
                    headers["Content-Security-Policy"] = _POLICY + _INLINE
            await send(message)

        try:
            await self.app(scope, receive, with_headers)
        finally:
            if scope["path"] == "/predict":
                self.counters.requests.labels(str(status)).inc()
                self.counters.seconds.observe(time.perf_counter() - start)
