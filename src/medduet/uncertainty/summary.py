"""Calibration error and coverage of prediction sets on images that were not used for the fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medduet.metrics.calibration import BINS, Reliability, reliability
from medduet.metrics.inputs import check_predictions
from medduet.metrics.intervals import bounds, number, wilson
from medduet.types import UNKNOWN_LABEL
from medduet.uncertainty.calibration import Calibration

COVERAGES = (0.8, 0.9, 0.95)
"""Coverages whose sets are evaluated."""

Array = NDArray[np.float64]


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
        ``size`` of the sets, and the same ``per_class`` over the images of each. Multi-label sets
        count pairs of image and label, and give no interval over all of them, since those of one
        image depend on each other.
    """
    multi_label = calibration.multi_label
    truth, p = check_predictions(label, probability, multi_label, in_unit_range=True)
    rows = (truth != UNKNOWN_LABEL).reshape(len(truth), -1).any(axis=1)
    truth, p = truth[rows], p[rows]
    calibrated = calibration.calibrate(p)
    before, after = (reliability(truth, each, multi_label) for each in (p, calibrated))
    return {
        "n": len(truth),
        "temperature": calibration.temperature,
        "ece_kind": f"{'every label' if multi_label else 'top label'}, {BINS} bins of equal width",
        "ece_before": number(before.error),
        "ece_after": number(after.error),
        "reliability": {"before": _diagram(before), "after": _diagram(after)},
        "sets": {
            f"{coverage:.2f}": _sets(calibration, truth, calibrated, coverage, class_names)
            for coverage in COVERAGES
        },
    }


def _diagram(diagram: Reliability) -> dict[str, Any]:
    return {
        "n": diagram.n.tolist(),
        "confidence": [number(value) for value in diagram.confidence],
        "frequency": [number(value) for value in diagram.frequency],
    }


def _sets(
    calibration: Calibration,
    truth: NDArray[np.int64],
    calibrated: Array,
    coverage: float,
    class_names: Sequence[str],
) -> dict[str, Any]:
    chosen = calibration.sets(calibrated, coverage)
    multi_label = calibration.multi_label
    has = truth == 1 if multi_label else truth[:, None] == np.arange(chosen.shape[1])
    covered, size = chosen & has, chosen.sum(axis=1)
    per_class = {
        str(name): _share(int(covered[:, k].sum()), int(has[:, k].sum()))
        | {"size": number(size[has[:, k]].mean()) if has[:, k].any() else None}
        for k, name in enumerate(class_names)
    }
    return {
        **_share(int(covered.sum()), int(has.sum()), dependent=multi_label),
        "size": number(size.mean()) if len(size) else None,
        "per_class": per_class,
    }


def _share(count: int, n: int, *, dependent: bool = False) -> dict[str, Any]:
    interval = None if dependent else bounds(wilson(count, n))
    return {"n": n, "coverage": count / n if n else None, "coverage_interval": interval}
