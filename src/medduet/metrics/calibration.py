"""How far probabilities can be believed: reliability diagrams and the calibration error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medduet.metrics.inputs import Floats, Integers, check_predictions
from medduet.types import UNKNOWN_LABEL

BINS = 15
"""Bins of the expected calibration error and the reliability diagram."""


class Reliability(NamedTuple):
    """B bins of equal width: n ``(B,)``, mean confidence and share that is true, NaN if empty."""

    n: Integers
    confidence: Floats
    frequency: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap of the bins, weighted by n; NaN if empty."""
        if not self.n.any():
            return float("nan")
        gap = np.nan_to_num(np.abs(self.confidence - self.frequency))
        return float(np.average(gap, weights=self.n))


def reliability(
    label: ArrayLike, probability: ArrayLike, multi_label: bool = False, bins: int = BINS
) -> Reliability:
    """Return how often predictions are true, by their confidence; takes what `accuracy` takes.

    Single-label sets: of the most probable class of each image ("top label"), as Guo et al. (2017,
    arXiv:1706.04599). Multi-label sets: of every label of every image, its own probability.

    Example:
        >>> diagram = reliability([0, 1], [[0.9, 0.1], [0.7, 0.3]])
        >>> int(diagram.n.sum()), round(diagram.error, 3)  # the mean of 0.1 and 0.7
        (2, 0.4)
    """
    truth, p = check_predictions(label, probability, multi_label, in_unit_range=True)
    labelled = truth != UNKNOWN_LABEL
    p, truth = p[labelled], truth[labelled]
    p, true = (p, truth == 1) if multi_label else (p.max(axis=1), p.argmax(axis=1) == truth)
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    n = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=weights, minlength=bins) for weights in (p, true)]
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        return Reliability(n, sums[0] / n, sums[1] / n)


def confidence(probability: Floats, multi_label: bool) -> Floats:
    """Return the confidence of predictions, ``(N,)``; multi-label, of each label ``(N, K)``."""
    if multi_label:
        return np.maximum(probability, 1 - probability)
    largest: Floats = probability.max(axis=1)
    return largest
