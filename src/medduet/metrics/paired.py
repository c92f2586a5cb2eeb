"""Paired tests of two networks on the same images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as _mcnemar

from medduet.errors import DataError
from medduet.metrics.intervals import CONFIDENCE, UNDEFINED, Interval, bootstrap_mean

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
