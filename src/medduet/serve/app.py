"""The routes of the service."""

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint

from medduet._version import __version__
from medduet.errors import closest
from medduet.inference.predictor import Prediction
from medduet.serve.schemas import (
    FramesResponse,
    Options,
    PredictionResponse,
    Refusal,
    encode_dicom,
    encode_predictions,
    wants_dicom,
)
from medduet.serve.service import Counters, Served, Service
from medduet.serve.uploads import LEAST_SIDE, Limits
from medduet.utils.palette import MASK_RGB

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
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _FILE}}
_BODY = {
    "description": "PNG, JPEG, TIFF, BMP, GIF, WebP, DICOM or NIfTI: the file, or a form with it.",
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _FORM},
        "application/octet-stream": {"schema": _FILE},
    },
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"multipart/related": {"schema": _FILE}}},  # in DICOM
    204: {"description": "In DICOM: neither classes nor a mask"},
    **{s: {"model": Refusal} for s in (404, 406, 408, 413, 415, 422, 429, 500, 504)},
}
_PREFIX = re.compile(r"(/[\w.~-]+)+")  # of a proxy
_ADDRESS = re.compile(r"[\d.]+|\[[\da-f:.]+\]")
_PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}


def create_app(
    served: Mapping[str, Served],
    limits: Limits | None = None,
    hosts: Collection[str] = ("*",),
    origins: Collection[str] = (),
) -> FastAPI:
    """Return the service of networks by name as an ASGI application; the first is the default.

    It may be called by the names in `hosts`, "*" for any, and by pages of `origins`.
    """
    service = Service(served, limits or Limits())
    app = FastAPIOffline(  # Swagger UI comes from this process, not from a CDN
        redoc_url=None,
        redirect_slashes=False,  # to an address that a proxy may know by another name
        title="MedDuet",
        version=__version__,
        description="Classes and masks of medical images. For research: not a medical device.",
        lifespan=service.lifespan,
        responses={400: {"model": Refusal, "description": "The Host header has another name"}},
    )
    app.state.service = service
    app.middleware("http")(partial(_finish, service.counters, {name.lower() for name in hosts}))
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_exception_handler(RequestValidationError, _invalid_option)
    app.add_exception_handler(Exception, _internal_error)
    for address, file in _PAGE.items():
        app.add_route(address, partial(_page, file))

    @app.post(
        "/predict",
        response_model=PredictionResponse | FramesResponse,
        openapi_extra={"requestBody": _BODY},
        responses=_ANSWERS,
    )
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Predict the classes and the mask of an image."""
        name = next(iter(served)) if options.model is None else options.model
        if name not in served:
            raise HTTPException(404, f"unknown model '{name}': {closest(name, served)}")
        if options.explain and not served[name].explains:
            raise HTTPException(422, f"{name} has no heat maps: omit explain")
        dicom, predictor = wants_dicom(request.headers.get("accept", "")), served[name].predictor

        def encode(content: bytes, predictions: list[Prediction]) -> Response:
            if dicom:
                return encode_dicom(predictor, service.readers, content, predictions)
            answer = encode_predictions(name, predictor, options, predictions)
            return Response(answer, media_type="application/json")

        return await service.answer(request, name, options.explain and not dicom, encode)

    @app.get("/models")
    def models() -> dict[str, Any]:
        """List the networks, their classes, and the limits."""
        described = [_describe(name, network) for name, network in served.items()]
        return {"models": described, "least_side": LEAST_SIDE, **asdict(service.limits)}

    @app.get("/healthz", responses={503: {"description": "A network doesn't"}})
    async def healthz() -> JSONResponse:
        """Check that all networks predict."""
        failed = await service.failed()
        status = "failed" if failed else "ok"
        health = {"status": status, "models": list(served), "failed": failed}
        return JSONResponse(health, 503 if failed else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Return counts in the text format of Prometheus."""
        content = generate_latest(service.counters.registry)
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    return app


async def _page(file: str, request: Request) -> Response:
    return FileResponse(Path(__file__).parent / "page" / file)


def _describe(name: str, network: Served) -> dict[str, Any]:
    predictor = network.predictor
    masks = zip(predictor.mask_names, MASK_RGB, strict=False)
    return {
        "name": name,
        "class_names": predictor.class_names,
        "multi_label": predictor.config.multi_label,
        "masks": [{"name": mask, "colour": f"#{colour.hex()}"} for mask, colour in masks],
        "size": predictor.options.sides,
        "explains": network.explains,  # by heat maps
        "card": network.card,  # Markdown
    }


async def _invalid_option(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    option = ".".join(map(str, first["loc"][1:]))
    return JSONResponse({"detail": f"{option}: {first['msg']}, given {first['input']}"}, 422)


async def _finish(
    counters: Counters,
    hosts: Collection[str],
    request: Request,
    call_next: RequestResponseEndpoint,
) -> Response:
    """Heed proxies, answer HEAD, add headers to every answer, count predictions."""
    start, status, method, scope = time.perf_counter(), 500, request.method, request.scope
    path, prefix = scope["path"], request.headers.get("x-forwarded-prefix", "").rstrip("/")
    if _PREFIX.fullmatch(prefix):  # which the proxy may have left in the path
        inside = f"{path}/".startswith(f"{prefix}/")
        scope.update(root_path=prefix, path=path if inside else prefix + path)
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    scope["method"] = "GET" if method == "HEAD" else method
    try:
        response = _refuse_host(request.headers.get("host", ""), hosts) or await call_next(request)
        status = response.status_code
    finally:
        scope["method"] = method  # of a HEAD, the server drops the body
        if path == "/predict":
            counters.requests.labels(str(status)).inc()
            counters.seconds.observe(time.perf_counter() - start)
    response.headers.update(_HEADERS)
    if path == "/docs":
        response.headers["Content-Security-Policy"] = _POLICY + _INLINE
    return response


def _refuse_host(host: str, hosts: Collection[str]) -> Response | None:
    """Refuse names that an attacker may have given this address (DNS rebinding)."""
    name = re.sub(r":\d*$", "", host.lower())
    if {"*", name} & {"", "localhost", *hosts} or _ADDRESS.fullmatch(name):
        return None
    expected = f"expected a name of this service, given '{name}'"
    return JSONResponse({"detail": f"{expected}: medduet serve --host-name {name}"}, 400)


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "the service failed; see its log"}, 500)
