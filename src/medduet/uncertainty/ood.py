"""How unlike an image is to those that a network was trained on, as a p-value.

Two distances are taken: of what the class head sees, and of some plain statistics of the image.
Each is Mahalanobis' with shrinkage (Ledoit and Wolf, 2004; Lee et al., 2018, arXiv:1807.03888, here
without classes), fitted on training images. How far an image is, is the better of its two ranks
among the validation images, of which that of the class head counts as `HEAD` times as many; its
p-value is the share of all these, itself included, that rank as well (conformal): of images like
those of the validation split, a share p at most has a p-value of p or less. All of it is numpy, so
that networks that run without torch have the statistics, too.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medduet.data.reading.images import Picture
from medduet.errors import ModelError

UNFAMILIAR = 0.05
"""The p-value up to which an image is called unfamiliar."""
FEWEST = 20
"""Images of each split that it takes."""
MOST = 2000
"""Images of each split that are looked at."""
DIRECTIONS = 32
HEAD = 4
"""The class head has a fifth of the false alarms: it sees less than the statistics, which would
otherwise lose half of theirs to it; docs/results.md has both."""
LONGEST, COLOURFUL = 3.0, 0.1
"""Sides of 3 to 1, and this share of coloured pixels where training had grey, are unfamiliar."""
_SMALL, _SMALLEST_SIDE = 1e-3, 8

Array = NDArray[np.float64]


def statistics(image: NDArray[np.uint8]) -> Array:
    """Return plain numbers ``(N, S)`` of images ``(N, C, H, W)`` as the network takes them.

    Brightness, contrast, shares of black and white, differences of neighbours at three scales, of
    top and bottom, of left and right, of centre and all; of colour images mean and spread of the
    colour.

    Example:
        >>> statistics(np.zeros((2, 1, 16, 16), np.uint8)).shape
        (2, 10)
    """
    if min(image.shape[2:]) < _SMALLEST_SIDE:
        image = image.repeat(_SMALLEST_SIDE, axis=2).repeat(_SMALLEST_SIDE, axis=3)
    pixels = image.astype(np.float64) / 255
    grey = pixels.mean(axis=1)
    height, width = grey.shape[1:]
    rows, columns = height // 4, width // 4
    whole = grey.mean(axis=(1, 2))
    centre = grey[:, rows : height - rows, columns : width - columns].mean(axis=(1, 2))
    found = [whole, grey.std(axis=(1, 2))]
    found += [(grey < 0.02).mean(axis=(1, 2)), (grey > 0.98).mean(axis=(1, 2))]
    for scale in (1, 2, 4):
        part = grey[:, : height // scale * scale, : width // scale * scale]
        part = part.reshape(len(part), height // scale, scale, width // scale, scale)
        part = part.mean(axis=(2, 4))
        steps = sum(np.abs(np.diff(part, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
        found.append(np.log(steps + _SMALL))
    found.append((grey[:, : height // 2] - grey[:, (height + 1) // 2 :]).mean(axis=(1, 2)))
    found.append(np.abs(grey - grey[:, :, ::-1]).mean(axis=(1, 2)))
    found.append(centre - whole)
    if image.shape[1] == 3:
        colour = pixels.max(axis=1) - pixels.min(axis=1)
        found += [colour.mean(axis=(1, 2)), colour.std(axis=(1, 2))]
    return np.stack(found, axis=1)


@dataclass(frozen=True, eq=False)
class Cloud:
    """Where training images lie among the vectors ``(N, F)``, and how far validation images are.

    Attributes:
        mean: ``(F,)``.
        directions: ``(D, F)``, in which they differ most, each of length 1 in units of `spread`.
        spread: ``(F,)``, by which vectors are divided first.
        variance: ``(D,)`` along the directions, shrunk.
        rest: variance along each of all other directions; infinite if there is none.
        far: distances of the validation images.
    """

    mean: Array
    directions: Array
    spread: Array
    variance: Array
    rest: float
    far: Array

    @classmethod
    def fit(cls, train: Array, val: Array, most: int, *, scale: bool) -> Cloud:
        """Return the cloud of training vectors ``(N, F)``, with the distances of others.

        Args:
            train: of the images that are familiar.
            val: of other ones.
            most: directions that are kept.
            scale: whether each number is divided by its own standard deviation first.
        """
        from sklearn.covariance import ledoit_wolf_shrinkage

        mean = train.mean(axis=0)
        spread = np.maximum(train.std(axis=0), _SMALL) if scale else np.ones(len(mean))
        centred = (train - mean) / spread
        shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
        _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
        variance = sizes**2 / len(train)
        average, kept = max(variance.sum() / len(mean), 1e-12), min(most, len(variance))
        left = len(mean) - kept
        floor = shrinkage * average
        rest = (1 - shrinkage) * variance[kept:].sum() / left + floor if left else np.inf
        cloud = cls(
            mean.astype(np.float32).astype(np.float64),
            directions[:kept].astype(np.float16).astype(np.float64),
            spread.astype(np.float32).astype(np.float64),
            (1 - shrinkage) * variance[:kept] + floor + 1e-6 * average,
            max(rest, 1e-6 * average),
            np.empty(0),
        )
        return cls(**(vars(cloud) | {"far": cloud.distance(val)}))

    def distance(self, vectors: Array) -> Array:
        """Return the distances ``(N,)`` of vectors ``(N, F)``."""
        if vectors.shape[1:] != self.mean.shape:
            raise _damaged(f"{len(self.mean)} numbers of an image, and the network has others")
        centred = (vectors - self.mean) / self.spread
        along = centred @ self.directions.T
        beside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        far: Array = np.sqrt((along**2 / self.variance).sum(axis=1) + beside / self.rest)
        return far

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "mean": _packed(self.mean, "<f4"),
            "directions": _packed(self.directions, "<f2"),
            "spread": _packed(self.spread, "<f4"),
            "variance": self.variance.tolist(),
            "rest": None if np.isinf(self.rest) else self.rest,
            "far": self.far.tolist(),
        }

    @classmethod
    def from_json(cls, saved: _Saved) -> Cloud:
        """Return the cloud that `to_json` wrote; ModelError if its parts don't fit."""
        mean, spread = _unpacked(saved.mean, "<f4"), _unpacked(saved.spread, "<f4")
        variance, far = np.array(saved.variance), np.array(saved.far)
        flat = _unpacked(saved.directions, "<f2")
        if flat.size != mean.size * variance.size or spread.shape != mean.shape or not mean.size:
            raise _damaged("its parts don't fit together")
        if (spread <= 0).any():
            raise _damaged("a spread that is not above 0")
        rest = np.inf if saved.rest is None else saved.rest
        return cls(mean, flat.reshape(variance.size, mean.size), spread, variance, rest, far)


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What a bundle knows of the images that its network was trained on.

    Attributes:
        plain: of the `statistics` of images.
        features: of what the class head sees; ``None`` for networks without one.
        channels: of the images, 1 or 3.
        stretched: whether images were made square by stretching, so that their sides are not seen.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> train, val = (rng.integers(50, 200, (n, 1, 16, 16), np.uint8) for n in (200, 99))
        >>> known = Familiarity.fit(statistics(train), statistics(val), channels=1)
        >>> black = np.zeros((1, 1, 16, 16), np.uint8)
        >>> known.p_values(None, statistics(black)).tolist()
        [0.01]
    """

    plain: Cloud
    features: Cloud | None = None
    channels: int = 3
    stretched: bool = False

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
    ) -> Familiarity | None:
        """Return what statistics and features of two splits say; ``None`` for fewer than `FEWEST`.

        Args:
            train: statistics ``(N, S)`` of training images.
            val: of validation images.
            train_features: what the class head sees of the same, ``(N, F)``.
            val_features: of the validation images.
            channels: see `Familiarity`.
            stretched: see `Familiarity`.
        """
        if min(len(train), len(val)) < FEWEST:
            return None
        features = None
        if train_features is not None and val_features is not None:
            most = max(1, min(DIRECTIONS, len(train_features) // 10))
            features = Cloud.fit(train_features, val_features, most, scale=False)
        plain = Cloud.fit(train, val, train.shape[1], scale=True)
        return cls(plain, features, channels, stretched)

    def p_values(self, features: Array | None, plain: Array) -> Array:
        """Return the p-values ``(N,)`` of images.

        Args:
            features: what the class head sees, ``(N, F)``; ``None`` if that is not known.
            plain: their `statistics`, ``(N, S)``.
        """
        found = [(1, self.plain.far, self.plain.distance(plain))]
        if features is not None and self.features is not None:
            found.append((HEAD, self.features.far, self.features.distance(features)))
        best = np.full(len(plain), np.inf)
        theirs = np.full((len(plain), len(self.plain.far)), np.inf)
        for times, far, own in found:
            best = np.minimum(best, times * (1 + (far >= own[:, None]).sum(axis=1)))
            ranks = (far >= far[:, None]).sum(axis=1)
            theirs = np.minimum(theirs, times * (ranks + (own[:, None] >= far)))
        p: Array = (1 + (theirs <= best[:, None]).sum(axis=1)) / (1 + len(self.plain.far))
        return p

    @property
    def smallest(self) -> float:
        """The smallest p-value that there is."""
        return 1 / (1 + len(self.plain.far))

    def odd(self, picture: Picture) -> bool:
        """Return whether a picture, before it was fitted, is nothing that training can have seen.

        It is in colour where training had grey, or, where nothing else tells it, so long and narrow
        that it can't be shown as a square.
        """
        height, width = picture.whole.shape[:2]
        long = self.stretched and max(height, width) > LONGEST * min(height, width)
        return long or (self.channels == 1 and picture.coloured > COLOURFUL)

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "plain": self.plain.to_json(),
            "features": None if self.features is None else self.features.to_json(),
            "channels": self.channels,
            "stretched": self.stretched,
        }

    @classmethod
    def of_bundle(cls, config: Mapping[str, Any]) -> Familiarity | None:
        """Return that in the ``config.json`` of a bundle or an exported network, or ``None``.

        ModelError if it is damaged.
        """
        if config.get("familiarity") is None:
            return None
        try:
            saved = _SavedBoth.model_validate(config["familiarity"])
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part)[:40] for part in first["loc"][:3]) or "top level"
            raise _damaged(f"{place}: {first['msg']}") from error
        plain = Cloud.from_json(saved.plain)
        features = None if saved.features is None else Cloud.from_json(saved.features)
        if features is not None and len(features.far) != len(plain.far):
            raise _damaged("its parts are of other images")
        return cls(plain, features, saved.channels, saved.stretched)


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Saved(BaseModel):
    """A cloud as it stands in a bundle, which may come from a stranger."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    mean: str
    directions: str
    spread: str
    variance: list[_Positive] = Field(min_length=1)
    rest: _Positive | None
    far: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)


class _SavedBoth(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    plain: _Saved
    features: _Saved | None
    channels: int
    stretched: bool


def _packed(values: Array, kind: str) -> str:
    # No path begins like this, which what is sent to a hub would be shortened.
    return base64.urlsafe_b64encode(values.astype(kind).tobytes()).decode("ascii")


def _unpacked(text: str, kind: str) -> Array:
    try:
        values = np.frombuffer(base64.b64decode(text, altchars=b"-_", validate=True), kind)
    except ValueError as error:
        raise _damaged("numbers that can't be read") from error
    if not np.isfinite(values).all():
        raise _damaged("numbers that are not finite")
    return values.astype(np.float64)


def _damaged(what: str) -> ModelError:
    return ModelError(f"the familiarity of the bundle is damaged: {what}; copy the bundle again")
