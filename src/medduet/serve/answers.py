"""What a service says of an image, as JSON."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from medduet.data.pixels import resize_image, resize_mask
from medduet.inference.predictor import Answer, Predictor
from medduet.utils.palette import HEAT, mask_colors

MaskFormat = Literal["png", "rle", "none"]
_SEEN = 0.85  # how much of the image the strongest place of a heat map hides


class RunLengths(BaseModel):
    """The pixels of one class: COCO's uncompressed run-length code."""

    size: tuple[int, int] = Field(description="height and width in pixels")
    counts: list[int] = Field(
        description="lengths of the runs, down the columns from left to right: pixels outside, "
        "inside, outside, ..."
    )


class MaskClass(BaseModel):
    """One class of a mask."""

    index: int = Field(description="the value of its pixels in the PNG")
    name: str
    pixels: int = Field(description="how many of the image are of this class")
    rle: RunLengths | None = None


class Mask(BaseModel):
    """Where in the image what is; 0 is background."""

    classes: list[MaskClass]
    png: str | None = Field(
        None, description="base64 of a PNG with a palette; its values are the classes' indices"
    )


class Prediction(BaseModel):
    """What the network says of one image."""

    model: str
    label: str | None = Field(
        description="the likeliest class; of several that an image may have, those likelier than "
        "not, with commas between; null without classes"
    )
    multi_label: bool = Field(description="whether an image can have several classes")
    probabilities: dict[str, float] = Field(description="of each class, 0 to 1")
    prediction_set: list[str] | None = Field(
        description="the classes that hold the true one in a share `coverage` of such images, "
        "likeliest first; null for networks that are not calibrated"
    )
    coverage: float | None = Field(description="what the set promises; null without one")
    abstained: bool = Field(description="whether the network is not sure enough for its label")
    unfamiliar: float | None = Field(
        None,
        description="p-value: how likely an image like those of the training looks as strange as "
        "this one; null for networks that don't know",
    )
    is_unfamiliar: bool = Field(
        False, description="whether it is 0.05 or less: do not rely on the answer"
    )
    height: int = Field(description="of the image in pixels")
    width: int
    mask: Mask | None = Field(None, description="null if none is drawn, or none was asked for")
    heat: str | None = Field(
        None,
        description="base64 of a PNG whose values, 0 to 255, say how much a place spoke for label",
    )
    image: str | None = Field(
        None, description="base64 of a PNG: the image as the network's readers see it"
    )


def prediction(
    name: str, predictor: Predictor, answer: Answer, *, mask: MaskFormat, image: bool, side: int
) -> Prediction:
    """Return an answer as it is sent.

    Args:
        name: of the model.
        predictor: that gave the answer.
        answer: what it said.
        mask: how to send the mask.
        image: whether to send the image.
        side: longest side in pixels of what is sent as PNG; 0 for the image's own size.
    """
    height, width = answer.image.shape[:2]
    size = _shrunk(height, width, side)
    return Prediction(
        model=name,
        label=answer.label,
        multi_label=predictor.multi_label,
        probabilities=answer.probabilities,
        prediction_set=None if answer.prediction_set is None else list(answer.prediction_set),
        coverage=None if answer.prediction_set is None else predictor.coverage,
        abstained=answer.abstained,
        unfamiliar=answer.unfamiliar,
        is_unfamiliar=answer.is_unfamiliar,
        height=height,
        width=width,
        mask=None if answer.mask is None else _mask(answer.mask, predictor.mask_names, mask, size),
        heat=None if answer.heat is None else _heat(answer.heat, size),
        image=_base64(Image.fromarray(resize_image(answer.image, *size))) if image else None,
    )


def run_lengths(inside: NDArray[np.bool_]) -> RunLengths:
    """Return the run-length code of the pixels ``(H, W)`` that are inside.

    Example:
        >>> run_lengths(np.array([[False, True], [False, True], [True, True]])).counts
        [2, 4]
        >>> run_lengths(np.array([[True, False]])).counts
        [0, 1, 1]
    """
    height, width = inside.shape
    flat = inside.ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0] if flat[0] else [], [0], ends, [flat.size]])
    return RunLengths(size=(height, width), counts=np.diff(edges).astype(int).tolist())


def _mask(
    values: NDArray[np.uint8], names: Sequence[str], kind: MaskFormat, size: tuple[int, int]
) -> Mask | None:
    if kind == "none":
        return None
    counts = np.bincount(values.ravel(), minlength=len(names)).tolist()
    classes = [
        MaskClass(
            index=index,
            name=names[index],
            pixels=counts[index],
            rle=run_lengths(values == index) if kind == "rle" else None,
        )
        for index in range(1, len(names))
    ]
    if kind == "rle":
        return Mask(classes=classes)
    image = Image.fromarray(resize_mask(values, *size))
    image.putpalette([level for colour in mask_colors(len(names)) for level in colour])
    return Mask(classes=classes, png=_base64(image, transparency=0))


def _heat(values: NDArray[np.float32], size: tuple[int, int]) -> str:
    levels = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(resize_image(levels, *size))
    steps = np.arange(256)
    image.putpalette(matplotlib.colormaps[HEAT](steps, bytes=True)[:, :3].tobytes())
    return _base64(image, transparency=np.rint(steps * _SEEN).astype(np.uint8).tobytes())


def _shrunk(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width of what is sent of an image."""
    scale = min(1.0, side / max(height, width)) if side else 1.0
    return max(1, round(height * scale)), max(1, round(width * scale))


def _base64(image: Image.Image, **options: int | bytes) -> str:
    image.save(file := io.BytesIO(), "png", compress_level=3, **options)
    return base64.b64encode(file.getbuffer()).decode("ascii")
