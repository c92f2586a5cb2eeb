"""Labels and probabilities as arrays that fit together."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medduet.errors import DataError
from medduet.types import UNKNOWN_LABEL

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


def check_predictions(
    label: ArrayLike, probability: ArrayLike, multi_label: bool, *, in_unit_range: bool = False
) -> tuple[Integers, Floats]:
    """Return both as arrays of `accuracy`'s shapes; DataError if they do not fit together."""
    score, truth = np.asarray(probability, dtype=np.float64), np.asarray(label)
    least = 1 if multi_label else 2
    if score.ndim != 2 or score.shape[1] < least:
        raise DataError(f"expected probability (N, K) with K >= {least}, given {score.shape}")
    expected = score.shape if multi_label else score.shape[:1]
    if truth.shape != expected:
        raise DataError(f"expected label {expected} ({multi_label=}), given {truth.shape}")
    largest = 1 if multi_label else score.shape[1] - 1
    integer = np.issubdtype(truth.dtype, np.integer)
    if truth.size and not (integer and UNKNOWN_LABEL <= truth.min() <= truth.max() <= largest):
        values = f"{truth.dtype} from {truth.min()} to {truth.max()}"
        raise DataError(f"expected integers from {UNKNOWN_LABEL} to {largest}, given {values}")
    if not np.isfinite(score).all():
        raise DataError("expected finite probabilities, given NaN or infinity")
    if in_unit_range and not ((score >= 0) & (score <= 1)).all():
        values = f"{score.min():g} to {score.max():g}"
        raise DataError(f"expected probabilities from 0 to 1, given {values}")
    return truth.astype(np.int64), score


def one_vs_rest(label: Integers, num_classes: int) -> tuple[Booleans, Booleans]:
    """Return which images have each class, and which are known to have it or not, ``(N, K)``."""
    if label.ndim == 2:
        return label == 1, label != UNKNOWN_LABEL
    has = label[:, None] == np.arange(num_classes)
    return has, np.broadcast_to(label[:, None] != UNKNOWN_LABEL, has.shape)
