"""Out-of-distribution detection: how unlike an image is to the training images, as a p-value.

Two distances are taken: of the features that the class head takes, and of simple statistics of the
image. Each is Mahalanobis' with shrinkage (Ledoit and Wolf, 2004; Lee et al., 2018,
arXiv:1807.03888, here without classes), fitted on training images. An image's rank is the better
of its two among the validation images, of which that of the class head counts as `HEAD` times as
many; its p-value is the share of all these, itself included, that rank as well (conformal): of
images like those of the validation split, a share p at most has a p-value of p or less. All of it
is numpy, so that networks that run without torch have the statistics, too.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from medduet.data.reading.images import Picture
from medduet.errors import ModelError

OOD_P = 0.05  # up to which an image is called out of distribution
FEWEST, MOST = 20, 2000  # images of each split that a detector needs, and is fitted on
DIRECTIONS = 32
# The class head has a fifth of the false alarms: it sees less than the statistics, which would
# otherwise lose half of theirs to it; docs/results.md has both.
HEAD = 4
LONGEST, COLOURFUL = 3.0, 0.1  # ratio of sides; share of coloured pixels where training had grey
_SMALL, _SMALLEST_SIDE = 1e-3, 8

Array = NDArray[np.float64]


def _decode(kind: str, value: Any) -> Array:
    if isinstance(value, str):
        value = np.frombuffer(base64.b64decode(value, altchars=b"-_", validate=True), kind)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or not value.size:
        raise ValueError("expected an array in base64")
    if not np.isfinite(value).all():
        raise ValueError("expected finite numbers")
    return np.asarray(value.astype(kind), dtype=np.float64)  # as it is saved


def _encode(kind: str, value: Array) -> str:
    # No path begins like this, which what is sent to a hub would be shortened.
    return base64.urlsafe_b64encode(value.astype(kind).tobytes()).decode("ascii")


def _saved(kind: str) -> tuple[PlainValidator, PlainSerializer]:
    return PlainValidator(partial(_decode, kind)), PlainSerializer(partial(_encode, kind))


_Single = Annotated[Array, *_saved("<f4")]
_Half = Annotated[Array, *_saved("<f2")]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_STRANGERS = ConfigDict(strict=True, extra="forbid", frozen=True)  # who wrote a bundle


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


class Mahalanobis(BaseModel):
    """Mahalanobis distances of vectors ``(N, F)`` from training images, and of validation images.

    Along each of D directions of the largest variance it is shrunk; all others share one.
    """

    model_config = _STRANGERS
    mean: _Single
    scale: _Single
    directions: list[_Half] = Field(min_length=1)
    variance: list[_Positive]
    residual_variance: _Positive | None
    val_distances: list[_Distance] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Mahalanobis:
        if len(self.variance) != len(self.directions):
            raise ValueError("expected one variance per direction")
        if {vector.shape for vector in (self.scale, *self.directions)} != {self.mean.shape}:
            raise ValueError("expected mean, scale and directions of one length")
        if (self.scale <= 0).any():
            raise ValueError("expected a scale above 0")
        return self

    @classmethod
    def fit(cls, train: Array, val: Array, most: int, *, rescale: bool) -> Mahalanobis:
        """Return the distance in `most` directions, after each feature is divided by its spread."""
        from sklearn.covariance import LedoitWolf

        mean = train.mean(axis=0)
        scale = np.maximum(train.std(axis=0), _SMALL) if rescale else np.ones(len(mean))
        centred = (train - mean) / scale
        shrunk = LedoitWolf(assume_centered=True).fit(centred).covariance_
        variance, directions = (array[..., ::-1] for array in np.linalg.eigh(shrunk))
        least = 1e-6 * max(variance.mean(), 1e-12)
        others = variance[most:]
        distance = cls(
            mean=mean,
            scale=scale,
            directions=list(directions.T[:most]),
            variance=(np.maximum(variance[:most], 0) + least).tolist(),
            residual_variance=max(float(others.mean()), least) if len(others) else None,
            val_distances=[0.0],
        )
        return distance.model_copy(update={"val_distances": distance(val).tolist()})

    def __call__(self, vectors: Array) -> Array:
        """Return the distances ``(N,)`` of vectors ``(N, F)``."""
        if vectors.shape[1:] != self.mean.shape:
            raise ModelError(
                f"expected {len(self.mean)} features for the OOD detector, given "
                f"{vectors.shape[1]}: it was fitted for another network"
            )
        centred = (vectors - self.mean) / self.scale
        along = centred @ np.stack(self.directions).T
        residual = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        residual = residual / (self.residual_variance or np.inf)
        return np.asarray(np.sqrt((along**2 / self.variance).sum(axis=1) + residual))


class OODDetector(BaseModel):
    """Finds images that are unlike the training images; saved in the bundle.

    `plain` measures `statistics`, `features` the input of the class head, if there is one. Images
    that were `stretched` have lost the ratio of their sides.
    """

    model_config = _STRANGERS
    plain: Mahalanobis
    features: Mahalanobis | None = None
    channels: int = 3
    stretched: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> OODDetector:
        features = self.features
        if features and len(features.val_distances) != len(self.plain.val_distances):
            raise ValueError("expected distances of the same validation images")
        return self

    @classmethod
    def fit(
        cls,
        train: Array,
        val: Array,
        train_features: Array | None = None,
        val_features: Array | None = None,
        *,
        channels: int,
        stretched: bool = False,
    ) -> OODDetector:
        """Return the detector from `statistics` ``(N, S)`` and inputs of the class head."""
        features = None
        if train_features is not None and val_features is not None:
            most = max(1, min(DIRECTIONS, len(train_features) // 10))
            features = Mahalanobis.fit(train_features, val_features, most, rescale=False)
        plain = Mahalanobis.fit(train, val, train.shape[1], rescale=True)
        return cls(plain=plain, features=features, channels=channels, stretched=stretched)

    def p_values(self, features: Array | None, plain: Array) -> Array:
        """Return p-values ``(N,)`` of images by inputs of the class head and `statistics`."""
        distances = [(1, self.plain, self.plain(plain))]
        if features is not None and self.features is not None:
            distances.append((HEAD, self.features, self.features(features)))
        rank = np.full(len(plain), np.inf)
        val_rank = np.full((len(plain), len(self.plain.val_distances)), np.inf)
        for weight, fitted, distance in distances:
            val = np.array(fitted.val_distances)
            rank = np.minimum(rank, weight * (1 + (val >= distance[:, None]).sum(axis=1)))
            among_val = (val >= val[:, None]).sum(axis=1)
            val_rank = np.minimum(val_rank, weight * (among_val + (distance[:, None] >= val)))
        return np.asarray((1 + (val_rank <= rank[:, None]).sum(axis=1)) / (1 + val_rank.shape[1]))

    @property
    def smallest(self) -> float:
        """The smallest p-value that there is."""
        return 1 / (1 + len(self.plain.val_distances))

    def odd(self, picture: Picture) -> bool:
        """Whether a picture is in colour where training had grey, or too long to be made square."""
        is_volume = picture.spacing is not None
        height, width = picture.whole.shape[-2:] if is_volume else picture.whole.shape[:2]
        long = self.stretched and max(height, width) > LONGEST * min(height, width)
        return long or (self.channels == 1 and picture.coloured > COLOURFUL)
