"""What the service answers, as JSON."""

import base64
from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from medduet.data.pixels import resize_image, resize_mask
from medduet.inference.predictor import Prediction, Predictor
from medduet.inference.results import mask_png, png
from medduet.utils.palette import HEAT

_COPIED = ("label", "probabilities", "prediction_set", "abstained", "ood_p", "is_ood")
_HEAT_OPACITY = 0.85  # of the strongest place


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
    if prediction.mask is not None and options.mask:
        response.mask = _mask(prediction.mask, predictor.mask_names, size)
    if prediction.heatmap is not None:
        response.heat = _heat(prediction.heatmap, size)
    if options.image:
        response.image = _base64(png(Image.fromarray(resize_image(prediction.image, *size))))
    return response


def _mask(values: NDArray[np.uint8], names: Sequence[str], size: tuple[int, int]) -> Mask:
    classes = [
        MaskClass(index=index, name=name, pixels=int((values == index).sum()))
        for index, name in enumerate(names[1:], start=1)
    ]
    return Mask(classes=classes, png=_base64(mask_png(resize_mask(values, *size), transparency=0)))


def _heat(values: NDArray[np.float32], size: tuple[int, int]) -> str:
    levels = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(resize_image(levels, *size))
    steps = np.arange(256)
    image.putpalette(matplotlib.colormaps[HEAT](steps, bytes=True)[:, :3].tobytes())
    opacity = np.rint(steps * _HEAT_OPACITY).astype(np.uint8).tobytes()
    return _base64(png(image, transparency=opacity))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
