"""Out-of-distribution detection: how unlike an image is to the training images, as a p-value.

Simple statistics of the image are taken, and their Mahalanobis distance with shrinkage (Ledoit and
Wolf, 2004) from those of training images. The p-value is the share of the validation images, the
image itself included, that are as far (conformal): of images like those of the validation split, a
share p at most has a p-value of p or less. All of it is numpy, so that networks that run without
torch have it, too.
"""

import base64
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from medduet.errors import ModelError

OOD_P = 0.05  # up to which an image is called out of distribution
FEWEST, MOST = 20, 2000  # images of each split that a detector needs, and is fitted on
LONGEST, COLOURFUL = 3.0, 0.1  # ratio of sides; share of coloured pixels where training had grey
_SMALL, _SMALLEST_SIDE = 1e-3, 8

Array = NDArray[np.float64]


def _decode(value: Any) -> Array:
    if isinstance(value, str):
        value = np.frombuffer(base64.b64decode(value, altchars=b"-_", validate=True), "<f4")
    if not isinstance(value, np.ndarray) or value.ndim != 1 or not value.size:
        raise ValueError("expected an array in base64")
    if not np.isfinite(value).all():
        raise ValueError("expected finite numbers")
    return np.asarray(value.astype(np.float32), dtype=np.float64)  # as it is saved


def _encode(value: Array) -> str:
    # No path begins like this, which what is sent to a hub would be shortened.
    return base64.urlsafe_b64encode(value.astype("<f4").tobytes()).decode("ascii")


_Saved = Annotated[Array, PlainValidator(_decode), PlainSerializer(_encode)]
_Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def statistics(image: NDArray[np.uint8]) -> Array:
    """Return simple statistics ``(N, S)`` of images ``(N, C, H, W)`` as the network takes them.

    Brightness, contrast, black and white, differences of neighbours, halves and centre, colour. Of
    volumes ``(N, C, D, H, W)`` it is the mean over the slices.
    """
    if image.ndim == 5:
        slices = np.moveaxis(image, 2, 1)
        of_slices = statistics(slices.reshape(-1, *slices.shape[2:]))
        return np.asarray(of_slices.reshape(*slices.shape[:2], -1).mean(axis=1))
    if min(image.shape[2:]) < _SMALLEST_SIDE:
        image = image.repeat(_SMALLEST_SIDE, axis=2).repeat(_SMALLEST_SIDE, axis=3)
    pixels = image.astype(np.float64) / 255
    grey = pixels.mean(axis=1)
    count, height, width = grey.shape
    rows, columns = height // 4, width // 4

    mean = partial(np.mean, axis=(1, 2))
    values = [mean(grey), grey.std(axis=(1, 2)), mean(grey < 0.02), mean(grey > 0.98)]
    for scale in (1, 2, 4):
        scaled = grey[:, : height // scale * scale, : width // scale * scale]
        scaled = scaled.reshape(count, height // scale, scale, width // scale, scale)
        scaled = scaled.mean(axis=(2, 4))
        steps = [mean(np.abs(np.diff(scaled, axis=axis))) for axis in (1, 2)]
        values.append(np.log(steps[0] + steps[1] + _SMALL))
    values.append(mean(grey[:, : height // 2] - grey[:, (height + 1) // 2 :]))
    values.append(mean(np.abs(grey - grey[:, :, ::-1])))
    values.append(mean(grey[:, rows : height - rows, columns : width - columns]) - values[0])
    if image.shape[1] == 3:
        colour = pixels.max(axis=1) - pixels.min(axis=1)
        values += [mean(colour), colour.std(axis=(1, 2))]
    return np.stack(values, axis=1)


class OODDetector(BaseModel):
    """Finds images that are unlike the training images; saved in the bundle.

    `whitening` ``(S * S)`` makes of the `statistics`, less their `mean` ``(S,)``, a vector whose
    length is the distance. Images that were `stretched` have lost the ratio of their sides.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)  # who wrote a bundle
    mean: _Saved
    whitening: _Saved
    val_distances: list[_Distance] = Field(min_length=1)
    channels: int = 3
    stretched: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.whitening) != len(self.mean) ** 2:
            raise ValueError("expected a whitening matrix of the length of mean")
        return self

    @classmethod
    def fit(cls, train: Array, val: Array, *, channels: int, stretched: bool = False) -> Self:
        """Return the detector from `statistics` ``(N, S)`` of images of train and val."""
        from sklearn.covariance import LedoitWolf

        mean, scale = train.mean(axis=0), np.maximum(train.std(axis=0), _SMALL)
        centred = (train - mean) / scale
        shrunk = LedoitWolf(assume_centered=True).fit(centred).covariance_
        variance, directions = np.linalg.eigh(shrunk)
        variance = np.maximum(variance, 0) + 1e-6 * max(variance.mean(), 1e-12)
        whitening = (directions / np.sqrt(variance) / scale[:, None]).ravel()
        detector = cls(
            mean=mean,
            whitening=whitening,
            val_distances=[0.0],
            channels=channels,
            stretched=stretched,
        )
        return detector.model_copy(update={"val_distances": detector.distances(val).tolist()})

    def distances(self, vectors: Array) -> Array:
        """Return the distances ``(N,)`` of `statistics` ``(N, S)`` from the training images."""
        if vectors.shape[1:] != self.mean.shape:
            raise ModelError(
                f"expected {len(self.mean)} statistics for the OOD detector, given "
                f"{vectors.shape[1]}: it was fitted for images of other channels"
            )
        whitening = self.whitening.reshape(len(self.mean), -1)
        return np.asarray(np.linalg.norm((vectors - self.mean) @ whitening, axis=1))

    def p_values(self, vectors: Array) -> Array:
        """Return p-values ``(N,)`` of images by their `statistics` ``(N, S)``."""
        val = np.array(self.val_distances)
        further = (val >= self.distances(vectors)[:, None]).sum(axis=1)
        return np.asarray((1 + further) / (1 + len(val)))

    def odd(self, shape: Sequence[int], coloured: float) -> bool:
        """Whether an image is in colour where training had grey, or too long to be made square.

        `shape` ends in height and width; `coloured` is that of a `Picture`.
        """
        long = self.stretched and max(shape[-2:]) > LONGEST * min(shape[-2:])
        return long or (self.channels == 1 and coloured > COLOURFUL)
