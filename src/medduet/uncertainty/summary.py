"""Calibration error and coverage of prediction sets on images that were not used for the fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medduet.metrics.classification import BINS, reliability
from medduet.metrics.inputs import check_predictions
from medduet.metrics.intervals import bounds, number, wilson
from medduet.types import UNKNOWN_LABEL
from medduet.uncertainty.calibration import Calibration

COVERAGES = (0.8, 0.9, 0.95)
"""Coverages whose sets are evaluated."""
Bools = NDArray[np.bool_]


def calibration_summary(
    calibration: Calibration, label: ArrayLike, probability: ArrayLike, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return what a calibration gives on images that it was not fitted on, ready for JSON.

    Multi-label coverage has no interval, since the labels of one image depend on each other.
    """
    several = calibration.multi_label
    truth, p = check_predictions(label, probability, several, in_unit_range=True)
    rows = (truth != UNKNOWN_LABEL).reshape(len(truth), -1).any(axis=1)
    truth, p = truth[rows], p[rows]
    calibrated = calibration.calibrate(p)
    has = truth == 1 if several else truth[:, None] == np.arange(p.shape[1])
    summary: dict[str, Any] = {
        "n": len(truth),
        "temperature": calibration.temperature,
        "ece_kind": f"{'every label' if several else 'top label'}, {BINS} bins of equal width",
        "reliability": {},
        "sets": {},
    }
    for when, values in (("before", p), ("after", calibrated)):
        diagram = reliability(truth, values, several)
        summary[f"ece_{when}"] = number(diagram.error)
        summary["reliability"][when] = {
            "n": diagram.n.tolist(),
            "confidence": [number(value) for value in diagram.confidence],
            "frequency": [number(value) for value in diagram.frequency],
        }
    for coverage in COVERAGES:
        chosen = calibration.sets(calibrated, coverage)
        every = _held(chosen, has) | ({"coverage_interval": None} if several else {})
        per_class = {
            str(name): _held(chosen[has[:, k]], has[has[:, k]], k)
            for k, name in enumerate(class_names)
        }
        summary["sets"][f"{coverage:.2f}"] = every | {"per_class": per_class}
    return summary


def _held(chosen: Bools, has: Bools, k: int | slice = slice(None)) -> dict[str, Any]:
    """Return how many of the classes `k` that images have, ``(N, K)``, are in their sets."""
    count, n, sizes = int((chosen & has)[:, k].sum()), int(has[:, k].sum()), chosen.sum(axis=1)
    return {
        "n": n,
        "coverage": count / n if n else None,
        "coverage_interval": bounds(wilson(count, n)),
        "size": number(sizes.mean()) if len(sizes) else None,
    }
