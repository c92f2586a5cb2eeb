"""How far probabilities can be believed: calibration error, and what sets and abstention give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medduet.errors import ConfigError
from medduet.metrics.intervals import bounds, number, wilson
from medduet.types import UNKNOWN_LABEL
from medduet.uncertainty.calibration import Calibration, checked, confidence

BINS = 15
"""Bins of the expected calibration error and the reliability diagram."""
COVERAGES = (0.8, 0.9, 0.95)
"""Coverages whose sets are judged."""
ACCURACIES = (0.9, 0.95)
"""Accuracies whose abstention is judged."""

Array = NDArray[np.float64]


class Reliability(NamedTuple):
    """A reliability diagram: B bins of equal width between 0 and 1.

    Attributes:
        n: ``(B,)`` int, answers whose confidence is in the bin.
        confidence: ``(B,)`` their mean confidence; NaN in an empty bin.
        frequency: ``(B,)`` the share of them that is true; NaN in an empty bin.
    """

    n: NDArray[np.int64]
    confidence: Array
    frequency: Array

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap of the bins, weighted by n; NaN if empty."""
        if not self.n.sum():
            return math.nan
        gap = np.nan_to_num(np.abs(self.confidence - self.frequency))
        return float(np.average(gap, weights=self.n))


def reliability(
    label: ArrayLike, probability: ArrayLike, multi_label: bool = False, bins: int = BINS
) -> Reliability:
    """Return how often what a network says with some confidence is true.

    Single-label sets: of the most probable class of each image ("top label"), as Guo et al. (2017,
    arXiv:1706.04599). Multi-label sets: of every label of every image, its own probability.

    Args:
        label: ``(N,)`` int class, or ``(N, K)`` int of 0 and 1 if `multi_label`; -1 where
            unknown, which is left out.
        probability: ``(N, K)`` float in [0, 1].
        multi_label: whether an image may carry several labels.
        bins: of equal width.

    Raises:
        DataError: for shapes, labels or probabilities that do not fit together.

    Example:
        >>> diagram = reliability([0, 1], [[0.9, 0.1], [0.7, 0.3]])
        >>> int(diagram.n.sum()), round(diagram.error, 3)  # the mean of 0.1 and 0.7
        (2, 0.4)
    """
    truth, p = checked(label, probability, multi_label)
    known = truth != UNKNOWN_LABEL
    said, truth = p[known], truth[known]
    if multi_label:
        true = truth == 1
    else:
        said, true = said.max(axis=1), said.argmax(axis=1) == truth
    place = np.minimum((said * bins).astype(np.int64), bins - 1)
    n = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=each, minlength=bins) for each in (said, true)]
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        return Reliability(n, sums[0] / n, sums[1] / n)


def expected_calibration_error(
    label: ArrayLike, probability: ArrayLike, multi_label: bool = False, bins: int = BINS
) -> float:
    """Return the mean gap between confidence and frequency over the bins of `reliability`.

    Example:
        >>> expected_calibration_error([0, 0, 0, 1], [[0.75, 0.25]] * 4)
        0.0
    """
    return reliability(label, probability, multi_label, bins).error


def calibration_summary(
    calibration: Calibration,
    label: ArrayLike,
    probability: ArrayLike,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Return what a calibration gives on images that it was not fitted on, ready for JSON.

    Args:
        calibration: of the network.
        label: see `reliability`.
        probability: of the network, ``(N, K)``, not calibrated.
        class_names: of the K classes.

    Returns:
        ``ece_before`` and ``ece_after`` with their ``reliability``; ``sets``, by coverage: the
        share of the ``n`` images whose true class is in the set, its Wilson interval and the mean
        ``size`` of the sets, and the same ``per_class`` over the images of each; ``abstention``,
        by the accuracy wanted: the share ``answered``, and the accuracy there. Multi-label sets
        count pairs of image and label, and give no interval over all of them, since those of one
        image depend on each other.
    """
    multi_label = calibration.multi_label
    truth, p = checked(label, probability, multi_label)
    rows = (truth != UNKNOWN_LABEL).reshape(len(truth), -1).any(axis=1)
    truth, p = truth[rows], p[rows]
    calibrated = calibration.calibrate(p)
    diagrams = {
        name: reliability(truth, share, multi_label)
        for name, share in (("before", p), ("after", calibrated))
    }
    return {
        "n": len(truth),
        "temperature": calibration.temperature,
        "ece_kind": f"{'every label' if multi_label else 'top label'}, {BINS} bins of equal width",
        "ece_before": number(diagrams["before"].error),
        "ece_after": number(diagrams["after"].error),
        "reliability": {
            name: {
                "n": diagram.n.tolist(),
                "confidence": [number(value) for value in diagram.confidence],
                "frequency": [number(value) for value in diagram.frequency],
            }
            for name, diagram in diagrams.items()
        },
        "sets": {
            f"{coverage:.2f}": _sets(calibration, truth, calibrated, coverage, class_names)
            for coverage in COVERAGES
        },
        "abstention": {
            f"{wanted:.2f}": _abstention(calibration, truth, calibrated, wanted)
            for wanted in ACCURACIES
        },
    }


def _sets(
    calibration: Calibration,
    truth: NDArray[np.int64],
    calibrated: Array,
    coverage: float,
    class_names: Sequence[str],
) -> dict[str, Any]:
    chosen = calibration.sets(calibrated, coverage)
    several = calibration.multi_label
    has = truth == 1 if several else truth[:, None] == np.arange(chosen.shape[1])
    held, size = chosen & has, chosen.sum(axis=1)
    columns = zip(class_names, held.T, has.T, strict=True)
    return {
        **_share(int(held.sum()), int(has.sum()), several),
        "size": number(size.mean()) if len(size) else None,
        "per_class": {
            str(name): _share(int(of.sum()), int(there.sum()))
            | {"size": number(size[there].mean()) if there.any() else None}
            for name, of, there in columns
        },
    }


def _abstention(
    calibration: Calibration, truth: NDArray[np.int64], calibrated: Array, wanted: float
) -> dict[str, Any] | None:
    try:
        below = calibration.threshold(wanted)
    except ConfigError:  # the network is never that good
        return None
    several = calibration.multi_label
    answered = (confidence(calibrated, several) >= below) & (truth != UNKNOWN_LABEL)
    right = (calibrated > 0.5) == (truth == 1) if several else calibrated.argmax(axis=1) == truth
    share = _share(int((right & answered).sum()), int(answered.sum()), several)
    return {
        "below": below,
        "answered": number(answered.sum() / max((truth != UNKNOWN_LABEL).sum(), 1)),
        "n": share["n"],
        "accuracy": share["coverage"],
        "accuracy_interval": share["coverage_interval"],
    }


def _share(part: int, n: int, dependent: bool = False) -> dict[str, Any]:
    interval = None if dependent else bounds(wilson(part, n))
    return {"n": n, "coverage": part / n if n else None, "coverage_interval": interval}
