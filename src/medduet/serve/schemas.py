"""What the service answers, as JSON."""

import base64
import io
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from medduet.data.pixels import resize_image, resize_mask
from medduet.data.reading.core import kind_of
from medduet.data.workers import WorkerPool
from medduet.errors import DataError
from medduet.inference.predictor import Prediction, Predictor
from medduet.inference.results import InputFile, ResultWriter, mask_png, png
from medduet.inference.source import series_of
from medduet.utils.palette import HEAT

_COPIED = ("label", "probabilities", "prediction_set", "abstained", "ood_p", "is_ood")
_HEAT_OPACITY = 0.85  # of the strongest place
_NAMED = re.compile(r'(^|[\s,="])application/dicom($|[\s,;"])')
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Options(BaseModel):
    """Options of ``/predict``."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str | None = None
    """Name of the model; else the first."""
    mask: bool = True
    """Also send the mask."""
    explain: bool = False
    """Also send the heat map (Grad-CAM)."""
    image: bool = False
    """Also send the image."""
    side: int = Field(0, ge=0, le=8192)
    """Longest side in pixels of what is sent as PNG; 0: the image's."""


class MaskClass(BaseModel):
    """One class of a mask; `index` is the value of its pixels in the PNG."""

    index: int
    name: str
    pixels: int = Field(description="number of pixels of the class")
    ml: float | None = Field(None, description="of a volume with a spacing, in all its slices")


class Mask(BaseModel):
    """The predicted mask; 0 is background."""

    classes: list[MaskClass]
    png: str = Field(description="base64 of a palette PNG; values are class indices")


class PredictionResponse(BaseModel):
    """The prediction for one image; PNGs are in base64."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str
    label: str | None
    """The most probable class; multi-label: all above 0.5, with commas; null without class head."""
    multi_label: bool
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...] | None
    """Conformal set, most probable first: holds the true class with the probability `coverage`."""
    coverage: float | None
    abstained: bool = Field(description="whether the confidence is too low for a label")
    ood_p: float | None = Field(description="p-value of the out-of-distribution test")
    is_ood: bool = Field(description="out of distribution: ood_p is 0.05 or less")
    height: int = Field(description="of the image in pixels")
    width: int
    mask: Mask | None = Field(None, description="null without a mask, or if not requested")
    heat: str | None = Field(None, description="PNG of the Grad-CAM heat map of label, 0 to 255")
    image: str | None = Field(None, description="PNG of the image as it was read")


class FramesResponse(BaseModel):
    """The predictions for the frames of a DICOM or NIfTI file, or a volume's slices, in order."""

    frames: list[PredictionResponse]


class Refusal(BaseModel):
    """Why there is no answer, in one sentence."""

    detail: str


def encode_predictions(
    name: str, predictor: Predictor, options: Options, predictions: Sequence[Prediction]
) -> str:
    """Return the JSON of the predictions for a file, see `PredictionResponse`."""
    frames = []
    for prediction in predictions:
        slices = [prediction]
        if prediction.spacing is not None:
            drawn = [None] * len(prediction.image) if prediction.mask is None else prediction.mask
            pairs = zip(prediction.image, drawn, strict=True)
            slices = [replace(prediction, image=image, mask=mask) for image, mask in pairs]
        answers = [_response(name, predictor, options, each) for each in slices]
        masks = [answer.mask for answer in answers if answer.mask is not None]
        if masks and prediction.spacing:
            voxel = float(np.prod(prediction.spacing)) / 1000
            for of_class in zip(*(mask.classes for mask in masks), strict=True):
                ml = round(sum(each.pixels for each in of_class) * voxel, 3)
                for each in of_class:
                    each.ml = ml
        frames += answers
    answer = frames[0] if len(frames) == 1 else FramesResponse(frames=frames)
    return answer.model_dump_json()


def _response(
    name: str, predictor: Predictor, options: Options, prediction: Prediction
) -> PredictionResponse:
    height, width = prediction.image.shape[:2]
    scale = min(1.0, options.side / max(height, width)) if options.side else 1.0
    size = max(1, round(height * scale)), max(1, round(width * scale))
    response = PredictionResponse(
        model=name,
        multi_label=predictor.config.multi_label,
        coverage=None if prediction.prediction_set is None else predictor.coverage,
        height=height,
        width=width,
        **{field: getattr(prediction, field) for field in _COPIED},
    )
    if (mask := prediction.mask) is not None and options.mask:
        classes = [
            MaskClass(index=index, name=name, pixels=int((mask == index).sum()))
            for index, name in enumerate(predictor.mask_names[1:], start=1)
        ]
        content = mask_png(resize_mask(mask, *size), transparency=0)
        response.mask = Mask(classes=classes, png=_base64(content))
    if prediction.heatmap is not None:
        response.heat = _heat(prediction.heatmap, size)
    if options.image:
        response.image = _base64(png(Image.fromarray(resize_image(prediction.image, *size))))
    return response


def _heat(values: NDArray[np.float32], size: tuple[int, int]) -> str:
    levels = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(resize_image(levels, *size))
    steps = np.arange(256)
    image.putpalette(matplotlib.colormaps[HEAT](steps, bytes=True)[:, :3].tobytes())
    opacity = np.rint(steps * _HEAT_OPACITY).astype(np.uint8).tobytes()
    return _base64(png(image, transparency=opacity))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def wants_dicom(accept: str) -> bool:
    """Return whether an ``Accept`` header asks for DICOM, alone or in ``multipart/related``."""
    return "application/json" not in accept and _NAMED.search(accept.lower()) is not None


def encode_dicom(
    predictor: Predictor, readers: WorkerPool, content: bytes, predictions: Sequence[Prediction]
) -> Response:
    """Return the results for a DICOM file; HTTPException 406 for others, 422 for a useless one."""
    if kind_of(io.BytesIO(content)) != "DICOM":
        raise HTTPException(406, "expected a DICOM file: omit Accept: application/dicom")
    if len(predictor.options.sides) == 3:
        raise HTTPException(406, "volumes are answered in JSON: omit Accept: application/dicom")
    config, classes = predictor.config, (predictor.class_names, predictor.mask_names)
    network = sha256(config.model_dump_json().encode()).hexdigest()
    seed = json.dumps([network, predictor.coverage, predictor.min_confidence])
    with TemporaryDirectory(prefix="medduet-", dir=_MEMORY) as folder:
        abstains = predictor.min_confidence is not None
        results = ResultWriter(Path(folder), predictor.mask_names, abstains, overlays=False)
        writer: tuple[Any, ...] = (config.network.name, *classes, {}, seed)
        files = readers.call(partial(_results, results, writer), (content, predictions))
    if isinstance(files, str):
        raise HTTPException(422, files.replace(f"{folder}/", ""))
    if not files:
        return Response(status_code=204)
    boundary = secrets.token_hex(16)
    start = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(start + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return Response(body, media_type=kind)


def _results(
    results: ResultWriter, writer: tuple[Any, ...], item: tuple[bytes, list[Prediction]]
) -> list[bytes]:
    out, file = results.out, InputFile(results.out / "image", "image", "image")
    file.path.write_bytes(item[0])
    rows = results.write(file, item[1])
    for _, series in series_of([file.path]):
        if isinstance(series, DataError):
            raise series
    from medduet.inference.dicom import DicomWriter  # which needs highdicom

    names, problem = DicomWriter(out, *writer).write([(file.path, file.stem, rows)])
    if problem:
        raise DataError(problem)
    return [(out / name).read_bytes() for name in names]
