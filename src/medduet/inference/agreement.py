"""How well an exported network agrees with itself in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.inference.exported import BatchPrediction

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
    """

    n: int
    same_class: int | None = None
    probability: float | None = None
    mask: float | None = None
    reconstruction: float | None = None

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
        return ", ".join(parts)


def agreement(
    reference: Predict, predict: Predict, images: NDArray[np.uint8], multi_label: bool
) -> Agreement:
    """Return how well `predict` agrees with `reference` on images ``(N, C, H, W)``."""
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    a, b = (_joined([predict(each) for each in batches]) for predict in (reference, predict))
    result: dict[str, Any] = {"n": len(images)}
    if a.probability is not None and b.probability is not None:
        one, two = (
            p > 0.5 if multi_label else p.argmax(axis=1)[:, None]
            for p in (a.probability, b.probability)
        )
        result["same_class"] = int((one == two).all(axis=1).sum())
        result["probability"] = float(np.abs(a.probability - b.probability).max())
    if a.mask is not None and b.mask is not None:
        result["mask"] = float((a.mask != b.mask).mean())
    if a.reconstruction is not None and b.reconstruction is not None:
        result["reconstruction"] = float(np.abs(a.reconstruction - b.reconstruction).max())
    return Agreement(**result)


def _joined(batches: list[BatchPrediction]) -> BatchPrediction:
    return BatchPrediction(
        *(
            None if values[0] is None else np.concatenate(values)
            for values in zip(*batches, strict=True)
        )
    )
