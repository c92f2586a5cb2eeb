"""The area under the ROC curve of many resamples at once: a library's, called for each, is slow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def auc_replicates(
    score: NDArray[np.float64],
    has: NDArray[np.bool_],
    lacks: NDArray[np.bool_],
    counts: NDArray[np.int32] | None = None,
) -> NDArray[np.float64]:
    """Return ``(K, R)``, the AUC of each column if row i occurs ``counts[i, r]`` times in each r.

    Counts, for each positive, the negatives below it twice and the tied ones once: exact. NaN
    without positives or without negatives.

    Args:
        score: ``(N, K)``.
        has: ``(N, K)``, whether a row is positive.
        lacks: ``(N, K)``, whether it is negative; an unknown row is neither.
        counts: ``(N, R)``; ``None`` for all rows once.

    Example:
        >>> score, has = np.array([[0.1], [0.2], [0.1]]), np.array([[False], [True], [True]])
        >>> auc_replicates(score, has, ~has).tolist()
        [[0.75]]
    """
    counts = np.ones((len(score), 1), dtype=np.int32) if counts is None else counts
    areas = np.full((score.shape[1], counts.shape[1]), np.nan)
    for column, positive, negative, area in zip(score.T, has.T, lacks.T, areas, strict=True):
        order = np.flatnonzero(negative)
        order = order[np.argsort(column[order])]
        below = np.zeros((len(order) + 1, counts.shape[1]), dtype=np.int32)
        np.cumsum(counts[order], axis=0, out=below[1:])
        first = np.searchsorted(column[order], column[positive], side="left")
        last = np.searchsorted(column[order], column[positive], side="right")
        weight = counts[positive].astype(np.int64)
        wins = ((below[first] + below[last]) * weight).sum(axis=0)
        pairs = 2 * weight.sum(axis=0) * below[-1]
        np.divide(wins, pairs, out=area, where=pairs > 0)
    return areas
