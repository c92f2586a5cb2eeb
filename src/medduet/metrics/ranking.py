"""The area under the ROC curve of many weighted resamples at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.metrics.intervals import UNDEFINED, Interval, percentile_interval, resample_counts


class OneVsRest(NamedTuple):
    """One binary question put to N images: which have this class, and how likely was it called.

    Attributes:
        positive: ``(P,)`` rows that have the class.
        negative: ``(Q,)`` rows that do not; a row whose truth is unknown is in neither.
        score: ``(N,)`` float64.
    """

    positive: NDArray[np.intp]
    negative: NDArray[np.intp]
    score: NDArray[np.float64]


def mean_auc(questions: Sequence[OneVsRest]) -> float:
    """Return the mean AUC of the questions; NaN if one of them has no positive or no negative.

    Example:
        >>> mean_auc([OneVsRest(np.array([1, 2]), np.array([0]), np.array([0.1, 0.2, 0.1]))])
        0.75
    """
    n = len(questions[0].score) if questions else 0
    return float(auc_replicates(questions, np.ones((n, 1), dtype=np.int32))[0])


def auc_replicates(
    questions: Sequence[OneVsRest], counts: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return the ``(R,)`` mean AUC if row i occurs ``counts[i, r]`` times in replicate r.

    Args:
        questions: over the same N rows.
        counts: ``(N, R)`` int32.
    """
    if not questions:
        return np.full(counts.shape[1], np.nan)
    areas = np.stack([_weighted_auc(one, counts) for one in questions])
    mean: NDArray[np.float64] = areas.mean(axis=0)
    return mean


def _weighted_auc(one: OneVsRest, counts: NDArray[np.int32]) -> NDArray[np.float64]:
    """Count, for each positive, the negatives below it twice and the tied ones once: exact."""
    order = one.negative[np.argsort(one.score[one.negative])]
    below = np.zeros((len(order) + 1, counts.shape[1]), dtype=np.int32)
    np.cumsum(counts[order], axis=0, out=below[1:])
    first = np.searchsorted(one.score[order], one.score[one.positive], side="left")
    last = np.searchsorted(one.score[order], one.score[one.positive], side="right")
    weight = counts[one.positive].astype(np.int64)
    wins = ((below[first] + below[last]) * weight).sum(axis=0)
    pairs = 2 * weight.sum(axis=0) * below[-1]
    area = np.full(counts.shape[1], np.nan)
    np.divide(wins, pairs, out=area, where=pairs > 0)
    return area


def auc_interval(
    questions: Sequence[OneVsRest],
    n: int,
    strata: NDArray[np.int64] | None,
    resamples: int,
    seed: int,
    confidence: float,
) -> Interval:
    """Return the percentile bootstrap interval of `mean_auc`; NaN where that is.

    Rows are drawn within their stratum, or freely if `strata` is ``None``; replicates whose AUC
    is undefined are left out.
    """
    if resamples < 1 or np.isnan(mean_auc(questions)):
        return UNDEFINED
    chunks = resample_counts(n, resamples, np.random.default_rng(seed), strata)
    replicates = [auc_replicates(questions, counts) for counts in chunks]
    return percentile_interval(np.concatenate(replicates), confidence)
