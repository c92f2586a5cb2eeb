"""How well two ways to compute the same network agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from medduet import metrics
from medduet.data.imageset import ImageSet
from medduet.inference.exported import Prediction
from medduet.types import Batch

Predict = Callable[[NDArray[np.uint8]], Prediction]
_BATCH = 4


class Agreement(NamedTuple):
    """How well a network agrees with itself in torch and float32; ``None`` where it is not asked.

    Attributes:
        n: number of images.
        same_class: of how many the class is the same (of multi-label sets, all of them).
        probability: largest difference of a probability.
        mask: share of pixels in another mask class.
        reconstruction: largest difference of a pixel, where 1 is from black to white.
        accuracy: in torch and here, if labels are known.
        dice: mean over images and classes in torch and here, if masks are known.
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
        known = [self.probability, self.mask, self.reconstruction]
        return float(np.max([each for each in known if each is not None]))

    @property
    def worst_share(self) -> float:
        """The larger share of what is said otherwise, of images and of pixels."""
        if self.same_class is None and self.mask is None:
            return self.worst
        changed = 0.0 if self.same_class is None else 1 - self.same_class / self.n
        return max(changed, self.mask or 0.0)

    def __str__(self) -> str:
        """Return all that is known in one line."""
        told = [f"{self.n} images"]
        if self.same_class is not None:
            told.append(f"class the same in {self.same_class}")
            told.append(f"probabilities within {self.probability:.2g}")
        if self.mask is not None:
            told.append(f"{self.mask:.2g} of the mask's pixels differ")
        if self.reconstruction is not None:
            told.append(f"reconstruction within {self.reconstruction:.2g}")
        for name, pair in (("accuracy", self.accuracy), ("Dice", self.dice)):
            if pair is not None:
                told.append(f"{name} {pair[1]:.4f} (torch {pair[0]:.4f})")
        return ", ".join(told)


def agreement(
    reference: Predict, runs: Mapping[str, Predict], images: ImageSet, count: int, multi_label: bool
) -> dict[str, Agreement]:
    """Return how well each of `runs` agrees with `reference`.

    Args:
        reference: takes ``(N, C, H, W)`` uint8, the network in torch.
        runs: the same by other means.
        images: whose test split is looked at.
        count: of its first images.
        multi_label: whether an image can have several classes.
    """
    rows = np.arange(min(count, len(images.test)))
    batch = images.test.batch(rows)
    pixels = batch.image.contiguous().numpy()
    expected = predict_all(reference, pixels)
    truth, results = _scores(expected, batch, images), {}
    for name, predict in runs.items():
        found = predict_all(predict, pixels)
        scores: dict[str, Any] = {
            metric: (truth[metric], value)
            for metric, value in _scores(found, batch, images).items()
            if metric in truth
        }
        results[name] = _compare(expected, found, multi_label)._replace(**scores)
    return results


def predict_all(predict: Predict, images: NDArray[np.uint8]) -> Prediction:
    """Return what is said of images ``(N, C, H, W)``, of which a few are given at a time."""
    parts = [predict(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return Prediction(
        *(
            None if values[0] is None else np.concatenate(values)
            for values in zip(*parts, strict=True)
        )
    )


def agrees(expected: Prediction, found: Prediction, tolerance: float) -> bool:
    """Return whether shapes are the same and no difference is above `tolerance`."""
    for a, b in zip(expected, found, strict=True):
        if a is not None and (b is None or a.shape != b.shape):
            return False
    return bool(_compare(expected, found, multi_label=False).worst <= tolerance)


def _compare(expected: Prediction, found: Prediction, multi_label: bool) -> Agreement:
    result: dict[str, Any] = {"n": 0}
    if expected.probability is not None and found.probability is not None:
        a, b = expected.probability, found.probability
        said = [x > 0.5 if multi_label else x.argmax(axis=1)[:, None] for x in (a, b)]
        result["same_class"] = int((said[0] == said[1]).all(axis=1).sum())
        result |= {"n": len(a), "probability": float(np.abs(a - b).max())}
    if expected.mask is not None and found.mask is not None:
        result |= {"n": len(found.mask), "mask": float((expected.mask != found.mask).mean())}
    if expected.reconstruction is not None and found.reconstruction is not None:
        difference = float(np.abs(expected.reconstruction - found.reconstruction).max())
        result |= {"n": len(found.reconstruction), "reconstruction": difference}
    return Agreement(**result)


def _scores(said: Prediction, batch: Batch, images: ImageSet) -> dict[str, float]:
    """Return accuracy and mean Dice, as far as the truth is known and has the same classes."""
    scores: dict[str, float] = {}
    label, mask = batch.label.numpy(), batch.mask
    if said.probability is not None and said.probability.shape[1] == len(images.class_names):
        scores["accuracy"] = metrics.accuracy(label, said.probability, images.multi_label)
    if said.mask is not None and mask is not None and batch.has_mask.any():
        known, classes = batch.has_mask, len(images.mask_names)
        if said.mask.max() < classes:
            found = torch.from_numpy(said.mask).long()[known]
            scores["dice"] = float(metrics.dice_per_class(found, mask[known], classes).mean())
    return {name: value for name, value in scores.items() if not math.isnan(value)}
