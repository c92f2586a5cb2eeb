"""Paired tests of two networks on the same images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as _mcnemar

from medduet.errors import DataError
from medduet.metrics.classification import auc
from medduet.metrics.intervals import CONFIDENCE, UNDEFINED, Interval, bootstrap_mean
from medduet.types import UNKNOWN_LABEL

EXACT_BELOW = 25
"""McNemar's test is exact for fewer images than this on which only one network is right."""
DECIMALS = 12
"""Smaller differences are those of rounding: 0.9 - 0.8 and 0.5 - 0.4 must be ties."""
_Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
_NAN = float("nan")


class McNemar(NamedTuple):
    """Which of two networks is right on more images.

    Attributes:
        difference: share of right answers of a minus that of b.
        interval: its 95% interval, the adjusted Wald interval of Bonett and Price.
        p: two-sided; exact for fewer than `EXACT_BELOW` images in ``b + c``, else the
            chi-squared test with continuity correction.
        b: images on which only a is right.
        c: images on which only b is right.
        odds_ratio: ``b / c``; infinite without c, NaN without either.
        n: images.
    """

    difference: float
    interval: Interval
    p: float
    b: int
    c: int
    odds_ratio: float
    n: int


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> McNemar:
    """Test whether two networks are right on equally many of the same images.

    The test is statsmodels'; the interval that of Bonett and Price, doi:10.3102/1076998611411915.

    Args:
        right_a: ``(n,)`` bool, whether a is right on each image.
        right_b: likewise for b, on the same images in the same order.

    Raises:
        DataError: for arrays of other shapes or kinds, or without any image.

    Example:
        >>> test = mcnemar([True] * 9 + [False], [True] * 3 + [False] * 6 + [True])
        >>> test.b, test.c, round(test.p, 3), test.odds_ratio
        (6, 1, 0.125, 6.0)
    """
    first, second = np.asarray(right_a), np.asarray(right_b)
    if first.dtype != bool or second.dtype != bool:
        raise DataError(f"expected bool (n,) twice, given {first.dtype} and {second.dtype}")
    check_pairs(first, second)
    if first.ndim != 1:
        raise DataError(f"expected (n,) twice, given {first.shape}")
    b, c, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    table = [[int((first & second).sum()), b], [c, int((~first & ~second).sum())]]
    p = float(_mcnemar(table, exact=b + c < EXACT_BELOW, correction=True).pvalue)
    odds = b / c if c else (float("inf") if b else _NAN)
    share_b, share_c = (b + 1) / (n + 2), (c + 1) / (n + 2)
    centre = share_b - share_c
    half = _Z * float(np.sqrt((share_b + share_c - centre**2) / (n + 2)))
    interval = (max(centre - half, -1.0), min(centre + half, 1.0))
    return McNemar((b - c) / n, interval, p, b, c, odds, n)


class DeLong(NamedTuple):
    """Which of two networks has the larger AUC.

    Attributes:
        auc_a: as `medduet.metrics.auc`.
        auc_b: likewise.
        difference: ``auc_a - auc_b``.
        standard_error: of the difference; NaN if a class has one image only.
        interval: the 95% interval of the difference.
        z: difference over standard error; NaN if that is 0.
        p: two-sided; 1 if difference and standard error are 0.
        n: images with a known label.
    """

    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    interval: Interval
    z: float
    p: float
    n: int


def delong(label: ArrayLike, probability_a: ArrayLike, probability_b: ArrayLike) -> DeLong:
    """Test whether two networks have the same AUC on the same images.

    For two classes it is the test of DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595.
    For more, the AUC is the mean over classes, each against the rest, and so each image enters it
    by the mean of its structural components over classes, those of its own class divided by the
    images in it, those of the others by the images outside them. The variance is the sum over true
    classes of n times the variance (n - 1) of these within the class, which for two classes is
    DeLong's. For multi-label sets, whose images have no one class, it is n times their variance
    over all images, and unknown elements count nothing.

    With several seeds the AUC is the mean over seeds, and so are the structural components: the
    test stays one over images.

    Args:
        label: ``(N,)`` int class index, or ``(N, K)`` of 0 and 1 for multi-label sets; -1 unknown.
        probability_a: ``(N, K)`` float of a, or ``(S, N, K)`` for S seeds.
        probability_b: likewise of b.

    Raises:
        DataError: for shapes, labels or probabilities that do not fit together.

    Example:
        >>> good, poor = [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [[0.5, 0.5]] * 3
        >>> test = delong([0, 0, 1], good, poor)
        >>> test.auc_a, test.auc_b, test.difference
        (1.0, 0.5, 0.5)
    """
    truth, several = np.asarray(label), np.ndim(label) == 2
    scores = [np.asarray(p, dtype=np.float64) for p in (probability_a, probability_b)]
    scores = [score[None] if score.ndim == 2 else score for score in scores]
    if scores[0].shape[1:] != scores[1].shape[1:]:
        raise DataError(
            f"expected (N, K) alike, given {scores[0].shape[1:]} and {scores[1].shape[1:]}"
        )
    area_a, area_b = (
        float(np.mean([auc(truth, seed, several) for seed in score])) for score in scores
    )
    known = (truth != UNKNOWN_LABEL).reshape(len(truth), -1).any(axis=1)
    truth, n = truth[known], int(known.sum())
    difference = area_a - area_b
    if np.isnan(difference):
        return DeLong(area_a, area_b, _NAN, _NAN, UNDEFINED, _NAN, _NAN, n)
    means = [
        np.mean([_influence(truth, seed[known]) for seed in score], axis=0) for score in scores
    ]
    influence = means[0] - means[1]
    groups = [influence] if several else [influence[truth == k] for k in np.unique(truth)]
    if min(map(len, groups)) < 2:
        return DeLong(area_a, area_b, difference, _NAN, UNDEFINED, _NAN, _NAN, n)
    error = float(np.sqrt(sum(len(group) * group.var(ddof=1) for group in groups)))
    if round(error, DECIMALS) == 0:
        p = float(round(difference, DECIMALS) == 0)
        return DeLong(area_a, area_b, difference, 0.0, (difference, difference), _NAN, p, n)
    z = difference / error
    interval = (difference - _Z * error, difference + _Z * error)
    return DeLong(
        area_a, area_b, difference, error, interval, z, float(2 * stats.norm.sf(abs(z))), n
    )


