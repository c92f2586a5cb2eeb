"""The routes of the service."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint

from medduet._version import __version__
from medduet.errors import closest
from medduet.serve.schemas import Options, PredictionResponse, encode_prediction
from medduet.serve.service import Counters, Served, Service
from medduet.serve.uploads import LEAST_SIDE, Limits
from medduet.utils.palette import mask_colors

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
    "description": "PNG, JPEG, TIFF, BMP, GIF, WebP or DICOM: the file itself, or a form with it.",
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _FORM},
        "application/octet-stream": {"schema": _FILE},
    },
}
_PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}


def create_app(served: Mapping[str, Served], limits: Limits | None = None) -> FastAPI:
    """Return the service of networks by name as an ASGI application; the first is the default."""
    service = Service(served, limits or Limits())
    app = FastAPIOffline(  # Swagger UI comes from this process, not from a CDN
        redoc_url=None,
        title="MedDuet",
        version=__version__,
        description="Classes and masks of medical images. For research: not a medical device.",
        lifespan=service.lifespan,
    )
    app.state.service = service
    app.middleware("http")(partial(_finish, service.counters))
    app.add_exception_handler(RequestValidationError, _invalid_option)
    app.add_exception_handler(Exception, _internal_error)
    for address, file in _PAGE.items():
        app.add_route(address, partial(_page, file))

    @app.post("/predict", response_model=PredictionResponse, openapi_extra={"requestBody": _BODY})
    async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Predict the classes and the mask of an image."""
        name = next(iter(served)) if options.model is None else options.model
        if name not in served:
            raise HTTPException(404, f"unknown model '{name}': {closest(name, served)}")
        if options.explain and not served[name].explains:
            raise HTTPException(422, f"{name} has no heat maps: omit explain")
        encode = partial(encode_prediction, name, served[name].predictor, options)
        return await service.answer(request, name, options.explain, encode)

    @app.get("/models")
    def models() -> dict[str, Any]:
        """List the networks, their classes, and the limits."""
        described = [_describe(name, network) for name, network in served.items()]
        return {"models": described, "least_side": LEAST_SIDE, **asdict(service.limits)}

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        """Check that all networks answer; 503 if one no longer does."""
        dead = [name for name, batcher in service.batchers.items() if not batcher.alive]
        health = {"status": "failed" if dead else "ok", "models": list(served)}
        return JSONResponse(health, 503 if dead else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        """Return counts in the text format of Prometheus."""
        content = generate_latest(service.counters.registry)
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    return app


async def _page(file: str, request: Request) -> Response:
    return FileResponse(Path(__file__).parent / "page" / file)


def _describe(name: str, network: Served) -> dict[str, Any]:
    predictor = network.predictor
    colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in mask_colors(len(predictor.mask_names))]
    masks = zip(predictor.mask_names, colours, strict=False)
    return {
        "name": name,
        "class_names": predictor.class_names,
        "multi_label": predictor.config.multi_label,
        "masks": [{"name": mask, "colour": colour} for mask, colour in masks],
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
    counters: Counters, request: Request, call_next: RequestResponseEndpoint
) -> Response:
    """Add headers to every answer, and count those of predictions."""
    start, status = time.perf_counter(), 500
    try:
        response = await call_next(request)
        status = response.status_code
    finally:
        if request.url.path == "/predict":
            counters.requests.labels(str(status)).inc()
            counters.seconds.observe(time.perf_counter() - start)
    response.headers.update(_HEADERS)
    if request.url.path == "/docs":
        response.headers["Content-Security-Policy"] = _POLICY + _INLINE
    return response


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "the service failed; see its log"}, 500)
