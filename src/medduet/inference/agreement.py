"""How well an exported network agrees with itself in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from medduet import metrics
from medduet.data.imageset import ImageSet
from medduet.inference.exported import BatchPrediction
from medduet.types import Batch

Predict = Callable[[NDArray[np.uint8]], BatchPrediction]
_BATCH = 4


class Agreement(NamedTuple):
    """How well a network agrees with itself in torch; ``None`` where it has no such head.

    Attributes:
        n: number of images.
        same_class: of how many the class is the same (of multi-label sets, all of them).
        probability: largest difference of a probability.
        mask: share of pixels in another mask class.
        reconstruction: largest difference of a pixel, where 1 is from black to white.
        accuracy: in torch and here, if there are labels.
        dice: mean over images and classes in torch and here, if there are masks.
    """

    n: int
    same_class: int | None = None
    probability: float | None = None
    mask: float | None = None
    reconstruction: float | None = None
    accuracy: tuple[float, float] | None = None
    dice: tuple[float, float] | None = None

    @property
    def worst(self) -> float:
        """The largest of the differences; NaN if one is."""
        differences = [self.probability, self.mask, self.reconstruction]
        return float(np.max([each for each in differences if each is not None]))

    @property
    def worst_share(self) -> float:
        """The larger share of images in another class, and of pixels in another mask class."""
        if self.same_class is None and self.mask is None:
            return self.worst
        changed = 0.0 if self.same_class is None else 1 - self.same_class / self.n
        return max(changed, self.mask or 0.0)

    def __str__(self) -> str:
        """Return all of it in one line."""
        parts = [f"{self.n} images"]
        if self.same_class is not None:
            parts.append(f"class the same in {self.same_class}")
            parts.append(f"probabilities within {self.probability:.2g}")
        if self.mask is not None:
            parts.append(f"{self.mask:.2g} of the mask's pixels differ")
        if self.reconstruction is not None:
            parts.append(f"reconstruction within {self.reconstruction:.2g}")
        for name, pair in (("accuracy", self.accuracy), ("Dice", self.dice)):
            if pair is not None:
                parts.append(f"{name} {pair[1]:.4f} (torch {pair[0]:.4f})")
        return ", ".join(parts)


def agreement(reference: Predict, predict: Predict, images: ImageSet, count: int) -> Agreement:
    """Return how well `predict` agrees with `reference` on the first images of the test split.

    Args:
        reference: takes ``(N, C, H, W)`` uint8, the network in torch.
        predict: the same by other means.
        images: whose test split is taken.
        count: number of images.
    """
    batch = images.test.batch(np.arange(min(count, len(images.test))))
    pixels = batch.image.contiguous().numpy()
    pair = [_predict_all(each, pixels) for each in (reference, predict)]
    expected, found = (_scores(each, batch, images) for each in pair)
    scores: dict[str, Any] = {
        name: (expected[name], found[name]) for name in expected.keys() & found.keys()
    }
    return _compare(pair[0], pair[1], images.multi_label)._replace(**scores)


def agrees(expected: BatchPrediction, predicted: BatchPrediction, tolerance: float) -> bool:
    """Return whether shapes are the same and no difference is above `tolerance`."""
    for a, b in zip(expected, predicted, strict=True):
        if a is not None and (b is None or a.shape != b.shape):
            return False
    return bool(_compare(expected, predicted, multi_label=False).worst <= tolerance)


def _predict_all(predict: Predict, images: NDArray[np.uint8]) -> BatchPrediction:
    batches = [predict(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return BatchPrediction(
        *(
            None if values[0] is None else np.concatenate(values)
            for values in zip(*batches, strict=True)
        )
    )


def _compare(expected: BatchPrediction, other: BatchPrediction, multi_label: bool) -> Agreement:
    result: dict[str, Any] = {"n": 0}
    if expected.probability is not None and other.probability is not None:
        a, b = expected.probability, other.probability
        one, two = (x > 0.5 if multi_label else x.argmax(axis=1)[:, None] for x in (a, b))
        result["same_class"] = int((one == two).all(axis=1).sum())
        result |= {"n": len(a), "probability": float(np.abs(a - b).max())}
    if expected.mask is not None and other.mask is not None:
        result |= {"n": len(other.mask), "mask": float((expected.mask != other.mask).mean())}
    if expected.reconstruction is not None and other.reconstruction is not None:
        difference = float(np.abs(expected.reconstruction - other.reconstruction).max())
        result |= {"n": len(other.reconstruction), "reconstruction": difference}
    return Agreement(**result)


def _scores(predicted: BatchPrediction, batch: Batch, images: ImageSet) -> dict[str, float]:
    """Return accuracy and mean Dice, where there is a truth with the same classes."""
    scores: dict[str, float] = {}
    label, mask, p = batch.label.numpy(), batch.mask, predicted.probability
    if p is not None and p.shape[1] == len(images.class_names):
        scores["accuracy"] = metrics.accuracy(label, p, images.multi_label)
    if predicted.mask is not None and mask is not None and batch.has_mask.any():
        known, classes = batch.has_mask, len(images.mask_names)
        if predicted.mask.max() < classes:
            masks = torch.from_numpy(predicted.mask).long()[known]
            scores["dice"] = float(metrics.dice_per_class(masks, mask[known], classes).mean())
    return {name: value for name, value in scores.items() if not math.isnan(value)}