def _influence(truth: NDArray[np.int64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ``(N,)`` by which each image moves the mean AUC, from midranks."""
    classes = np.arange(score.shape[1])
    if truth.ndim == 2:
        has, known = truth == 1, truth != UNKNOWN_LABEL
        columns = classes[known.any(axis=0)]
    else:
        has = truth[:, None] == classes
        known, columns = np.ones_like(has), classes[int(len(classes) == 2) :]
    total = np.zeros(len(score))
    for k in columns:
        positive, negative = has[:, k], known[:, k] & ~has[:, k]
        ranks = stats.rankdata(score[known[:, k], k])
        inside = has[known[:, k], k]
        above = (ranks[inside] - stats.rankdata(score[positive, k])) / negative.sum()
        below = 1 - (ranks[~inside] - stats.rankdata(score[negative, k])) / positive.sum()
        total[positive] += (above - above.mean()) / positive.sum()
        total[negative] += (below - below.mean()) / negative.sum()
    return total / len(columns)


class OverImages(NamedTuple):
    """How two scores of the same images differ.

    Attributes:
        difference: mean of a minus mean of b.
        interval: its 95% percentile bootstrap interval over images.
        p: two-sided, of the sign-flip permutation test.
        d_z: mean over standard deviation of the differences of single images; NaN if that is 0.
        n: images.
    """

    difference: float
    interval: Interval
    p: float
    d_z: float
    n: int


def over_images(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> OverImages:
    """Compare two scores of the same images: bootstrap interval and permutation test.

    If the networks are equally good, either could have had either score of an image: the test
    (scipy's) flips the signs of whole images' differences, all 2^n ways if these are no more than
    `resamples`.

    Args:
        a: ``(n,)`` or ``(n, K)`` score of each image, such as its Dice.
        b: likewise of the other network.
        weights: in the same shape, 0 where a score does not count; see `bootstrap_mean`.
        resamples: of the bootstrap and of the permutation test.
        seed: of both.

    Raises:
        DataError: for shapes that differ, or NaN where it counts.

    Example:
        >>> test = over_images([0.9, 0.8, 0.7, 0.9, 0.8, 0.9], [0.8, 0.7, 0.5, 0.8, 0.6, 0.7])
        >>> round(test.difference, 3), test.p, test.n
        (0.15, 0.03125, 6)
    """
    first, second = check_pairs(a, b)
    weight = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != first.shape:
        raise DataError(f"expected weights {first.shape} as the scores, given {weight.shape}")
    apart, weight = (array.reshape(len(first), -1) for array in (first - second, weight))
    # Rows that count nothing are no images of this comparison.
    rows, columns = weight.any(axis=1), weight.any(axis=0)
    weight, n = weight[rows][:, columns], int(rows.sum())
    apart = np.where(weight > 0, np.round(apart[rows][:, columns], DECIMALS), 0.0)
    if not n:
        return OverImages(_NAN, UNDEFINED, _NAN, _NAN, 0)
    interval = bootstrap_mean(apart, weight, resamples=resamples, seed=seed)
    # What each image adds to the mean over columns of their weighted means, times n.
    share = n * (apart * weight / weight.sum(axis=0)).mean(axis=1)
    spread = float(share.std(ddof=1)) if n > 1 else 0.0
    p = 1.0
    if share.any():
        p = stats.permutation_test(
            (share,),
            _mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, 1_000_000 // n),
            rng=np.random.default_rng(seed),
        ).pvalue
    mean = float(share.mean())
    return OverImages(mean, interval, float(p), mean / spread if spread else _NAN, n)


def _mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = values.mean(axis=axis)
    return mean


def check_pairs(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as float arrays; DataError unless they have one shape and any row."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim not in (1, 2) or not len(first):
        raise DataError(
            f"expected two arrays (n,) or (n, K) alike, given {first.shape} and {second.shape}"
        )
    return first, second
